"""What an experiment is made of when somebody says as little as possible, and what is refused."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.db import connection

from decisioning.access.models import Team
from decisioning.access.principal import Principal
from decisioning.ledger.models import OutboxMessage
from experiments.feeds import lay_out
from experiments.models import Experiment, Metric
from experiments.plan import NewExperiment, NewKpi, NewMetric, NewVariant, PlanRefused, create, register, revise
from tests.conftest import as_role

OPS = Principal("user", id=1, name="ops", owner="ops@example.org")


@pytest.fixture(autouse=True)
def _as_worker(db: None) -> Iterator[None]:
    with as_role("worker"):
        yield


def make(team: Team, now: datetime, **said: object) -> Experiment:
    least = {
        "name": "One-page checkout",
        "hypothesis": "Fewer steps",
        "owner": "ops",
        "target_kpis": [NewKpi(metric="vrps")],
    }
    return create(NewExperiment(**{**least, **said}), team=team, by=OPS, now=now)  # type: ignore[arg-type]


def test_three_facts_make_a_running_experiment_with_control_treatment_and_metric(team: Team, now: datetime) -> None:
    experiment = make(team, now)

    assert (experiment.key, experiment.status, experiment.started_at) == ("one-page-checkout", "running", now)
    assert [(v.key, v.control, v.weight) for v in experiment.variants.all()] == [
        ("control", True, 1),
        ("treatment", False, 1),
    ]
    metric = Metric.objects.get(key="vrps")
    assert (metric.kind, metric.direction, metric.temporality, metric.team) == ("mean", "increase", "delta", team)
    assert OutboxMessage.objects.get().data == {
        "experiment": "one-page-checkout", "from": None, "to": "running", "by": "ops@example.org", "reason": ""
    }  # fmt: skip


def test_a_generated_key_gets_a_suffix_and_a_chosen_one_is_refused_when_taken(team: Team, now: datetime) -> None:
    assert [make(team, now).key for _ in range(3)] == [
        "one-page-checkout",
        "one-page-checkout-2",
        "one-page-checkout-3",
    ]
    assert make(team, now, name="2026 ✓").key == "experiment-2026"

    with pytest.raises(PlanRefused) as refused:
        make(team, now, key="one-page-checkout")
    assert refused.value.code == "key_taken"


def test_targets_alone_make_one_variant_called_all(team: Team, now: datetime) -> None:
    experiment = make(team, now, target_kpis=[NewKpi(metric="vrps_uplift", target_at_least=0.0)])
    assert [v.key for v in experiment.variants.all()] == ["all"]


def test_a_metric_described_otherwise_than_the_registry_has_it_is_refused(team: Team, now: datetime) -> None:
    make(team, now, target_kpis=[NewKpi(metric=NewMetric(key="signup", kind="proportion"))])
    make(team, now, target_kpis=[NewKpi(metric=NewMetric(key="signup", kind="proportion", name="Sign-ups"))])

    with pytest.raises(PlanRefused) as refused:
        make(team, now, target_kpis=[NewKpi(metric=NewMetric(key="signup", kind="mean"))])
    assert [(e.pointer, e.code) for e in refused.value.errors] == [("/target_kpis/0/metric/kind", "metric_differs")]


def test_n_of_a_new_metric_counts_assigned_units_only_where_it_is_a_goal_or_an_exposure(
    team: Team, now: datetime
) -> None:
    said = NewMetric(key="visits", counts_assignment=True)
    kpis = [NewKpi(metric=key, role=key) for key in ("goal", "guardrail", "shown", "exposure")]
    make(
        team,
        now,
        target_kpis=[*kpis, NewKpi(metric="refunds", role="guardrail"), NewKpi(metric=said, role="guardrail")],
    )
    make(team, now, target_kpis=[NewKpi(metric="goal", role="guardrail"), NewKpi(metric="refunds")])

    counts = dict(Metric.objects.values_list("key", "counts_assignment"))
    assert [key for key, counted in sorted(counts.items()) if counted] == ["exposure", "goal", "visits"]


def test_every_bad_value_is_named_with_its_place(team: Team, now: datetime) -> None:
    with pytest.raises(PlanRefused) as refused:
        make(
            team,
            now,
            name=" ",
            key="-x",
            variants=[NewVariant(key="a"), NewVariant(key="a", weight=0)],
            target_kpis=[NewKpi(metric="Bad", max_harm=0), NewKpi(metric="ok", baseline_mean=1.0), NewKpi(metric="ok")],
            started_at=now + timedelta(hours=1),
        )
    assert [(fault.pointer, fault.code) for fault in refused.value.errors] == [
        ("/key", "invalid"),
        ("/name", "missing_field"),
        ("/variants/1/key", "duplicate"),
        ("/variants/1/weight", "invalid_number"),
        ("/variants", "invalid"),
        ("/target_kpis/0/metric", "invalid"),
        ("/target_kpis/0/max_harm", "invalid_number"),
        ("/target_kpis/1/baseline", "missing_field"),
        ("/target_kpis/2/metric", "duplicate"),
        ("/started_at", "timestamp_in_future"),
    ]
    assert not Experiment.objects.exists()


def test_the_start_may_lie_in_the_past_as_far_as_rows_are_kept(team: Team, now: datetime) -> None:
    assert make(team, now, started_at=now - timedelta(days=399)).started_at == now - timedelta(days=399)
    with pytest.raises(PlanRefused, match="400 days"):
        make(team, now, started_at=now - timedelta(days=401))


def test_the_plan_changes_while_it_is_a_draft_and_words_change_always(team: Team, now: datetime) -> None:
    draft = make(team, now, start=False)
    revise(draft, {"target_kpis": [NewKpi(metric="signup", role="goal")], "name": "Checkout"}, now=now)
    assert [kpi.metric.key for kpi in draft.targetkpis.all()] == ["signup"]
    assert [v.key for v in draft.variants.all()] == ["control", "treatment"]

    running = make(team, now)
    assert revise(running, {"hypothesis": "Other words"}, now=now).hypothesis == "Other words"
    with pytest.raises(PlanRefused, match="only change while it is a draft") as refused:
        revise(running, {"target_kpis": [NewKpi(metric="signup")]}, now=now)
    assert refused.value.code == "not_draft"


def test_due_instants_are_laid_out_ahead_and_what_is_past_its_time_goes(team: Team, now: datetime) -> None:
    new = NewMetric(key="weekly_visits", expected={"every": "weekdays", "at": "06:00", "timezone": "Europe/Berlin"})
    metric = register(new, team=team, now=now)

    def laid_out() -> list[datetime]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT at FROM metrics.due_instants WHERE metric_id = %s ORDER BY at", [metric.pk])
            return [at for (at,) in cursor.fetchall()]

    before = laid_out()
    assert before[-1] > now + timedelta(days=57)
    assert {at.astimezone(ZoneInfo("Europe/Berlin")).hour for at in before} == {6}
    later = now + timedelta(days=700)
    assert lay_out(now=later) == 1
    after = laid_out()
    assert after[0] > now
    assert after[-1] > later + timedelta(days=57)
