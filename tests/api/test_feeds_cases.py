"""The handed cases of feeds with a calendar, through the API: as history that is brought in, and posted live, tick after tick."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest

from experiments.models import Experiment
from gates.models import Cursor
from gates.tick import evaluate, skip_unchanged
from telemetry.ingest import Target, ingest
from telemetry.row import Row
from tests.api.conftest import Caller
from tests.conftest import as_role

pytestmark = pytest.mark.installations

FILE = Path(__file__).parents[2].parent / "shared/cases/feeds.json"
CASES: dict[str, Any] = {case["name"]: case for case in json.loads(FILE.read_text()) if "name" in case} if FILE.exists() else {}  # fmt: skip
BERLIN, DAY, HOUR, MINUTE = ZoneInfo("Europe/Berlin"), timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
SHARES = {("k", "control"): 0.30, ("k", "treatment"): 0.33, ("g", "control"): 0.05, ("g", "treatment"): 0.05}
TEN_DAYS_AGO = datetime(2026, 10, 5, tzinfo=UTC)
"""What the file calls ten days ago."""


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


class Told(NamedTuple):
    """One case: stamps by metric, until when it is told, n of a row, what else is said of its metrics and KPIs, an outage that is
    entered at an instant, and how it ends."""

    name: str
    stamps: dict[str, list[datetime]]
    end: datetime
    ends: tuple[str, str, str]
    n: int = 20_000
    metric: dict[str, Any] = {}
    kpi: dict[str, Any] = {}
    outage: tuple[datetime, datetime, datetime] | None = None
    may_be_suspended: bool = False


def midnights(first: str, days: int) -> list[datetime]:
    day = datetime.fromisoformat(first).date()
    return [datetime.combine(day + n * DAY, time(), BERLIN).astimezone(UTC) for n in range(days)]


def weekday_ends(*, without: str = "") -> list[datetime]:
    days = [TEN_DAYS_AGO + n * DAY for n in range(28)]
    return [day + DAY for day in days if day.weekday() < 5 and f"{day:%Y-%m-%d}" != without]


def hours(days: float) -> list[datetime]:
    return [TEN_DAYS_AGO + n * HOUR for n in range(1, int(24 * days) + 1)]


def awake(stamps: list[datetime]) -> list[datetime]:
    return [ts for ts in stamps if not 1 <= ts.hour <= 6]


LOCAL = {"expected": {"every": "daily", "at": "24:00", "timezone": "Europe/Berlin"}}
WEEKDAYS = {"expected": {"every": "weekdays", "at": "24:00", "timezone": "UTC"}}
WINS, STALE = ("scale", "wins", "proposed"), ("hold", "stale", "open")
NIGHTS, DEAD = "quiet nights of a guardrail", "quiet nights and a dead source"
GONE = (TEN_DAYS_AGO + 8 * DAY, TEN_DAYS_AGO + 8 * DAY + 30 * HOUR)
TOLD: dict[str, Callable[[], Told]] = {
    "midnight in Berlin": lambda: Told(
        "midnight in Berlin over the end of summer time", {"k": midnights("2026-10-17", 25)}, at("2026-11-10T12:00Z"), WINS
    ),
    "midnight in Berlin by its schedule": lambda: Told(
        "midnight in Berlin over the end of summer time", {"k": midnights("2026-10-17", 25)}, at("2026-11-10T12:00Z"), WINS, metric=LOCAL
    ),
    "fifteen minutes late at most": lambda: Told(
        "the same with the start at 09:00 local and freshness_target_s 900", {"k": midnights("2026-10-17", 25)}, at("2026-11-09T23:20Z"), WINS, metric=LOCAL
    ),
    "a job at six": lambda: Told(
        "a job at six, give or take twenty minutes",
        {"k": [at("2026-11-02T06:00Z") + k * DAY + (17 * k % 41 - 20) * MINUTE for k in range(1, 25)]}, at("2026-11-26T12:00Z"), WINS,
    ),
    "weekdays only": lambda: Told("weekdays only", {"k": weekday_ends()}, at("2026-11-02T12:00Z"), WINS, metric=WEEKDAYS),
    "Monday missing": lambda: Told(
        "weekdays only, Monday missing", {"k": weekday_ends(without="2026-10-19")}, at("2026-10-23T12:00Z"), ("scale", "wins", "suspended"),
        metric=WEEKDAYS, may_be_suspended=True,
    ),
    "quiet nights, sparse": lambda: Told(NIGHTS, {"k": hours(10), "g": awake(hours(10))}, TEN_DAYS_AGO + 10 * DAY, WINS, 1_000, kpi={"sparse": True}),
    "quiet nights, a schedule": lambda: Told(
        NIGHTS, {"k": hours(10), "g": awake(hours(10))}, TEN_DAYS_AGO + 10 * DAY, WINS, 1_000, metric={"expected": {"cron": "0 0,7-23 * * *"}}
    ),
    "quiet nights unexplained": lambda: Told(
        NIGHTS, {"k": hours(10), "g": awake(hours(10))}, TEN_DAYS_AGO + 9.5 * DAY, ("hold", "collecting", "open"), 1_000, may_be_suspended=True
    ),
    "a dead source": lambda: Told(DEAD, {"k": hours(6), "g": awake(hours(6))}, TEN_DAYS_AGO + 10 * DAY, STALE, 1_000, kpi={"sparse": True}),
    "a planned outage": lambda: Told(
        "a planned outage", {"k": [ts for ts in hours(11) if not GONE[0] <= ts < GONE[1]]}, TEN_DAYS_AGO + 11 * DAY, WINS, 1_000,
        outage=(*GONE, TEN_DAYS_AGO),
    ),
    "an outage entered two days later": lambda: Told(
        "a planned outage", {"k": [ts for ts in hours(11) if not GONE[0] <= ts < GONE[1]]}, TEN_DAYS_AGO + 11 * DAY, WINS, 1_000,
        outage=(*GONE, TEN_DAYS_AGO + 10.5 * DAY), may_be_suspended=True,
    ),
}  # fmt: skip


def plan_of(case: Told) -> dict[str, Any]:
    """The file's plan, with what the case says besides of its last metric and KPI."""
    written = CASES[case.name]["plan"]
    if isinstance(written, str):  # "as above"
        written = CASES["weekdays only" if case.name.startswith("weekdays") else NIGHTS]["plan"]
    kpis = json.loads(json.dumps(written["target_kpis"]))
    for kpi in kpis:
        kpi["metric"]["key"] = kpi["metric"]["key"].lower()  # the file writes K and G
    kpis[-1] |= case.kpi
    kpis[-1]["metric"] |= case.metric
    if "expected" in case.metric:
        kpis[-1]["metric"].pop("expected_every_s")
    started_at = TEN_DAYS_AGO.isoformat() if written["started_at"] == "ten days ago" else written["started_at"]
    return {"name": case.name, "hypothesis": "h", "started_at": started_at, "target_kpis": kpis}


def rows_of(case: Told) -> Iterator[tuple[datetime, list[dict[str, Any]]]]:
    """What is sent when a bucket has ended, in that order."""
    for ts in sorted({ts for stamps in case.stamps.values() for ts in stamps if ts < case.end}):
        yield (
            ts,
            [
                {"metric": metric, "variant": arm, "ts": ts.isoformat(), "value": share, "n": case.n}
                for (metric, arm), share in SHARES.items()
                if ts in case.stamps.get(metric, ())
            ],
        )


def enter(ops: Caller, case: Told) -> None:
    assert case.outage is not None
    window = {"from": case.outage[0].isoformat(), "to": case.outage[1].isoformat(), "reason": "The warehouse moves"}
    assert ops.post("/api/outages", {**window, "metrics": ["k"]}).status_code == 201


def judge(pk: int, now: datetime) -> tuple[str, str, str]:
    with as_role("worker"):
        skip_unchanged(now=now)
        assert evaluate([pk], now=now).failed == []
        shown = Cursor.objects.get(pk=pk).shown
    assert shown is not None
    told = shown["recommendation"]
    return told["action"], told["code"], told["state"]


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Told:
    if not CASES:
        pytest.skip("the handed cases are not here")
    told = TOLD[request.param]()
    if told.end > datetime.now(UTC) - HOUR or told.end < datetime.now(UTC) - 380 * DAY:
        pytest.skip("the case lies ahead, or longer ago than rows are kept")
    return told


EACH = pytest.mark.parametrize("case", TOLD, indirect=True)


@EACH
def test_a_case_that_is_brought_in_as_history_ends_as_it_should(ops: Caller, case: Told) -> None:
    made = ops.experiment(**plan_of(case))
    sent = [row for _, rows in rows_of(case) for row in rows]
    assert ops.post(f"/api/experiments/{made['key']}/kpis", {"rows": sent}).json()["accepted"] == len(sent)
    if case.outage is not None:
        enter(ops, case)

    assert judge(made["id"], case.end) == case.ends


@EACH
def test_a_case_that_is_posted_live_ends_as_it_should_and_never_waits_without_cause(ops: Caller, case: Told) -> None:
    made = ops.experiment(**plan_of(case))
    began = at(made["started_at"])
    with as_role("owner"):
        Experiment.objects.filter(pk=made["id"]).update(created_at=began)
        Cursor.objects.filter(pk=made["id"]).update(due_at=began)
    target = Target(made["id"], ops.team.pk, frozenset({"control", "treatment"}))
    seen, entered = set(), case.outage is None

    def tick(now: datetime) -> None:
        nonlocal entered
        if case.outage is not None and not entered and now >= case.outage[2]:
            enter(ops, case)
            entered = True
        seen.add(judge(made["id"], now))

    last = began
    for ts, rows in rows_of(case):
        for quiet in range(1, int((ts - last) / (6 * HOUR))):
            tick(last + quiet * 6 * HOUR)
        with as_role("worker"):
            found = [Row(**{**row, "ts": ts}) for row in rows]
            ingest(target, list(enumerate(found)), now=ts + 4 * MINUTE)
        if ts - last >= 6 * HOUR or ts.hour % 6 == 0:
            tick(ts + 5 * MINUTE)
        last = ts
    while last < case.end:
        last = min(last + 6 * HOUR, case.end)
        tick(last)

    assert judge(made["id"], case.end) == case.ends
    if not case.may_be_suspended:
        assert {state for _, _, state in seen} <= {"open", "proposed"}
    if case.ends == WINS and not case.may_be_suspended:
        assert not any(code == "stale" for _, code, _ in seen)
