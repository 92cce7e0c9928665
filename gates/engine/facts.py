"""Facts: what rows say at a slot, as the rules read it. The fold makes them, evidence stores them, replay reads them again.

A series is named "metric/variant". Instants are integer microseconds. A `Step` holds only what changed since the step before.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from gates.engine.statistics.scatter import Scattered

Sums = tuple[int | float, ...]
"""(n, mean, M2), of a ratio (n, mean, M2, mean_d, M2_d, co-moment)."""


class Unreadable(NamedTuple):
    """Why a series cannot be compared. problem: `no_units`, `no_value`, `no_proportion`, `no_variance`, `no_denominator` of the row at
    `ts`, `value` what it says instead; `gauge`, `no_direction` of the metric, whatever its rows."""

    problem: str
    ts: int | None = None
    value: float | None = None


class MetricLook(msgspec.Struct, frozen=True, omit_defaults=True):
    """A goal's or guard's metric at one look.

    at: the common instant. states: per variant with rows, its state up to `at`. unreadable: per variant, why its state cannot
    be used (evidence of formats 1 and 2: in a sentence). restated: variants whose cumulative n fell by more than a correction since the look before. arrived: latest first arrival of the rows read.
    """

    at: int
    states: dict[str, Sums]
    arrived: int
    unreadable: dict[str, Unreadable | str] = {}
    restated: tuple[str, ...] = ()


class Days(msgspec.Struct, frozen=True):
    """A target KPI at one look: `at` newest row, `closed` the last closed days, oldest first, with their values (None: no row)."""

    at: int
    closed: tuple[tuple[int, float | None], ...]
    arrived: int


class Observations(msgspec.Struct, frozen=True):
    """The newest observations of one watched series, oldest first: (ts, value; None: unreadable)."""

    newest: tuple[tuple[int, float | None], ...]
    arrived: int


class SlotFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What changed at one slot.

    look: the slot is a look. final: it is the one after the end. looks: per metric with a newer common instant.
    fresh: per series whose freshness changed, its watermark and that row's first arrival (None: no row).
    watched: per threshold or density gate and variant ("gate/variant"). dense: per series whose density verdict changed,
    (observed, expected) buckets. split: units per variant of a metric whose split raises the alarm. scatter: how the buckets of a
    compared series ("metric/variant") scatter beside control's, once a day. exposed: per goal the variants that have more units than were
    exposed, (units, exposed) of each.
    """

    slot: int
    look: bool = False
    final: bool = False
    looks: dict[str, MetricLook] = {}
    days: dict[str, Days] = {}
    fresh: dict[str, tuple[int | None, int | None]] = {}
    watched: dict[str, Observations] = {}
    dense: dict[str, tuple[int, int]] = {}
    split: dict[str, dict[str, int]] = {}
    scatter: dict[str, Scattered] = {}
    exposed: dict[str, dict[str, tuple[int, int]]] = {}


class SlotSnapshot(msgspec.Struct, frozen=True):
    """All slot facts as they stand at one slot, whether they changed or not: what rationale and gate states quote."""

    slot: int
    fresh: dict[str, tuple[int | None, int | None]]
    watched: dict[str, Observations]
    dense: dict[str, tuple[int, int]]
    split: dict[str, dict[str, int]]
