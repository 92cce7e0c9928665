"""From draft to its end: what may follow what, and what is written down on the way."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise

import pytest

from decisioning.access.models import Team
from decisioning.ledger.models import OutboxMessage
from experiments.lifecycle import TRANSITIONS, TransitionRefused, ask, transition
from experiments.models import Experiment
from experiments.plan import NewExperiment, NewKpi, create
from tests.conftest import as_role
from tests.experiments.test_plan import OPS

HOUR = timedelta(hours=1)


@pytest.fixture
def draft(team: Team, now: datetime) -> Iterator[Experiment]:
    with as_role("worker"):
        yield create(
            NewExperiment(name="x", hypothesis="y", owner="z", target_kpis=[NewKpi(metric="vrps")], start=False),
            team=team,
            by=OPS,
            now=now,
        )


def test_a_draft_runs_pauses_runs_on_and_stops(draft: Experiment, now: datetime) -> None:
    for step, to in enumerate(("running", "paused", "running", "paused", "stopped")):
        transition(draft, to, by=OPS, now=now + step * HOUR)

    assert (draft.status, draft.started_at, draft.ended_at) == ("stopped", now, now + 4 * HOUR)
    assert list(draft.pauses.order_by("id").values_list("paused_at", "resumed_at")) == [
        (now + 1 * HOUR, now + 2 * HOUR),
        (now + 3 * HOUR, now + 4 * HOUR),
    ]
    told = [(m.data["from"], m.data["to"]) for m in OutboxMessage.objects.order_by("id")]
    assert told == [(None, "draft"), *pairwise(("draft", "running", "paused", "running", "paused", "stopped"))]


def test_what_the_table_does_not_allow_is_refused_and_says_what_is(draft: Experiment, now: datetime) -> None:
    with pytest.raises(TransitionRefused, match=r"cannot become paused.*may become running"):
        transition(draft, "paused", by=OPS, now=now)
    transition(draft, "running", by=OPS, now=now)
    transition(draft, "scaled", by=OPS, now=now)
    for to in TRANSITIONS:
        with pytest.raises(TransitionRefused, match="has ended") as refused:
            transition(draft, to, by=OPS, now=now)
        assert refused.value.allowed == ()


def test_scaled_and_deleted_are_not_to_be_had_by_asking(draft: Experiment, now: datetime) -> None:
    ask(draft, "running", by=OPS, now=now)
    with pytest.raises(TransitionRefused) as refused:
        ask(draft, "scaled", by=OPS, now=now)
    assert refused.value.allowed == ("paused", "stopped")
    draft.refresh_from_db()
    assert draft.status == "running"


def test_the_second_of_two_is_judged_by_what_the_first_has_done(draft: Experiment, now: datetime) -> None:
    held_by_another = Experiment.objects.get(pk=draft.pk)
    transition(draft, "running", by=OPS, now=now)
    with pytest.raises(TransitionRefused, match="is running and cannot become running"):
        transition(held_by_another, "running", by=OPS, now=now)
