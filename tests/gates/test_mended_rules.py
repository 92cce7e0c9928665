"""When the rules were mended: what runs is judged anew by them, once; what was decided and proved before stays as it is."""

import datetime as dt
import json
import random
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from decisioning.access.models import Team
from decisioning.access.principal import Principal
from decisioning.board.words import SUPERSEDED
from experiments.models import Experiment
from gates.decisions import record_decision
from gates.engine.compiled import REVISION
from gates.models import Cursor, Decision, Evaluation, Evidence, Recommendation
from gates.tick import differences, due, evaluate, open_recommendations, skip_unchanged
from telemetry.ingest import Target
from tests.conftest import as_role
from tests.gates.test_sweeps import HOUR, START, Portal, rows_at, send

END = START + 9 * HOUR
LATER = END + dt.timedelta(minutes=10)


@pytest.fixture
def judged(team: Team) -> Target:
    """A scale is proposed."""
    target = Portal(team).start()
    for hour in range(1, 9):
        send(target, rows_at(START + hour * HOUR, random.Random(hour), 0.3), now=START + hour * HOUR)
    tick(target, END)
    with as_role("worker"):
        assert open_recommendations([experiment(target)]).get().action == "scale"
    return target


def experiment(target: Target) -> Experiment:
    return Experiment.objects.select_related("team").get(pk=target.experiment_id)


def tick(target: Target, now: dt.datetime) -> None:
    with as_role("worker"):
        assert evaluate([target.experiment_id], now=now).failed == []


def by_earlier_rules(target: Target, **found: Any) -> None:
    """As the installation is when the version with mended rules comes: judged by earlier ones, which proposed otherwise.

    found: what they proposed instead of what the present ones do.
    """
    with as_role("owner"):
        Cursor.objects.filter(pk=target.experiment_id).update(rules=REVISION - 1)
        if found:
            Recommendation.objects.filter(experiment=target.experiment_id).update(**found)
            cursor = Cursor.objects.get(pk=target.experiment_id)
            assert cursor.shown is not None
            for part in (cursor.shown["recommendation"], *cursor.shown["variants"]):
                part |= found
            cursor.save()


def changes(*args: str) -> str:
    out = StringIO()
    with as_role("worker"):
        call_command("rebuild", "--changes", *args, stdout=out)
    return out.getvalue()


def test_a_proposal_that_mended_rules_no_longer_make_says_so(judged: Target) -> None:
    by_earlier_rules(judged, action="review", code="undecided")
    tick(judged, LATER)

    with as_role("worker"):
        old, new = Recommendation.objects.order_by("id")
    assert (old.superseded_at, old.superseded_because) == (LATER, "rules_mended")
    assert SUPERSEDED["rules_mended"].startswith("The rules were mended")
    assert (new.action, new.code, new.superseded_at) == ("scale", "wins", None)


def test_what_mended_rules_propose_as_before_stays_proposed_on_its_evidence(judged: Target) -> None:
    with as_role("worker"):
        before = Recommendation.objects.values("id", "evidence_digest", "superseded_at").get()
        kept = {e.digest: bytes(e.body) for e in Evidence.objects.all()}
        on_record = list(Evaluation.objects.order_by("id").values_list("id", "found"))
    by_earlier_rules(judged)
    tick(judged, LATER)

    with as_role("worker"):
        assert Recommendation.objects.values("id", "evidence_digest", "superseded_at").get() == before
        assert kept.items() <= {e.digest: bytes(e.body) for e in Evidence.objects.all()}.items()
        assert list(Evaluation.objects.order_by("id").values_list("id", "found"))[: len(on_record)] == on_record


def test_what_runs_is_judged_anew_at_its_next_slot_even_when_it_is_quiet_and_only_once(judged: Target) -> None:
    with as_role("worker"):
        assert Cursor.objects.get(pk=judged.experiment_id).quiet_to is not None
    by_earlier_rules(judged)
    with as_role("worker"):
        assert skip_unchanged(now=LATER).passed == 0
        assert due(now=LATER) == ([[judged.experiment_id]], False)
    tick(judged, LATER)
    with as_role("worker"):
        cursor = Cursor.objects.get(pk=judged.experiment_id)
        assert (cursor.rules, cursor.fold) == (REVISION, 2)
        assert differences(experiment(judged)) == []
    tick(judged, LATER + HOUR)
    with as_role("worker"):
        assert Cursor.objects.get(pk=judged.experiment_id).fold == 2


def test_an_answer_given_under_earlier_rules_stays_as_it_was_given(judged: Target) -> None:
    by_earlier_rules(judged, action="review", code="undecided")
    with as_role("worker"):
        proposal = open_recommendations([experiment(judged)]).get()
        ann = Principal(kind="user", name="ann", owner="ann")
        record_decision(
            experiment(judged),
            digest=proposal.evidence_digest,
            action="override",
            override_to="hold",
            reason="r",
            by=ann,
            now=END,
        )
        before = Decision.objects.values().get()
    tick(judged, LATER)
    with as_role("worker"):
        assert Decision.objects.values().get() == before
        assert Cursor.objects.get(pk=judged.experiment_id).revisions == {}
        proposal.refresh_from_db()
        assert (proposal.became[0], proposal.superseded_because) == ("answered", "")


def test_what_mended_rules_will_change_is_listed_beforehand_and_nothing_is_written(judged: Target) -> None:
    by_earlier_rules(judged, action="review", code="undecided")
    with as_role("worker"):
        before = Cursor.objects.values().get()

    lines = changes().splitlines()
    assert lines[0].startswith("trial-1: review undecided (proposed) -> scale wins (proposed); ")
    assert "no longer proposed: review treatment undecided of 2026-11-10T" in lines[0]
    assert "newly proposed: scale treatment wins of 2026-11-10T" in lines[0]
    assert lines[1:] == [f"1 experiments that earlier rules judged, 1 change under rules of revision {REVISION}."]
    told = json.loads(changes("--json"))
    assert [c["experiment"] for c in told["changes"]] == ["trial-1"]
    assert told["changes"][0]["before"][0] == {
        "variant": None,
        "action": "review",
        "code": "undecided",
        "state": "proposed",
    }
    assert told["changes"][0]["after"][0] == {"variant": None, "action": "scale", "code": "wins", "state": "proposed"}
    with as_role("worker"):
        assert Cursor.objects.values().get() == before

    tick(judged, LATER)
    assert json.loads(changes("--json"))["experiments"] == 0, "judged anew, it is no longer to be listed"
    with as_role("worker"):
        old = Recommendation.objects.order_by("id")[0]
    assert old.became[0] == "superseded", "what was listed has come true"


def test_nothing_is_listed_of_an_experiment_that_mended_rules_judge_as_before(judged: Target) -> None:
    by_earlier_rules(judged)
    assert changes() == f"1 experiments that earlier rules judged, 0 change under rules of revision {REVISION}.\n"


def test_the_changes_are_computed_on_a_database_that_is_not_upgraded_yet(judged: Target) -> None:
    by_earlier_rules(judged, action="review", code="undecided")
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("ALTER TABLE metadata.cursors DROP COLUMN rules, DROP COLUMN unjudgeable")
    assert [c["experiment"] for c in json.loads(changes("--json"))["changes"]] == ["trial-1"]


def test_an_experiment_whose_changes_cannot_be_computed_is_named_and_the_others_are_listed(
    judged: Target, team: Team
) -> None:
    by_earlier_rules(judged, action="review", code="undecided")
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("UPDATE metadata.variants SET weight = 'NaN' WHERE key = 'treatment'")
    out = StringIO()
    with as_role("worker"), pytest.raises(CommandError, match="1 could not be computed"):
        call_command("rebuild", "--changes", stdout=out)
    assert "trial-1: It cannot be judged. A plan cannot be read" in out.getvalue()


def test_what_earlier_rules_judged_is_no_difference(judged: Target) -> None:
    by_earlier_rules(judged, action="review", code="undecided")
    out = StringIO()
    with as_role("worker"):
        call_command("rebuild", stdout=out)
    assert "1 of them judged by earlier rules and not compared" in out.getvalue()
