"""Which watermark of a series was known at which slot: what freshness is judged by. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from gates.engine.compiled import CompiledPlan
from gates.engine.reader import MANY, NEVER, SeriesReader

Known = tuple[Sequence[int], Sequence[int | None], Sequence[int | None]]
"""(slots, watermarks, arrivals), in order: what became known at which slot; None where history gives way to facts."""


class Watermarks:
    """Watermarks of one series as they were known over the slots in (after, to].

    late: the slots at which one became known that was old already or came after a gap, each with the
    watermark before it.
    """

    def __init__(self, compiled: CompiledPlan, reader: SeriesReader, after: int, to: int) -> None:
        self.compiled, self.reader, self.after, self.to = compiled, reader, after, to
        self.late: list[tuple[int, int | None]] = []
        self.known: Known = self._in_turn() or self._long()

    @property
    def newest(self) -> int | None:
        watermarks = self.known[1]
        return watermarks[-1] if watermarks else self.reader.progress.watermark

    def at(self, slot: int) -> tuple[int | None, int | None]:
        """(watermark, when its row first arrived) as known at a slot."""
        slots, watermarks, receipts = self.known
        i = bisect_right(slots, slot)
        if not i:
            return self.reader.progress.watermark, self.reader.progress.received_at
        return watermarks[i - 1], receipts[i - 1]

    def onset(self, watermark: int | None) -> list[int]:
        """The first slot at which a watermark is too old."""
        clock = self.compiled.clock
        ran = 0 if watermark is None else max(clock.running(watermark), 0)
        late = clock.wall(ran + self.reader.spec.tolerance(watermark) + 1)
        return [] if late is None else [self.compiled.slot_at(late)]

    def _in_turn(self) -> tuple[list[int], Sequence[int], Sequence[int]] | None:
        """Of a few rows, each known after the one before it; else None."""
        watermark, watermarks, receipts = self.reader.progress.watermark, self.reader.seen_ts, self.reader.seen_receipts
        if watermark is None or self.after < self.compiled.created or len(watermarks) >= MANY:
            return None
        if watermarks and watermarks[0] <= watermark:
            seen = bisect_right(watermarks, watermark)
            watermarks, receipts = watermarks[seen:], receipts[seen:]
        width, tolerated, newest = self.compiled.slot_us, self.reader.spec.tolerated, self.compiled.created
        slots: list[int] = []
        late: list[tuple[int, int | None]] = []
        for i, ts in enumerate(watermarks):
            slot = -(-(receipts[i] if receipts[i] > ts else ts) // width) * width
            if slot < newest:
                return None
            if slot > watermark + tolerated or slot - ts > tolerated:
                late.append((slot, watermark))
            slots.append(slot)
            watermark, newest = ts, slot
        self.late = late
        return slots, watermarks, receipts

    def _row_by_row(
        self,
        slots: list[int],
        watermarks: list[int | None],
        receipts: list[int | None],
        watermark: int | None,
    ) -> tuple[list[int], list[int | None], list[int | None]]:
        """Row by row, in the order in which they were known."""
        created, tolerated = self.compiled.created, self.reader.spec.tolerated
        arrivals = sorted(
            (max(self.compiled.slot_at(max(ts, received)), created), ts, received)
            for ts, received in zip(self.reader.seen_ts, self.reader.seen_receipts, strict=True)
        )
        for slot, ts, received in arrivals:
            if watermark is None or ts > watermark:
                if watermark is None or slot > watermark + tolerated or slot - ts > tolerated:
                    self.late.append((slot, watermark))
                watermark = ts
                slots.append(slot)
                watermarks.append(ts)
                receipts.append(received)
        return slots, watermarks, receipts

    def _long(self) -> tuple[Sequence[int], Sequence[int | None], Sequence[int | None]]:
        """The same for many rows, and where history was brought in: before the experiment was created each is known at once."""
        compiled, watermark = self.compiled, self.reader.progress.watermark
        slots: list[int] = []
        watermarks: list[int | None] = []
        receipts: list[int | None] = []
        if self.after < compiled.created:
            for ts, received in zip(self.reader.seen_ts, self.reader.seen_receipts, strict=True):
                if (slot := compiled.slot_at(ts)) >= compiled.created:
                    break
                slots.append(slot)
                watermarks.append(ts)
                receipts.append(received)
            if compiled.created <= self.to:
                slots.append(compiled.created)
                watermarks.append(None)
                receipts.append(None)
            self.late += [
                (k, before)
                for k, now, before in zip(slots, watermarks, [watermark, *watermarks], strict=False)
                if before is None
                or now is None
                or k > before + self.reader.spec.tolerated
                or k - now > self.reader.spec.tolerated
            ]
            watermark = None
        if len(self.reader.seen_ts) >= MANY and not slots and watermark is None:
            in_order = self._in_order()
            if in_order is not None:
                return in_order
        return self._row_by_row(slots, watermarks, receipts, watermark)

    def _in_order(self) -> tuple[list[int], Sequence[int], Sequence[int]] | None:
        """By arrays, when there was no row before and every row became known after the one before it; else None."""
        compiled, tolerated, watermarks = self.compiled, self.reader.spec.tolerated, self.reader.seen_array
        known_at = np.maximum(watermarks, self.reader.seen_received)
        known_at = np.maximum(-(-known_at // compiled.slot_us) * compiled.slot_us, compiled.created)
        if (known_at[1:] < known_at[:-1]).any():
            return None
        late = (known_at - watermarks > tolerated) | (
            known_at > np.concatenate(([NEVER - 2 * tolerated], watermarks[:-1])) + tolerated
        )
        slots = known_at.tolist()
        self.late = [(slots[k], self.reader.seen_ts[k - 1] if k else None) for k in np.flatnonzero(late).tolist()]
        return slots, self.reader.seen_ts, self.reader.seen_receipts
