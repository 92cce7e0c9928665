"""A compared metric over many looks, as arrays. Pure values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gates.engine.facts import MetricLook, Sums

Ints = np.ndarray[Any, np.dtype[np.int64]]


class MetricTrack:
    """A compared metric over the looks of a range at which its common instant moved; every arm readable at each.

    looks, at, arrived: shape (k,). columns: per variant its state's columns (n, mean, M2, ...), each of shape (k,).
    """

    def __init__(self, looks: Sequence[int], at: Ints, arrived: Ints, columns: dict[str, tuple[Any, ...]]) -> None:
        self.looks = looks
        self.at: list[int] = at.tolist()
        self.instants = at
        self.arrived: list[int] = arrived.tolist()
        self.columns = columns
        self.arrays = {v: tuple(column.astype(np.float64) for column in c) for v, c in columns.items()}

    def state(self, variant: str, k: int) -> Sums:
        return tuple([column.item(k) for column in self.columns[variant]])

    def look(self, k: int) -> MetricLook:
        return MetricLook(self.at[k], {variant: self.state(variant, k) for variant in self.columns}, self.arrived[k])
