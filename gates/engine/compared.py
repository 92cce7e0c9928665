"""The metrics that goals and guards compare, at looks: up to which instant they are read, and what they sum up to there. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gates.engine.checkpoint import Progress
from gates.engine.compiled import CompiledPlan
from gates.engine.doubt import ScatterReader
from gates.engine.facts import MetricLook, Unreadable
from gates.engine.reader import NEVER, SeriesReader, Taken
from gates.engine.tracks import MetricTrack

NO_END = 2**62
"""An instant after every row."""


class ComparedMetrics:
    """Reads the compared metrics of a range of slots, and leaves how far in `progress`. by_metric: readers by metric and arm."""

    def __init__(
        self, compiled: CompiledPlan, progress: Progress, by_metric: Mapping[str, Mapping[str, SeriesReader]]
    ) -> None:
        self.compiled, self.progress, self.by_metric = compiled, progress, by_metric
        self.scatter = ScatterReader(compiled, progress, by_metric)
        self._commons: dict[tuple[str, int], int | None] = {}

    def common(self, metric: str, horizon: int) -> int | None:
        """The least, over arms that have rows, of the places of their newest news at or before the horizon."""
        asked = metric, horizon
        if asked in self._commons:
            return self._commons[asked]
        common = None
        for reader in self.by_metric[metric].values():
            newest = reader.reach(horizon)
            if newest is not None and (common is None or newest < common):
                common = newest
        self._commons[asked] = common
        return common

    def at_looks(self, looks: Sequence[int]) -> list[tuple[int, str, MetricLook]]:
        """(look, metric, facts) wherever the common instant moved, one row after the other."""
        compiled, found = self.compiled, []
        for m, metric in enumerate(compiled.compared):
            newest_seen, readers = self.progress.instants[m], self.by_metric[metric]
            for look in looks:
                horizon = compiled.horizon(look)
                common = self.common(metric, horizon)
                if common is None or (newest_seen is not None and common <= newest_seen):
                    continue
                newest_seen = common
                taken: dict[str, list[Taken]] = {}
                metric_look = self._metric_look(readers, common, horizon, taken)
                found.append((look, metric, metric_look))
                self.scatter.at_look(m, taken, look, metric_look.at)
            self.progress.instants[m] = newest_seen
        return found

    def tracks(self, looks: Sequence[int]) -> dict[str, MetricTrack]:
        """The compared metrics as runs; empty when any row asks for a closer look: unreadable, restated, an arm missing."""
        compiled = self.compiled
        horizons = np.array([compiled.horizon(look) for look in looks], dtype=np.int64)
        found: dict[str, tuple[MetricTrack, Any, list[tuple[SeriesReader, Any, int]]]] = {}
        for m, metric in enumerate(compiled.compared):
            arms = list(self.by_metric[metric].items())
            sums = [reader.all_sums() for _, reader in arms]
            newest = [reader.reach_of(horizons) for _, reader in arms]
            if any(s is None for s in sums) or any(((at <= NEVER) != (newest[0] <= NEVER)).any() for at in newest):
                return {}
            commons = np.minimum.reduce(newest)
            seen = self.progress.instants[m]
            before = np.concatenate(([NEVER if seen is None else seen], commons[:-1]))
            where = np.flatnonzero(commons > np.maximum.accumulate(before))
            common = commons[where]
            at = np.full(len(common), NO_END)
            columns, arrived, ends = {}, np.zeros(len(common), dtype=np.int64), []
            for (variant, reader), rows in zip(arms, sums, strict=True):
                if rows is None:
                    return {}
                upto = np.searchsorted(reader.places_array, common, side="right")
                columns[variant] = tuple(column[upto] for column in rows.columns)
                if (columns[variant][0] == 0).any():  # nothing of this arm is there yet, which is not no units
                    return {}
                arrived = np.maximum(arrived, rows.arrived[upto])
                if len(reader.ts):
                    newest_read = np.maximum(upto - 1, 0)
                    at = np.where(
                        reader.places_array[newest_read] == common, np.minimum(at, reader.ts_array[newest_read]), at
                    )
                ends.append((reader, rows, int(upto[-1]) if len(upto) else -1))
            track = MetricTrack([looks[k] for k in where.tolist()], at, arrived, columns)
            found[metric] = track, common, ends
        for m, metric in enumerate(compiled.compared):
            track, common, ends = found[metric]
            if track.looks:
                self.progress.instants[m] = int(common[-1])
                many = {}
                for reader, rows, upto in ends:
                    if rows.taken is not None:
                        count = max(upto - reader.position, 0)
                        places, buckets = rows.taken
                        many[reader.spec.variant] = places[:count], [column[:count] for column in buckets]
                    reader.stand_at(rows, upto)
                self.scatter.at_looks(m, track.looks, track.instants, common, many)
        return {metric: track for metric, (track, _, _) in found.items()}

    def _metric_look(
        self, readers: Mapping[str, SeriesReader], common: int, horizon: int, taken: dict[str, list[Taken]]
    ) -> MetricLook:
        states, restated, arrived, instant = {}, [], 0, NO_END
        unreadable: dict[str, Unreadable | str] = {}
        for variant, reader in readers.items():
            buckets: list[Taken] = []
            taken[variant] = buckets
            if reader.read_to(common, horizon, buckets):
                restated.append(variant)
            read = reader.position
            if read and reader.places[read - 1] == common and reader.ts[read - 1] < instant:
                instant = reader.ts[read - 1]
            series_progress = reader.progress
            if series_progress.unreadable:
                unreadable[variant] = series_progress.unreadable
            elif series_progress.sums is not None:
                states[variant] = series_progress.sums
            if series_progress.arrived > arrived:
                arrived = series_progress.arrived
        return MetricLook(instant, states, arrived, unreadable, tuple(restated))
