"""One item's exception never ends a batch: whatever a step raises for one, the others have their turn, and it is noted and rests."""

import datetime as dt
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from django.db import connection, transaction
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from decisioning.access import outbound
from decisioning.access.models import Team
from decisioning.ledger import alarms, delivery, seals
from decisioning.ledger.alarms import RETRY_AFTER, Condition, Unknown, reconcile
from decisioning.ledger.channels import ChannelRefused, open_channel
from decisioning.ledger.delivery import Outcome
from decisioning.ledger.models import Alarm, Channel, Delivery, OutboxMessage
from decisioning.ledger.outbox import publish
from decisioning.ledger.outbox import publish_all as tell_all_
from decisioning.notices import tasks
from decisioning.slo import alarms as slo_alarms
from experiments.models import Experiment, Metric
from gates import alarms as gate_alarms
from telemetry import breaches, retention
from telemetry import tasks as telemetry_tasks
from telemetry.models import RefreshRun, Source
from telemetry.sources import runs
from tests.conftest import as_role, log_in_as
from tests.examples import examples

pytestmark = pytest.mark.django_db

KINDS: list[Callable[[], Exception]] = [
    lambda: UnicodeError("label empty or too long"),
    lambda: ValueError("port out of range"),
    lambda: KeyError("experiment"),
    lambda: RecursionError("maximum recursion depth exceeded"),
    lambda: OverflowError("int too large"),
    lambda: OSError(28, "No space left on device"),
    lambda: AssertionError(),
]
_number = count()


def teams(number: int, now: dt.datetime) -> list[Team]:
    with as_role("owner"):
        return [Team.objects.create(key=f"t-{next(_number)}", name="T", created_at=now) for _ in range(number)]


def channels(of: list[Team], now: dt.datetime) -> list[Channel]:
    """Each team has one, and something has happened in each."""
    made = []
    with as_role("worker"):
        for team in of:
            made.append(
                open_channel(team, url="https://example.com/hook", events=["experiment.changed"], by="ada", now=now)[0]
            )
            publish(
                team_id=team.pk,
                experiment_id=None,
                type="experiment.changed",
                data={"experiment": "e", "to": "running"},
                now=now,
            )
    return made


@given(
    failing=st.sets(st.integers(0, 4)), kind=st.sampled_from(KINDS), step=st.sampled_from(["send", "_record", "_heads"])
)
@examples(10, ignore=[HealthCheck.function_scoped_fixture], fresh=True)
def test_whatever_a_step_of_one_channel_raises_every_other_is_told(
    failing: set[int], kind: Callable[[], Exception], step: str
) -> None:
    now = dt.datetime(2026, 11, 24, 6, 17, tzinfo=dt.UTC)
    with transaction.atomic(), pytest.MonkeyPatch.context() as patch:
        made = channels(teams(5, now), now)
        bad = {made[n].pk for n in failing}

        def raising(real: Callable[..., Any], channel_of: Callable[..., int]) -> Callable[..., Any]:
            def stepped(*args: Any) -> Any:
                if channel_of(*args) in bad:
                    raise kind()
                return real(*args)

            return stepped

        send: Any = lambda _delivery, _now: Outcome(200)  # noqa: E731
        if step == "send":
            send = raising(send, lambda of, _now: of.channel_id)
        elif step == "_record":
            patch.setattr(delivery, "_record", raising(delivery._record, lambda of, *_: of.channel_id))
        else:
            patch.setattr(delivery, "_heads", raising(delivery._heads, lambda channel, _now: channel))

        with as_role("worker"):
            delivery.deliver(send, clock=lambda: now, lanes=1)
            states = dict(Delivery.objects.values_list("channel_id", "state"))
            assert states == {c.pk: "waiting" if c.pk in bad else "delivered" for c in made}
            for channel in Channel.objects.filter(pk__in=bad):
                assert (channel.failures, channel.next_at > now, channel.leased_until) == (1, True, None)
            if step == "send":
                for late in Delivery.objects.filter(channel__in=bad):
                    assert (late.attempts, late.last_error.startswith(type(kind()).__name__), late.next_at > now) == (
                        1,
                        True,
                        True,
                    )
            assert delivery.deliver(send, clock=lambda: now, lanes=1) == 0, "they rest"
        transaction.set_rollback(True)


@pytest.mark.parametrize(
    "host", ["a..b", ".example.com", "x" * 64 + ".example.com", "☃.example.com", "a%00b", "*.example.com", "a" * 300, "-a.example.com",
             "exa\u200dmple.com", "a b.example.com"],
)  # fmt: skip
def test_a_host_that_is_no_name_is_refused_when_a_webhook_is_made(team: Team, now: dt.datetime, host: str) -> None:
    with as_role("worker"), pytest.raises(ChannelRefused) as refused:
        open_channel(team, url=f"https://{host}/hook", events=["experiment.changed"], by="ada", now=now)
    assert refused.value.code in ("webhook_blocked", "invalid")


@pytest.mark.parametrize(
    "host", ["ünï.example.com", "my_service.example.com", "example.com.", "xn--bcher-kva.example.com"]
)
def test_a_host_that_is_a_name_is_taken(host: str) -> None:
    outbound.check_url(f"https://{host}/hook")


def test_a_stored_host_that_is_no_name_is_an_answer_that_never_came() -> None:
    with pytest.raises(outbound.Blocked):
        outbound.addresses("a..b", 443)


def test_a_look_that_fails_costs_no_other_its_turn_and_is_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def tell_overdue(**_: object) -> int:
        raise KeyError("experiment")

    def look(name: str) -> Callable[..., int]:
        def looking(**_: object) -> int:
            looked.append(name)
            return 0

        return looking

    monkeypatch.setattr(gate_alarms, "tell_overdue", tell_overdue)
    monkeypatch.setattr(gate_alarms, "tell_failed_guards", look("guards"))
    monkeypatch.setattr(breaches, "tell_changes", look("changes"))
    with as_role("worker"):
        tasks.watch()
        assert looked == ["guards", "changes"]
        assert list(RefreshRun.objects.values_list("job_name", "status", "error")) == [
            ("portal/tell-overdue", "failed", "KeyError: 'experiment'")
        ]


@pytest.mark.parametrize("bad", [float("nan"), object(), "\x00", {1, 2}])
def test_an_alarm_that_cannot_be_told_costs_no_other_its_message_and_rests(now: dt.datetime, bad: object) -> None:
    of = teams(3, now)

    def look() -> list[Condition]:
        return [Condition(t.pk, None, "x", {"figure": bad if t == of[1] else 1}) for t in of]

    with as_role("worker"):
        assert reconcile("guard.failed", look, now=now) == 2
        assert set(OutboxMessage.objects.values_list("team_id", flat=True)) == {of[0].pk, of[2].pk}
        resting = Alarm.objects.get(team_id=of[1].pk)
        assert (resting.told_at, "failure" in resting.data) == (None, True)
        assert reconcile("guard.failed", look, now=now + dt.timedelta(minutes=1)) == 0
        bad = 1
        assert reconcile("guard.failed", look, now=now + RETRY_AFTER) == 1


def test_a_message_that_cannot_be_written_costs_no_other_alarm_its_own(
    now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = teams(3, now)

    def publish_all(messages: list[OutboxMessage]) -> None:
        real(messages)
        if any(message.team_id == of[1].pk for message in messages):
            raise ValueError("of this one")

    real: Callable[..., None] = tell_all_
    monkeypatch.setattr(alarms, "publish_all", publish_all)
    with as_role("worker"):
        assert reconcile("guard.failed", lambda: [Condition(t.pk, None, "x", {}) for t in of], now=now) == 2
        told = dict(Alarm.objects.values_list("team_id", "told_at"))
        assert told == {of[0].pk: now, of[1].pk: None, of[2].pk: now}
        assert set(OutboxMessage.objects.values_list("team_id", flat=True)) == {of[0].pk, of[2].pk}


def test_a_team_that_cannot_be_counted_keeps_its_alarms_and_costs_no_other_its_own(
    now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = teams(2, now)
    with as_role("owner"):
        for team in (first, second):
            Experiment.objects.create(
                key=f"e-{team.pk}", name="E", hypothesis="h", owner="o", team=team, status="running", created_at=now, started_at=now
            )  # fmt: skip
        Alarm.objects.create(team_id=first.pk, type="slo.burning", subject="reads", began_at=now, told_at=now)

    def figures(*, team_id: int, **_: object) -> int:
        if team_id == first.pk:
            raise OverflowError
        return team_id

    monkeypatch.setattr(slo_alarms, "figures", figures)
    monkeypatch.setattr(slo_alarms, "_broken", lambda _found, team: [Condition(team, None, "reads", {})])
    with as_role("worker"):
        slo_alarms.tell_broken(now=now + dt.timedelta(days=1))
        assert set(Alarm.objects.values_list("team_id", "ended_at")) == {(first.pk, None), (second.pk, None)}


def test_what_is_unknown_of_a_team_neither_ends_nor_begins_anything(now: dt.datetime) -> None:
    (team,) = teams(1, now)
    with as_role("worker"):
        reconcile("guard.failed", lambda: [Condition(team.pk, None, "x", {})], now=now)
        reconcile("guard.failed", lambda: [Unknown(team.pk)], now=now + dt.timedelta(days=1))
        assert Alarm.objects.get().ended_at is None


@pytest.fixture
def sources_of_three(now: dt.datetime, settings: LazySettings, tmp_path: Path) -> list[Source]:
    """Each of another team, all due."""
    settings.SOURCES_DIR = tmp_path
    of = teams(3, now)
    with as_role("owner"):
        Metric.objects.create(key="vrps", name="Value per session", created_at=now)
        return [
            Source.objects.create(
                key=f"s-{team.pk}", team=team, kind="file", path=f"{team.key}/x.csv", query="SELECT * FROM rows WHERE ts > :since AND ts <= :until",
                metrics=["vrps"], created_at=now, due_at=now, schedule_s=30,
            )
            for team in of
        ]  # fmt: skip


def raising_for(real: Callable[..., Any], bad: Callable[..., bool]) -> Callable[..., Any]:
    def stepped(*args: Any, **kwargs: Any) -> Any:
        if bad(*args):
            raise ValueError("of this one")
        return real(*args, **kwargs)

    return stepped


def test_a_source_that_cannot_be_queued_costs_no_other_its_run_and_rests(
    sources_of_three: list[Source], now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = sources_of_three[0]
    monkeypatch.setattr(runs, "queue", raising_for(runs.queue, lambda source: source.pk == bad.pk))
    with as_role("worker"):
        runs.queue_due(now=now)
        assert dict(RefreshRun.objects.values_list("source", "status")) == {
            s.key: "failed" if s.pk == bad.pk else "running" for s in sources_of_three
        }
        bad.refresh_from_db()
        assert (bad.failures, bad.due_at > now) == (1, True)
        assert "of this one" in str(RefreshRun.objects.get(source=bad.key).error)


@pytest.mark.parametrize("step", ["pull", "_end"])
def test_a_run_that_breaks_costs_no_other_its_own(
    sources_of_three: list[Source], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    bad = sources_of_three[0]
    monkeypatch.setattr(runs, step, raising_for(getattr(runs, step), lambda run, *_: run.source == bad.key))
    with as_role("worker"):
        telemetry_tasks.sources()
        ended = dict(RefreshRun.objects.values_list("source", "status"))
        assert [ended[s.key] for s in sources_of_three] == ["failed"] * 3, "of two there is no file: they got that far"
        assert "of this one" in str(RefreshRun.objects.get(source=bad.key).error)


def test_a_lost_run_that_cannot_be_ended_costs_no_other_its_end(
    sources_of_three: list[Source], now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = sources_of_three[0]
    with as_role("worker"):
        for source in sources_of_three:
            runs.queue(source, now=now)
        RefreshRun.objects.update(started_at=now)
        monkeypatch.setattr(runs, "_end", raising_for(runs._end, lambda run, *_: run.source == bad.key))
        assert runs.fail_lost(now=now + dt.timedelta(hours=1)) == 2


def test_a_month_that_cannot_be_made_costs_no_other_its_partition() -> None:
    now = dt.datetime(2031, 1, 15, tzinfo=dt.UTC)
    failures: list[str] = []
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE metrics.odd PARTITION OF metrics.experiment_kpis FOR VALUES FROM ('2031-02-01') TO ('2031-03-01')"
        )
    with as_role("worker"):
        assert retention.make_partitions(now=now, failures=failures) == 3
    assert [failure.partition(":")[0] for failure in failures] == ["Partition of 2031-02"]


def test_a_partition_that_cannot_be_dropped_costs_no_other_its_end() -> None:
    long_ago = dt.datetime(2019, 1, 1, tzinfo=dt.UTC)
    failures: list[str] = []
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("SELECT metrics.make_partitions(%s, %s)", [long_ago, long_ago + dt.timedelta(days=80)])
        cursor.execute("CREATE VIEW metrics.keeps AS SELECT * FROM metrics.experiment_kpis_2019_02")
    with as_role("worker"):
        swept = retention.sweep(now=dt.datetime(2024, 1, 1, tzinfo=dt.UTC), failures=failures)
    assert {"experiment_kpis_2019_01", "experiment_kpis_2019_03"} <= set(swept.partitions)
    assert [failure.partition(":")[0] for failure in failures] == ["Partition experiment_kpis_2019_02"]


@pytest.mark.django_db(transaction=True)
def test_a_seal_that_cannot_be_noted_outside_costs_no_other_its_sealing(
    now: dt.datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = iter([OSError(28, "No space left on device")])

    def append(_head: object) -> None:
        for failure in noted:
            raise failure

    monkeypatch.setattr(seals, "_append", append)
    made, deadline = 0, time.monotonic() + 30  # another test's transaction in the same cluster may make us wait
    try:
        while made < 2 and time.monotonic() < deadline:
            log_in_as("web")
            teams(1, now)
            log_in_as("worker")
            made += seals.seal_closed()
    finally:
        log_in_as("web")
    assert made >= 2
