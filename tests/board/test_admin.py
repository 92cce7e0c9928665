"""The Django admin: every list and form opens, facts cannot be edited, actions ask first."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.urls import reverse

from decisioning.access.models import Membership, Team
from decisioning.ledger.models import Entry
from experiments.models import Experiment, Metric, MetricSchedule
from gates.backtests import run_one
from gates.models import Decision, Policy, PolicyBinding, PolicyVersion
from telemetry.models import ExperimentKpi
from tests.board.scenes import Scene, person
from tests.conftest import as_role


@pytest.fixture
def root(scene: Scene) -> Client:
    client = Client()
    client.force_login(person("root", scene.team, admin=True))
    return client


def test_every_list_and_every_form_opens(root: Client, scene: Scene) -> None:
    scene.answered(scene.proposal(scene.experiment(action="scale", code="wins", days=2)))
    opened = 0
    for model, model_admin in admin.site._registry.items():
        name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
        assert root.get(reverse(f"{name}_changelist")).status_code == 200, name
        first = model_admin.model._default_manager.first()
        if first is not None:
            assert root.get(reverse(f"{name}_change", args=[first.pk])).status_code == 200, name
            opened += 1
    assert opened > 5


def test_the_experiment_list_says_status_gates_recommendation_and_age(root: Client, scene: Scene) -> None:
    scene.proposal(scene.experiment(action="scale", code="wins", days=2))

    text = root.get(reverse("admin:experiments_experiment_changelist")).text

    assert "5 of 5 pass" in text
    assert "Scale, it wins" in text
    assert "fresh" in text


def test_stopping_from_the_list_asks_first_and_then_stops(root: Client, scene: Scene) -> None:
    e = scene.experiment(days=1, rows=False)
    where = reverse("admin:experiments_experiment_changelist")

    asked = root.post(where, {"action": "stop", "_selected_action": [e.pk]})
    assert "cannot be started again" in asked.text
    with as_role("owner"):
        assert Experiment.objects.get(pk=e.pk).status == "running"

    root.post(where, {"action": "stop", "_selected_action": [e.pk], "confirmed": "yes"})
    with as_role("owner"):
        assert Experiment.objects.get(pk=e.pk).status == "stopped"
        assert Entry.objects.filter(experiment_id=e.pk, actor_name="root", actor_kind="user").exists()


def test_a_metrics_page_says_which_schedule_its_rows_show_and_one_button_takes_it(root: Client, scene: Scene) -> None:
    e = scene.experiment(days=3, rows=False)
    with as_role("owner"):
        metric = Metric.objects.get(key="vrps")
        Metric.objects.filter(pk=metric.pk).update(expected_every_s=900)
        hours = [scene.now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=n) for n in range(1, 60)]
        said = {"experiment_id": e.pk, "metric": "vrps", "variant": "control", "value": 1.0, "team_id": e.team_id}
        ExperimentKpi.objects.bulk_create(
            ExperimentKpi(**said, ts=ts, first_received_at=ts, received_at=ts) for ts in hours
        )
    where = reverse("admin:experiments_metric_change", args=[metric.pk])

    page = root.get(where).text
    assert "Rows come every hour: 59 of 59 due instants answered" in page
    assert "Configured, every 15 minutes: " in page
    assert "Take it: every hour from now on" in page

    taken = root.post(
        reverse("admin:metric_take_schedule", args=[metric.pk]), {"take": '{"every_s": 3600}'}, follow=True
    )
    assert "comes every hour from now on" in taken.text
    assert "Rows come as configured, every hour" in taken.text
    with as_role("owner"):
        schedules = [(s.since is None, s.expected) for s in MetricSchedule.objects.filter(metric=metric)]
    assert schedules == [(True, {"every_s": 900}), (False, {"every_s": 3_600})]
    refused = root.post(
        reverse("admin:metric_take_schedule", args=[metric.pk]), {"take": '{"cron": "often"}'}, follow=True
    )
    assert "Nothing was taken" in refused.text


def test_a_metric_that_is_made_in_the_admin_asks_how_often_its_data_comes(root: Client) -> None:
    page = root.get(reverse("admin:experiments_metric_add")).text
    field, text = page.split('name="expected"')[1].split("</textarea>")[0].split(">", 1)
    assert text.strip() in ("", "null")
    assert "required" in field
    assert 'name="expected_every_s"' not in page


@pytest.mark.parametrize(
    ("name", "field"),
    [("access_team", "created_at"), ("experiments_metric", "created_at"), ("gates_evaluation", "slot")],
)
def test_a_year_that_no_calendar_has_is_a_bad_request_and_no_fault_of_ours(root: Client, name: str, field: str) -> None:
    root.raise_request_exception = False
    assert root.get(reverse(f"admin:{name}_changelist"), {f"{field}__year": "9" * 400}).status_code == 400


def test_a_calendar_is_typed_in_the_admin_and_what_is_wrong_with_it_is_said_beside_it(root: Client) -> None:
    asked = {
        "key": "by_hand", "name": "By hand", "kind": "mean", "unit": "", "direction": "increase", "temporality": "delta",
        "freshness_target_s": 900, "counts_assignment": "on", "definition": "", "team": "",
        "schedules-TOTAL_FORMS": 0, "schedules-INITIAL_FORMS": 0,
    }  # fmt: skip
    add = reverse("admin:experiments_metric_add")
    for said, answer in (
        ('{"every": "daily", "timezone": "Mars"}', "is no time zone. Use a name such as Europe/Berlin or UTC."),
        ('{"cron": "0 0 30 2 *"}', "is never due"),
        ('{"cron": "0 0 6 * * 1"}', "has six fields, the first for seconds."),
        ('{"cron": "0 6 * * *", "every_s": 60}', "give one of every_s, cron, or every with a word."),
        ("[3600]", "Write an object"),
        ("weekdays", "Enter a valid JSON."),
        ("", "This field is required."),
    ):
        refused = root.post(add, {**asked, "expected": said})
        assert refused.status_code == 200, said
        assert answer in refused.text, said
    with as_role("owner"):
        assert not Metric.objects.filter(key="by_hand").exists()

    root.post(add, {**asked, "expected": '{"every": "weekdays", "at": "06:00", "timezone": "Europe/Berlin"}'})
    with as_role("owner"):
        metric = Metric.objects.get(key="by_hand")
        kept = [(s.since, s.expected) for s in MetricSchedule.objects.filter(metric=metric)]
    weekdays = {"every": "weekdays", "at": "06:00", "timezone": "Europe/Berlin"}
    assert (kept, metric.expected_every_s) == ([(None, weekdays)], 86_400)

    where = reverse("admin:experiments_metric_change", args=[metric.pk])
    page = root.get(where).text
    assert "weekdays at 06:00 Europe/Berlin" in page
    assert "&quot;weekdays&quot;" in page.split('name="expected"')[1].split("</textarea>")[0]
    root.post(where, {**asked, "name": "Renamed", "expected": json.dumps(weekdays)})
    root.post(where, {**asked, "name": "Renamed", "expected": '{"every_s": 3600}'})
    with as_role("owner"):
        metric.refresh_from_db()
        laid_out = [(s.since is None, s.expected) for s in MetricSchedule.objects.filter(metric=metric)]
    assert laid_out == [(True, weekdays), (False, {"every_s": 3_600})]
    assert (metric.name, metric.expected_every_s) == ("Renamed", 3_600)


def test_any_list_is_taken_along_as_it_is_shown_and_no_more(root: Client, scene: Scene) -> None:
    e = scene.experiment("=Cheaper", days=1, rows=False)
    with as_role("owner"):
        entry, user = Entry.objects.earliest("pk").pk, User.objects.get(username="root").pk
    lists = {"experiments_experiment": e.pk, "ledger_entry": entry, "auth_user": user}
    told = {}
    for name, pk in lists.items():
        answer = root.post(reverse(f"admin:{name}_changelist"), {"action": "as_csv", "_selected_action": [pk]})
        assert answer["Content-Type"] == "text/csv; charset=utf-8", name
        told[name] = answer.text.splitlines()

    assert told["experiments_experiment"][0] == "name,team,status,gates,said,data,on_board"
    assert told["experiments_experiment"][1].startswith("'=Cheaper,growth,running,")
    assert len(told["experiments_experiment"]) == 2
    assert told["ledger_entry"][0].startswith("timestamp,who,actor_kind")
    assert not any("md5" in line for line in told["auth_user"]), "a list shows no hash of a password"


def test_renaming_goes_through_and_the_key_and_status_cannot_be_edited(root: Client, scene: Scene) -> None:
    e = scene.experiment(days=1, rows=False)
    form = {
        "name": "Checkout on one page",
        "hypothesis": e.hypothesis,
        "owner": e.owner,
        "status": "scaled",
        "key": "stolen",
    }
    form |= {f"{part}s-{what}": "0" for part in ("variant", "targetkpi") for what in ("TOTAL_FORMS", "INITIAL_FORMS")}

    response = root.post(reverse("admin:experiments_experiment_change", args=[e.pk]), form)

    assert response.status_code == 302, response.text
    with as_role("owner"):
        e.refresh_from_db()
    assert (e.name, e.status, e.key) == ("Checkout on one page", "running", "scene-1")


def test_rows_of_an_experiment_are_listed_and_nobody_edits_them(root: Client, scene: Scene) -> None:
    e = scene.experiment(days=1)

    text = root.get(reverse("admin:experiments_experiment_rows", args=[e.pk])).text

    assert "vrps" in text
    assert '<input type="text"' not in text


def test_audit_entries_show_who_it_was_and_cannot_be_changed(root: Client, scene: Scene) -> None:
    e = scene.experiment(days=1, rows=False)
    root.post(reverse("move", args=[e.key, "paused"]))
    with as_role("owner"):
        entry = Entry.objects.filter(experiment_id=e.pk, actor_kind="user").latest("pk")

    text = root.get(reverse("admin:ledger_entry_change", args=[entry.pk])).text

    assert "root" in text
    assert 'name="_save"' not in text
    assert root.post(reverse("admin:ledger_entry_delete", args=[entry.pk]), {"post": "yes"}).status_code == 403


def test_a_policy_is_looked_at_as_sentences_then_saved_and_its_next_version_tried_and_activated_by_another(
    root: Client, scene: Scene
) -> None:
    add = reverse("admin:gates_policy_add")
    body = {
        "min_days": 3,
        "gates": [{"name": "{metric}_uplift", "kind": "uplift", "for": "goal", "delete_below": "plan"}],
    }
    form = {"name": "careful", "team": scene.team.pk, "body": json.dumps(body)}
    looked = root.post(add, form | {"look_first": "on"}).text
    assert "Nothing is saved yet" in looked
    assert "Every goal passes when it is proved above 0% against control" in looked
    assert not Policy.objects.filter(name="careful").exists()

    wrong = root.post(add, form | {"body": json.dumps({**body, "alpha": 0.7})}).text
    assert "alpha" in wrong
    assert root.post(add, form).status_code == 302
    policy = Policy.objects.get(name="careful")
    assert [(v.number, v.author, v.activated_at is not None) for v in policy.versions.all()] == [(1, "root", True)]

    add = reverse("admin:gates_policyversion_add")
    assert "&quot;min_days&quot;: 3" in root.get(f"{add}?policy={policy.pk}").text, "it begins with what judges now"
    assert root.post(add, {"policy": policy.pk, "body": json.dumps(body | {"min_days": 5})}).status_code == 302
    candidate = policy.versions.get(number=2)
    assert candidate.activated_at is None
    assert "“careful v2” was added successfully" in root.get(add).text
    assert "Every goal passes" in root.get(reverse("admin:gates_policyversion_change", args=[candidate.pk])).text

    where, chosen = reverse("admin:gates_policyversion_changelist"), {"_selected_action": candidate.pk}
    activate = {"action": "activate", "confirmed": "yes", **chosen}
    assert "has no finished backtest" in root.post(where, activate, follow=True).text
    root.post(where, {"action": "backtest", **chosen})
    with as_role("worker"):
        assert run_one(now=scene.now) is not None
    assert "Somebody else has to activate it" in root.post(where, activate, follow=True).text
    other = Client()
    other.force_login(person("kim", scene.team, admin=True))
    assert "from their next slot on" in other.post(where, {"action": "activate", **chosen}).text
    assert "judges from now on" in other.post(where, activate, follow=True).text
    candidate.refresh_from_db()
    assert candidate.activated_by == "kim"


def test_a_policys_fractions_are_refused_over_one_and_warned_of_over_one_half(root: Client, scene: Scene) -> None:
    add = reverse("admin:gates_policy_add")

    def form(delete_below: float) -> dict[str, Any]:
        gates = [{"name": "goals", "kind": "uplift", "for": "goal", "delete_below": delete_below}]
        return {"name": "wide", "team": scene.team.pk, "body": json.dumps({"gates": gates})}

    assert "delete_below is 2, and that is 200%" in root.post(add, form(2)).text
    warning = "goals: delete_below is 0.6, which is 60%. It is a fraction of control: 0.05 is 5%."
    assert warning in root.post(add, form(0.6) | {"look_first": "on"}).text
    assert warning.capitalize()[:1] + warning[1:] in root.post(add, form(0.6), follow=True).text


def test_an_experiment_that_runs_keeps_its_policy_whoever_edits_a_binding(root: Client, scene: Scene) -> None:
    """Else one person could put another policy in force without a backtest."""
    bound, by_default, draft = (
        scene.experiment(name, key=name, days=1, rows=False, status=status)
        for name, status in (("bound", "paused"), ("by-default", "running"), ("draft", "draft"))
    )
    with as_role("owner"):
        judging, other = (Policy.objects.get(team=None, name=name) for name in ("default", "quick"))
        own = PolicyBinding.objects.create(team=scene.team, experiment=bound, policy=judging)

    def said(where: str, **form: Any) -> str:
        return root.post(where, form, follow=True).text.replace("\xa0", " ")

    def binding(of: Experiment | None, to: Policy) -> dict[str, Any]:
        return {"team": scene.team.pk, "experiment": of.pk if of else "", "policy": to.pk}

    add = reverse("admin:gates_policybinding_add")
    change, delete = (reverse(f"admin:gates_policybinding_{verb}", args=[own.pk]) for verb in ("change", "delete"))
    assert "bound would be judged by another policy" in said(change, **binding(bound, other))
    assert "by-default would be judged by another policy" in said(add, **binding(by_default, other))
    assert "by-default would be judged by another policy" in said(add, **binding(None, other))
    assert "let a second person activate it" in said(add, **binding(None, other))

    assert "was added" in said(add, **binding(draft, other)), "what has not started may be judged by any policy"
    assert "was added" in said(add, **binding(by_default, judging)), "what judges it anyway"
    assert "was added" in said(add, **binding(None, other)), "now nothing that runs goes by the default"
    assert "bound would be judged by another policy" in said(delete, post="yes")
    assert "bound would be judged by another policy" in said(
        reverse("admin:gates_policybinding_changelist"), action="delete_selected", _selected_action=own.pk, post="yes"
    )
    with as_role("owner"):
        assert PolicyBinding.objects.get(experiment=bound).policy == judging
        assert PolicyBinding.objects.get(experiment=None).policy == other


def test_a_person_who_has_answered_and_written_policies_can_be_deleted_and_the_record_stays(
    root: Client, scene: Scene
) -> None:
    leaver = person("leaver", scene.team, "admin")
    r = scene.proposal(scene.experiment(action="scale", code="wins", days=2))
    with as_role("owner"):
        policy = Policy.objects.create(name="ours", team=scene.team, created_at=scene.now)
        body = PolicyVersion.objects.get(policy__name="default", number=1).body
        version = policy.versions.create(
            number=1, team=scene.team, body=body, author="leaver", author_user=leaver, created_at=scene.now
        )
        Decision.objects.create(
            experiment=r.experiment, recommendation=r, action="accept", by="leaver", by_user=leaver, at=scene.now,
            evidence_digest=r.evidence_digest,
        )  # fmt: skip

    asked = root.get(reverse("admin:auth_user_delete", args=[leaver.pk]))
    gone = root.post(reverse("admin:auth_user_delete", args=[leaver.pk]), {"post": "yes"})

    assert f"records and the audit say person-{leaver.pk} from then on" in asked.text
    assert gone.status_code == 302
    with as_role("owner"), connection.cursor() as cursor:
        assert not User.objects.filter(pk=leaver.pk).exists()
        # Within this test's one transaction nobody else's has ended since.
        cursor.execute("UPDATE audit.to_erase SET xid = '1'")
        cursor.execute("SELECT audit.erase()")
        called = f"person-{leaver.pk}"
        assert Decision.objects.get().by == called
        version.refresh_from_db()
        assert (version.author, version.author_user_id) == (called, leaver.pk)
    assert called in root.get("/audit?what=erasure").text
    assert root.get(reverse("admin:gates_decision_changelist")).status_code == 200
    assert root.get(reverse("admin:gates_policy_change", args=[policy.pk])).status_code == 200
    first = r.experiment
    assert root.get(f"/experiments/{first.key}").status_code == 200


def test_people_can_be_deleted_from_the_list(root: Client, scene: Scene) -> None:
    leavers = [person(name, scene.team).pk for name in ("one", "two")]
    where = reverse("admin:auth_user_changelist")

    answer = root.post(where, {"action": "delete_selected", "_selected_action": leavers, "post": "yes"})

    assert answer.status_code == 302
    with as_role("owner"):
        assert not User.objects.filter(pk__in=leavers).exists()


def test_a_team_with_experiments_says_what_stands_in_the_way_of_its_deletion(root: Client, scene: Scene) -> None:
    scene.experiment(days=1, rows=False)
    where = reverse("admin:access_team_delete", args=[scene.team.pk])

    asked, tried = root.get(where), root.post(where, {"post": "yes"})

    assert f"{scene.team.key} has 1 experiment" in asked.text
    assert tried.status_code == 200
    assert f"{scene.team.key} has 1 experiment" in tried.text
    with as_role("owner"):
        assert Team.objects.filter(pk=scene.team.pk).exists()


def test_a_team_of_people_and_keys_alone_goes_with_them(root: Client, scene: Scene) -> None:
    with as_role("owner"):
        team = Team.objects.create(key="short-lived", name="Short-lived", created_at=scene.now)
    member = person("member", team)

    asked = root.get(reverse("admin:access_team_delete", args=[team.pk]))
    gone = root.post(reverse("admin:access_team_delete", args=[team.pk]), {"post": "yes"})

    assert "Memberships: 1" in asked.text or "memberships: 1" in asked.text
    assert gone.status_code == 302
    with as_role("owner"):
        assert not Team.objects.filter(pk=team.pk).exists()
        assert not Membership.objects.filter(user=member).exists()
        assert User.objects.filter(pk=member.pk).exists()


@pytest.mark.parametrize(
    "query", ["status=%00", "q=%00", "%00=1", "q=" + "a+" * 11, "q=" + "a" * 201, "o=%00", "id__exact=%00"]
)
def test_what_no_list_can_look_for_is_a_bad_request(root: Client, query: str) -> None:
    assert root.get(f"/admin/experiments/experiment/?{query}").status_code == 400
