"""A candidate policy: backtested first, then activated by somebody who did not write it."""

import json
from collections.abc import Sequence
from datetime import timedelta

from django.contrib.auth.models import User
from django.test import Client

from decisioning.access.models import Team
from gates.engine.policy import DEFAULT_BODY
from gates.models import Backtest, Cursor, Policy, PolicyBinding, PolicyVersion
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


def test_an_older_version_is_held_against_the_one_that_is_named(board: Client, scene: Scene, ines: User) -> None:
    version = candidate(scene, ines)
    with as_role("owner"):
        version.activated_at = scene.now + timedelta(minutes=1)
        version.save()

    text = board.get(f"/policies/{version.policy_id}/1").text

    assert "<ins>version 1</ins> against <del>version 2, which is live</del>" in text
    assert "<del>10</del>" in text
    assert "<ins>7</ins>" in text


def test_an_approver_writes_the_next_version_after_looking_at_it(board: Client, scene: Scene, ines: User) -> None:
    policy = candidate(scene, ines).policy_id
    where = f"/policies/{policy}/next"
    assert f'href="{where}"' in board.get(f"/policies/{policy}").text
    assert "&quot;min_days&quot;: 7" in board.get(where).text

    body = DEFAULT_BODY | {"alpha": 0.01}
    looked = board.post(where, {"body": json.dumps(body), "do": "look"})
    assert (looked.status_code, "<ins>1%</ins>" in looked.text) == (200, True)
    for wrong, said in (
        ("{", "This is no JSON"),
        ("[1]", "must be a JSON object"),
        ('{"gates": []}', "Add at least one goal"),
    ):
        refused = board.post(where, {"body": wrong, "do": "keep"})
        assert (refused.status_code, said in refused.text) == (422, True), wrong
    kept = board.post(where, {"body": json.dumps(body), "do": "keep"})

    assert kept["Location"] == f"/policies/{policy}/3"
    assert "Written by ines" in board.get(f"/policies/{policy}/3").text


def test_a_policy_that_ships_is_copied_into_one_of_a_team_and_never_gets_a_next_version(
    board: Client, scene: Scene, growth: Team
) -> None:
    with as_role("owner"):
        shipped = Policy.objects.get(name="default", team=None).pk
    page = board.get(f"/policies/{shipped}").text
    where = f"/policies/{shipped}/1/copy"
    assert "Write the next version" not in page
    assert f'href="{where}"' in page
    assert board.get(f"/policies/{shipped}/next").status_code == 403

    sent = {"team": growth.pk, "name": "strict", "body": json.dumps(DEFAULT_BODY | {"alpha": 0.01}), "do": "keep"}
    assert board.post(where, sent | {"name": "No Name"}).status_code == 422
    made = board.post(where, sent)

    assert made.status_code == 302
    assert "strict" in board.get("/policies").text
    assert "has a policy" in board.post(where, sent).text
    viewer = Client()
    viewer.force_login(person("vic", growth, "viewer"))
    assert viewer.get(where).status_code == 403
    assert "Copy into" not in viewer.get(f"/policies/{shipped}").text
