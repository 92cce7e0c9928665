"""When the rules were mended: what runs is judged anew by them, once; what was decided and proved before stays as it is."""

import datetime as dt
import json
import random
import zlib
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from msgspec.structs import replace

from decisioning.access.models import Team
from decisioning.access.principal import Principal
from decisioning.board.words import SUPERSEDED
from experiments.models import Experiment
from gates.consistency import differences
from gates.decisions import record_decision
from gates.engine import narration
from gates.engine.compiled import REVISION
from gates.engine.evidence import digest
from gates.engine.narration import Reader
from gates.loading import checkpoint_in
from gates.models import Cursor, Decision, Evaluation, Evidence, Recommendation
from gates.tasks import _logged
from gates.tick import due, evaluate, skip_unchanged
from telemetry.ingest import Target
from tests.conftest import as_role
from tests.gates.test_revisions import IN_SENTENCES
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
        assert Recommendation.objects.open([experiment(target)]).get().action == "scale"
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
        proposal = Recommendation.objects.open([experiment(judged)]).get()
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


# When the shape of what is kept changes ----------------------------------------------------------------------------------


def as_before_reasons(target: Target) -> None:
    """As an installation of the version before has it: sentences in place of reasons, evidence that holds them, an older state."""
    with as_role("owner"):
        scene = Experiment.objects.select_related("team").get(pk=target.experiment_id)
        bodies = [zlib.decompress(path.read_bytes()) for path in IN_SENTENCES]
        Evidence.objects.bulk_create(
            Evidence(
                experiment=scene, team_id=scene.team_id, digest=digest(body), body=zlib.compress(body), created_at=END
            )
            for body in bodies
        )
        for row in Recommendation.objects.filter(experiment=scene):
            Recommendation.objects.filter(pk=row.pk).update(
                reasons=[], rationale=narration.rationale(row.reasons, Reader()), blockers=[]
            )
        cursor = Cursor.objects.get(pk=scene.pk)
        assert cursor.shown is not None
        assert cursor.state is not None
        told = narration.narrated(cursor.shown, Reader())
        for part in (told["recommendation"], *told["variants"], *told["gates"]):
            del part["reasons"]
        stored = replace(checkpoint_in(cursor.state), fingerprint="of another format")
        cursor.shown, cursor.state = told, zlib.compress(stored.to_bytes())
        cursor.save()


def test_an_installation_that_kept_sentences_goes_on_proves_its_evidence_and_says_how_far_it_is(
    judged: Target, caplog: pytest.LogCaptureFixture
) -> None:
    with as_role("worker"):
        before = Recommendation.objects.get()
    as_before_reasons(judged)
    with as_role("worker"), caplog.at_level("INFO", "gates.tasks"):
        old = Recommendation.objects.get()
        assert [reason["code"] for reason in old.told] == ["told"] * len(old.rationale)
        _logged(lambda: evaluate([judged.experiment_id], now=LATER))
        assert "1 experiments judged anew from their rows" in caplog.text
        assert "0 to go" in caplog.text
        after = Recommendation.objects.get()
        assert (after.pk, after.evidence_digest, after.superseded_at) == (before.pk, before.evidence_digest, None)
        assert differences(experiment(judged)) == []
        out = StringIO()
        call_command("replay", "--all", stdout=out)
        kept = Evidence.objects.count()
    assert kept > len(IN_SENTENCES) > 20
    assert out.getvalue() == f"{kept} replayed, all the same bytes.\n"
