"""When the buckets of a feed are due, and which of them a row answers. Pure: no clock, no database, no framework.

Instants are whole microseconds since 1970-01-01T00:00:00Z, as the engine counts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Instants = TypeVar("Instants", int, NDArray[np.int64])


@dataclass(frozen=True, slots=True)
class Schedule:
    """A bucket ends every `every` microseconds, counted from the epoch.

    >>> minutes = Schedule(60_000_000)
    >>> [minutes.answered(s * 1_000_000) // 1_000_000 for s in (60, 90, 91, 119, 31)]
    [60, 60, 120, 120, 60]
    """

    every: int

    def answered(self, ts: Instants) -> Instants:
        """The due instant that a row of `ts` answers: the nearest, of two the earlier. Numbers or arrays of them."""
        return (2 * ts + self.every - 1) // (2 * self.every) * self.every

    def count(self, after: int, upto: int) -> int:
        """How many due instants lie in (after, upto]."""
        return max(0, upto // self.every - after // self.every)

    def nth(self, after: int, n: int) -> int:
        """The n-th due instant after an instant.

        >>> Schedule(10).nth(7, 1), Schedule(10).nth(10, 2)
        (10, 30)
        """
        return (after // self.every + n) * self.every
