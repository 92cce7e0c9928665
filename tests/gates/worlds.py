"""Random small histories with everything that goes wrong in real ones, drawn from one seed."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from experiments.schedule import Part, offsets
from gates.engine.fold import FoldResult, fold
from gates.engine.plan import Answer, Kind, Kpi, Plan, Target, Temporality, Variant
from gates.engine.policy import Policy
from gates.engine.policy_checks import parse
from gates.engine.series import Series, SeriesKey
from tests.gates.histories import CAP, GOAL, GUARD, HOUR, START, columns_of, without

MINUTE = HOUR // 60


class World(NamedTuple):
    policy: Policy
    plan: Plan
    rows: dict[SeriesKey, Series]
    end: int


def world(seed: int) -> World:
    draw = random.Random(seed)
    hours = draw.choice([10, 20, 40, 60])
    start = START + draw.choice([0, 17 * MINUTE, 30 * MINUTE])
    end = start + hours * HOUR + draw.randrange(120) * MINUTE
    treatments = draw.choice([0, 1, 1, 1, 2])
    kpis = _kpis(draw, treatments)
    variants = [Variant("control", draw.choice([1.0, 2.0]), control=True)] if treatments else [Variant("all")]
    variants += [Variant(f"t{i}", 1.0, position=i) for i in range(1, treatments + 1)]
    plan = Plan(
        started_at=start,
        created_at=draw.choice([start, start, start + hours * HOUR // 2 + 7 * MINUTE]),
        variants=tuple(variants),
        kpis=tuple(kpis),
        ended_at=draw.choice([None, None, end - draw.randrange(1, 6 * 60) * MINUTE]),
        pauses=_pauses(draw, start, end),
        answers=_answers(draw, start, end, [v.key for v in variants if not v.control], alone=treatments < 2),
    )
    lately = random.Random(seed + 3)
    policy, rows = _policy(draw, lately), _rows(draw, plan, hours, _scatter(lately, plan))
    return _restamped(random.Random(seed + 1), World(policy, plan, rows, end))


@lru_cache(maxsize=120)
def folded(seed: int) -> tuple[World, FoldResult]:
    """A world and what it comes to; those that several tests read are folded once."""
    w = world(seed)
    return w, fold(w.policy, w.plan, w.rows, to=w.end)


def _restamped(draw: random.Random, w: World) -> World:
    """Half of the worlds: rows are stamped around the instants they answer, often each series in its own way, or come more often
    than was said; cohorts close, and counts are corrected by a little."""
    if draw.random() < 0.5:
        return w
    plan = w.plan
    if draw.random() < 0.2:
        kpis = [msgspec.structs.replace(kpi, expected_every_s=3 * kpi.expected_every_s) for kpi in plan.kpis]
        plan = msgspec.structs.replace(plan, kpis=tuple(kpis))
    rows = {}
    for (metric, variant), series in w.rows.items():
        kpi = plan.kpi(metric)
        assert kpi is not None
        every, how = (
            kpi.expected_every_s * 1_000_000 // 3,
            draw.choice(["exact", "behind", "ahead", "around", "changing"]),
        )
        shift = draw.choice([40_000_000, MINUTE, every])
        moves = [
            {"exact": 0, "behind": shift, "ahead": -shift, "around": draw.randrange(-every, every), "changing": shift if i % 20 > 12 else -shift}[how]
            for i in range(len(series.ts))
        ]  # fmt: skip
        stamped = {ts + move: i for i, (ts, move) in enumerate(zip(series.ts, moves, strict=True))}
        ts = sorted(stamped)
        where = [stamped[at] for at in ts]
        columns = {
            name: [column[i] for i in where] if column else column for name, column in columns_of(series).items()
        }
        received = [series.first_received_at[i] + max(0, moves[i]) for i in where]
        columns |= {"ts": ts, "first_received_at": received}
        if kpi.temporality == "cumulative":
            columns["n"] = _settled(draw, columns["n"])
        rows[metric, variant] = Series(**columns)
    return World(w.policy, plan, rows, w.end)


CRONS = (
    "0 * * * *",
    "*/20 * * * *",
    "30 */2 * * *",
    "10 0-5,8-23 * * *",
    "0 6,18 * * *",
    "15 2 * * *",
    "0 1-4 * * 6,0",
)
ZONES = ("UTC", "Australia/Lord_Howe", "Asia/Kathmandu", "America/New_York")
"""Lord Howe's clocks go forward by half an hour on the second day."""
CHANGES_S = (3_600, -3_600, 1_800, -1_800, 86_400, -86_400)
"""Clocks go forward and back, by an hour, by half of one, and by a day where a date line moves."""


def calendared(seed: int) -> World:
    """The same world with feeds that follow calendars, some of them one after the other, with outages, and with guards in which
    nothing happens."""
    w, draw = world(seed), random.Random(seed + 2)
    kpis = tuple(_calendared(draw, w.plan, kpi) for kpi in w.plan.kpis)
    rows = dict(w.rows)
    for kpi in kpis:
        if kpi.sparse_beside:
            for variant in w.plan.variants:
                if (kpi.metric, variant.key) in rows:
                    kept = [draw.random() < 0.6 for _ in rows[kpi.metric, variant.key].ts]
                    rows[kpi.metric, variant.key] = without(rows[kpi.metric, variant.key], kept.__getitem__)
    return World(w.policy, msgspec.structs.replace(w.plan, kpis=kpis), rows, w.end)


def _calendared(draw: random.Random, plan: Plan, kpi: Kpi) -> Kpi:
    start = plan.started_at
    said: dict[str, Any] = {}
    if draw.random() < 0.7:
        begins = sorted(start + draw.randrange(-6 * 60, 50 * 60) * MINUTE for _ in range(draw.choice([0, 0, 1, 2])))
        said["expected"] = tuple(_part(draw, since, kpi.expected_every_s) for since in [None, *begins])
        if all(part.every_s for part in said["expected"][:1]) and not begins:
            del said["expected"]
    if draw.random() < 0.4:
        outages = []
        for _ in range(draw.choice([1, 1, 3])):
            begin = start + draw.randrange(-60, 40 * 60) * MINUTE
            outages.append((begin, begin + draw.randrange(5, 10 * 60) * MINUTE))
        said["outages"] = tuple(sorted(outages))
    goal = plan.kpi("value")
    if kpi.role == "guardrail" and goal is not None and goal.temporality == "delta" and draw.random() < 0.6:
        said["sparse_beside"] = "value"
    return msgspec.structs.replace(kpi, **said)


def _part(draw: random.Random, since: int | None, every_s: int) -> Part:
    if draw.random() < 0.3:
        return Part(since, every_s=every_s)
    cron = draw.choice(CRONS)
    if draw.random() < 0.5:
        return Part(since, cron=cron, offsets=offsets(draw.choice(ZONES), 2023, 2026))
    ahead_s, clocks = draw.choice([-36_000, 0, 20_700]), [(0, 0)]
    for _ in range(draw.choice([1, 2])):
        clocks.append((clocks[-1][0] + draw.randrange(2, 40 * 60) * MINUTE, draw.choice(CHANGES_S)))
    changed = [(START + at, ahead_s + sum(by for _, by in clocks[: n + 1])) for n, (at, _) in enumerate(clocks)]
    return Part(since, cron=cron, offsets=tuple(changed))


def _settled(draw: random.Random, counts: list[int | None]) -> list[int | None]:
    closed = draw.randrange(len(counts) + 1) if counts and draw.random() < 0.4 else len(counts)
    found = [n if i < closed else counts[closed - 1] for i, n in enumerate(counts)]
    return [n if n is None or draw.random() > 0.05 else n - n // draw.choice([500, 1000, 2000]) for n in found]


def _policy(draw: random.Random, lately: random.Random) -> Policy:
    gates: list[dict[str, Any]] = [
        {**GOAL, "effect": draw.choice(["relative", "difference"]), "delete_below": draw.choice(["plan", 0.3])},
        GUARD,
        {"name": "density", "kind": "density", "at_least": draw.choice([0.5, 0.8, 0.95])},
        {**CAP, "times": draw.choice([1, 2, 3]), "scope": draw.choice(["variant", "experiment"])},
        {"name": "coverage", "kind": "density", "metric": "coverage", "at_least": 0.5},
        {"name": "{metric}_target", "kind": "target", "days": draw.choice([1, 2])},
    ]
    min_days = draw.choice([0, 0, 1])
    return parse(
        {
            "gates": gates,
            "slot_s": 600,
            "look_s": draw.choice([600, 1800, 3600]),
            "closed_after_s": draw.choice([0, 600, 1500, 3600]),
            "persist": draw.choice([1, 2, 4]),
            "min_days": min_days,
            "max_days": min_days + draw.choice([1, 1, 3]),
            "min_units": draw.choice([10, 100, 1000]),
            "snooze_days": 1,
            "doubt_above": lately.choice([0.05, 0.5]),
            "srm_tolerance": lately.choice([0, 0.001, 0.02]),
            "planned_units": 4000,
            "require": draw.choice(["all", "any"]),
        }
    )


def _kpis(draw: random.Random, treatments: int) -> list[Kpi]:
    every = draw.choice([1200, 3600, 3600, 7200])
    target = draw.choice([600, 3600, 7200])
    kind: Kind = draw.choice(["mean", "mean", "proportion", "ratio"])
    common: dict[str, Any] = {"expected_every_s": every, "freshness_target_s": target}
    if not treatments:
        return [
            Kpi(
                "value",
                kind=draw.choice(["gauge", "mean"]),
                target=Target(at_most=draw.choice([9.0, 10.5, 12.0])),
                **common,
            ),
            Kpi("error_rate", "shown", kind="gauge", **common),
        ]
    temporality: Temporality = draw.choice(["delta", "delta", "cumulative"])
    kpis = [Kpi("value", "goal", kind, draw.choice(["increase", "decrease"]), temporality, **common)]
    if draw.random() < 0.3:
        kpis.append(Kpi("orders", "goal", "proportion", "increase", **common))
    if draw.random() < 0.7:
        kpis.append(
            Kpi("speed", "guardrail", "mean", "decrease", max_harm=0.05, **{**common, "expected_every_s": 3600})
        )
    if draw.random() < 0.5:
        kpis.append(Kpi("error_rate", "shown", "gauge", "decrease", **common))
    if draw.random() < 0.2:
        kpis.append(Kpi("coverage", "shown", "proportion", **common))
    if draw.random() < 0.3:
        kpis.append(Kpi("seen", "exposure", "mean", **common))
    return kpis


def _pauses(draw: random.Random, start: int, end: int) -> tuple[tuple[int, int | None], ...]:
    if draw.random() < 0.7:
        return ()
    begin = start + draw.randrange(1, 60 * 8) * MINUTE
    until = begin + draw.randrange(5, 60 * 6) * MINUTE
    return ((begin, until if until < end and draw.random() < 0.8 else None),)


def _answers(draw: random.Random, start: int, end: int, keys: list[str], *, alone: bool) -> tuple[Answer, ...]:
    answers = []
    for _ in range(draw.choice([0, 0, 0, 1, 2])):
        at = draw.randrange(start, end)
        of: Any = draw.choice(
            [
                ("delete", "harmful"),
                ("scale", "wins"),
                ("review", "undecided"),
                ("review", "invalid"),
                ("delete", "unsafe"),
            ]
        )
        action: Any = draw.choice(["override", "override", "accept"])
        if action == "accept" and (of[0] == "scale" or (of[0] == "delete" and alone)):
            action = "override"
        answers.append(Answer(at, action, of, draw.choice(keys)))
    return tuple(sorted(answers, key=lambda a: a.at))


def _scatter(draw: random.Random, plan: Plan) -> float:
    """Of means of a hundred units of variance 4; where it is 1 their rows lie."""
    return draw.choice([0.2, 1.0]) if plan.treatments else 1.0


def _rows(draw: random.Random, plan: Plan, hours: int, scatter: float) -> dict[SeriesKey, Series]:
    rows = {}
    effect = draw.choice([-0.2, 0.0, 0.05, 0.2])
    for kpi in plan.kpis:
        for variant in plan.variants:
            if draw.random() < 0.01:
                continue
            mean = 10.0 * (1 + (0.0 if variant.control else effect))
            messy = draw.random() < 0.15
            rows[kpi.metric, variant.key] = _series(draw, plan, kpi, hours, mean, scatter, messy, variant.weight)
    return rows


def _series(
    draw: random.Random, plan: Plan, kpi: Kpi, hours: int, mean: float, scatter: float, messy: bool, weight: float
) -> Series:
    columns: list[list[Any]] = [[], [], [], [], [], [], [], []]
    trouble = 0.06 if messy else 0.0
    total, sums = 0, (0.0, 0.0)
    stop = draw.randrange(1, 10**6) if draw.random() < 0.9 else draw.randrange(1, hours)
    for k in range(hours * 3600 // kpi.expected_every_s):
        ts = plan.started_at // HOUR * HOUR + (k + 1) * kpi.expected_every_s * 1_000_000
        late = draw.choice([0, 3, 8]) if draw.random() > trouble else draw.randrange(10, 600)
        if draw.random() < trouble or k > stop:
            continue
        n: int | None = int(weight * draw.randrange(96, 105))
        value: float | None = draw.gauss(mean, scatter)
        variance: float | None = 4.0
        if kpi.kind == "proportion":
            value, variance = min(0.99, max(0.0, mean / 20 + draw.gauss(0, 0.01))), None
        if kpi.kind == "gauge":
            n, variance, value = None, None, draw.choice([0.01] * 12 + [0.09]) if kpi.metric == "error_rate" else value
        if kpi.temporality == "cumulative" and n is not None and value is not None:
            sums = (sums[0] + n * value, 0.0)
            total += n
            n, value = total, sums[0] / total
            if draw.random() < trouble / 4:
                n, total = n // 2, n // 2
                sums = (sums[0] / 2, 0.0)
        if draw.random() < trouble:
            n = draw.choice([0, n, n])
        if draw.random() < trouble / 3:
            variance, value = None, draw.choice([value, None])
        if draw.random() < trouble and columns[0] and kpi.temporality == "cumulative":
            value, n, variance = columns[1][-1], columns[2][-1], columns[3][-1]
        ratio = (1.5, 0.5, 0.2) if kpi.kind == "ratio" else (None, None, None)
        for column, cell in zip(columns, (ts, value, n, variance, ts + late * MINUTE, *ratio), strict=True):
            column.append(cell)
    return Series(*columns)
