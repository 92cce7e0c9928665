"""Runs of sources beside each other, in threads: each place is used for as long as another run waits."""

import datetime as dt
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import LazySettings

from telemetry import tasks
from telemetry.sources import runs

pytestmark = pytest.mark.django_db


class Waiting:
    """Runs of sources that wait, by name; those that stall go on until `let_go`."""

    def __init__(self, *names: str) -> None:
        self.names, self.begun, self.ended = [*names], list[str](), list[str]()
        self.let_go = {name: threading.Event() for name in names}
        self.lock = threading.Lock()

    def take_next(self, *, now: dt.datetime, most: int) -> Any:
        with self.lock:
            if len(self.begun) - len(self.ended) >= most or not self.names:
                return None
            self.begun.append(self.names.pop(0))
            return SimpleNamespace(run_id=self.begun[-1], source=self.begun[-1])

    def pull(self, run: Any, *, clock: Any) -> None:
        if run.source.startswith("stalled"):
            self.let_go[run.source].wait(20)
        elif run.source == "broken":
            raise ValueError("a driver's own")
        with self.lock:
            self.ended.append(run.source)
        if run.source == "last":
            for stalled in self.let_go.values():
                stalled.set()


def test_a_place_that_is_free_again_is_used_while_the_others_stall(
    monkeypatch: pytest.MonkeyPatch, settings: LazySettings
) -> None:
    waiting = Waiting("stalled-1", "stalled-2", "stalled-3", "broken", "quick", "last")
    settings.SOURCE_PULLS = 3
    monkeypatch.setattr(tasks, "_LONG_S", 0.01)
    monkeypatch.setattr(tasks, "_LOOK_S", 0.01)
    monkeypatch.setattr(runs, "take_next", waiting.take_next)
    monkeypatch.setattr(runs, "pull", waiting.pull)
    shown, given_up = list[int](), list[str]()

    def show_life(taken: list[Any], *, now: dt.datetime) -> None:
        shown.append(len(taken))
        if len(taken) == 3:  # every place has one that stalls: the first of them ends
            waiting.let_go["stalled-1"].set()

    def give_up(run: Any, now: dt.datetime, error: str) -> None:
        waiting.ended.append(run.source)
        given_up.append(error)

    monkeypatch.setattr(runs, "show_life", show_life)
    monkeypatch.setattr(runs, "give_up", give_up)

    tasks._carry_out()

    assert waiting.ended[:4] == ["stalled-1", "broken", "quick", "last"], "the two that stall held up none of them"
    assert {*waiting.ended[4:]} == {"stalled-2", "stalled-3"}
    assert max(shown) == 3
    assert given_up == ["ValueError: a driver's own"]
