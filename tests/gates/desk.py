"""A small portal: rows arrive in any order, a tick folds on from the kept state, going back where a row demands it."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from gates.engine.checkpoint import Checkpoint
from gates.engine.fold import FoldResult, fold
from gates.engine.plan import Plan
from gates.engine.policy import Policy
from gates.engine.quiet import unchanged_until
from gates.engine.series import Rows, Series, SeriesKey
from tests.gates.histories import columns_of

NAMES = tuple(Series.__slots__)


class Arrival(NamedTuple):
    """A row reaches the portal at `at`: the first time, or again with other values; row None takes it away."""

    at: int
    key: SeriesKey
    ts: int
    row: dict[str, Any] | None


def arrivals(rows: Rows, draw: random.Random, *, corrected: float = 0.03) -> list[Arrival]:
    """Each row at its first arrival; some are wrong at first and are corrected later, some are sent twice."""
    found = []
    for key, series in rows.items():
        columns = {name: column for name, column in columns_of(series).items() if column}
        for i, ts in enumerate(series.ts):
            row = {name: column[i] for name, column in columns.items()}
            at = row["first_received_at"]
            found.append(Arrival(at, key, ts, row))
            if draw.random() < corrected:
                wrong = {**row, "value": draw.choice([None, 0.5]), "n": draw.choice([row["n"], 0, 500])}
                found[-1] = Arrival(at, key, ts, wrong)
                later = at + draw.randrange(1, 12 * 60) * 60_000_000
                found.append(Arrival(later, key, ts, row))
                if draw.random() < 0.5:
                    found.append(Arrival(later + 60_000_000, key, ts, None))
                    found.append(Arrival(later + 7_200_000_000, key, ts, row))
    return sorted(found, key=lambda a: (a.at, a.key, a.ts))


class Desk:
    def __init__(self, policy: Policy, plan: Plan) -> None:
        self.policy, self.plan = policy, plan
        self.stored: dict[SeriesKey, dict[int, dict[str, Any]]] = {}
        self.state: bytes | None = None
        self.rebuilds = 0
        self.rewinds = 0

    def receive(self, arrival: Arrival) -> None:
        table = self.stored.setdefault(arrival.key, {})
        known = table.get(arrival.ts)
        if arrival.row is None:
            table.pop(arrival.ts, None)
        else:
            table[arrival.ts] = arrival.row
        if self.state is None or arrival.ts <= self.plan.started_at:
            return
        state = Checkpoint.from_bytes(self.state)
        back = state.restore_before(
            arrival.key[0],
            arrival.ts,
            late=known is None and arrival.row is not None and arrival.row["first_received_at"] > state.slot,
        )
        if back is not state:
            self.rewinds += 1
            self.rebuilds += back is None
            self.state = None if back is None else back.to_bytes()

    def tick(self, to: int) -> FoldResult:
        state = None if self.state is None else Checkpoint.from_bytes(self.state)
        folded = fold(self.policy, self.plan, self.rows(state), to=to, checkpoint=state)
        self.state = folded.checkpoint.to_bytes()
        return folded

    def passes_over(self, to: int) -> bool:
        """Whether the rows that are there change nothing up to a slot, so that there is nothing to fold."""
        if self.state is None:
            return False
        state = Checkpoint.from_bytes(self.state)
        return unchanged_until(self.policy, self.plan, self.rows(state), state, at_least=to) >= to

    def rows(self, state: Checkpoint | None) -> dict[SeriesKey, Series]:
        """What the database would be asked for: everything, or only the rows the state needs."""
        needs = {} if state is None else state.needs_rows_after()
        rows = {}
        for key, table in self.stored.items():
            if state is not None and key not in needs:
                continue
            chosen = [table[ts] for ts in sorted(table) if ts > needs.get(key, 0)]
            columns: dict[str, Any] = {
                name: [row.get(name) for row in chosen] if chosen and name in chosen[0] else [] for name in NAMES
            }
            rows[key] = Series(**columns)
        return rows


def body_of(state: Checkpoint) -> Any:
    """Everything later slots depend on, for comparison; what is kept to go back to depends on when one ticked."""
    return state.body, state.slot, state.fingerprint, state.needs
