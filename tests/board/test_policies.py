"""A candidate policy: backtested first, then activated by somebody who did not write it."""

from collections.abc import Sequence
from datetime import timedelta

from django.contrib.auth.models import User
from django.test import Client

from decisioning.access.models import Team
from gates.models import Backtest, Cursor, Policy, PolicyBinding, PolicyVersion
from gates.policy import DEFAULT_BODY
from tests.board.scenes import Scene, person
from tests.conftest import as_role

FIGURES = {"flips": 0, "gained": 1, "lost": 0, "days_saved": -2.5, "agreement": 0.93, "live_agreement": 0.9}


def candidate(scene: Scene, author: User) -> PolicyVersion:
    with as_role("owner"):
        policy = Policy.objects.create(name="careful", team=scene.team, created_at=scene.now)
        common = {
            "policy": policy,
            "team": scene.team,
            "author": author.username,
            "author_user": author,
            "created_at": scene.now,
        }
        PolicyVersion.objects.create(number=1, body=DEFAULT_BODY, activated_at=scene.now, activated_by="ines", **common)
        return PolicyVersion.objects.create(number=2, body=DEFAULT_BODY | {"min_days": 10}, **common)


def finish(
    scene: Scene, version: PolicyVersion, key: str, *, answers: Sequence[object] = (), stretches: Sequence[object] = ()
) -> None:
    decided = {"action": "delete", "code": "harm", "slot": scene.now.isoformat()}
    variant = {
        "variant": "treatment",
        "live": None,
        "candidate": decided,
        "flip": False,
        "gained": True,
        "lost": False,
        "days_saved": None,
    }
    told = {"experiment": key, "variants": [variant], "stretches": list(stretches), "answers": list(answers)}
    with as_role("owner"):
        trial = Backtest.objects.get(version=version)
        trial.state, trial.finished_at, trial.result = (
            Backtest.State.FINISHED,
            scene.now,
            FIGURES | {"experiments": [told]},
        )
        trial.save()


def test_what_a_candidate_changes_is_read_aloud_and_its_author_cannot_activate_it(
    board: Client, scene: Scene, ines: User
) -> None:
    version = candidate(scene, ines)
    where = f"/policies/{version.policy_id}/2"

    text = board.get(where).text
    assert "<del>7</del>" in text
    assert "<ins>10</ins>" in text
    assert "A backtest is missing." in text
    assert "A second person is missing." in text

    board.post(f"{where}/backtest")
    finish(scene, version, scene.experiment(rows=False).key)
    assert board.post(f"{where}/activate").status_code == 409
    with as_role("owner"):
        version.refresh_from_db()
    assert version.activated_at is None


def test_a_second_person_reads_the_report_and_activates(board: Client, scene: Scene, ines: User, growth: Team) -> None:
    version = candidate(scene, ines)
    where = f"/policies/{version.policy_id}/2"
    mei = Client()
    mei.force_login(person("mei", growth))

    refused = mei.post(f"{where}/activate")
    assert (refused.status_code, "no finished backtest" in refused.text) == (409, True)
    mei.post(f"{where}/backtest")
    assert "Running: asked for by mei" in mei.get(where).text
    finish(scene, version, scene.experiment("Wide pictures", rows=False).key)

    report = mei.get(where).text
    assert "Wide pictures" in report
    assert "93%" in report
    assert "Delete, a guard is harmed" in report
    assert mei.post(f"{where}/activate").status_code == 302
    assert "Activated" in mei.get(where).text


def test_what_each_figure_of_a_backtest_is_counted_from_stands_folded_below_it_and_stays_when_the_version_is_live(
    board: Client, scene: Scene, ines: User, growth: Team
) -> None:
    version = candidate(scene, ines)
    where = f"/policies/{version.policy_id}/2"
    board.post(f"{where}/backtest")
    at = scene.now.isoformat()
    answer = {"at": at, "variant": "treatment", "person": "scale", "live": "hold", "candidate": "scale"}
    stretch = {"begin": at, "end": at, "live": ["hold", "open"], "candidate": ["scale", "wins"]}
    finish(scene, version, scene.experiment("Wide pictures", rows=False).key, answers=[answer], stretches=[stretch])

    page = board.get(where).text
    assert "1 answer of people, one by one" in page
    assert "1 stretch of time in which they differ" in page
    assert "Scale, it wins" in page
    sheet = board.get(f"{where}/backtest.csv").text.splitlines()
    assert [line.split(",")[7] for line in sheet] == ["kind", "variant", "answer", "stretch"]
    assert sheet[2].split(",")[1:5] == ["treatment", "hold", "", "scale"]
    assert sheet[3].split(",")[2:6] == ["hold", "open", "scale", "wins"]

    mei = Client()
    mei.force_login(person("mei", growth))
    mei.post(f"{where}/activate")
    page = mei.get(where).text
    assert "1 answer of people, one by one" in page
    assert "What was live said" in page
    assert "Run it again" not in page


def test_a_viewer_is_offered_neither(scene: Scene, ines: User, growth: Team) -> None:
    version = candidate(scene, ines)
    viewer = Client()
    viewer.force_login(person("vic", growth, "viewer"))

    assert "Activate version" not in viewer.get(f"/policies/{version.policy_id}/2").text
    assert viewer.post(f"/policies/{version.policy_id}/2/backtest").status_code == 403
    assert viewer.post(f"/policies/{version.policy_id}/2/activate").status_code == 403


def test_what_changed_in_the_policy_while_an_experiment_ran_stands_in_its_timeline(board: Client, scene: Scene) -> None:
    e = scene.experiment(days=2, rows=False)
    with as_role("owner"):
        policy = Policy.objects.create(name="careful", team=scene.team, created_at=scene.now)
        common = {"policy": policy, "team": scene.team, "author": "ada", "created_at": scene.now, "body": DEFAULT_BODY}
        for number, days in ((1, 9), (2, 1)):
            at = scene.now - timedelta(days=days)
            version = PolicyVersion.objects.create(number=number, activated_at=at, activated_by="mei", **common)
        Cursor.objects.filter(experiment=e).update(policy_version=version)
        PolicyBinding.objects.create(team=scene.team, experiment=e, policy=policy)

    text = board.get(f"/experiments/{e.key}").text.split('id="timeline"')[1]

    assert "Policy careful, version 2 went live" in text
    assert "By mei. It judges from the next slot on." in text
    assert "version 1 went live" not in text, "that was before it began"
    assert "For the experiment, by" in text
