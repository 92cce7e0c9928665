"""A hint to the worker that something changed. Never in the way: a lost hint is replaced by the next beat."""

import logging
import threading

from decisioning.logs import CAUSE

_log = logging.getLogger(__name__)
_COALESCE_S = 1.0
_MOST_CAUSES = 100  # a hint stays small; who comes later in the same second finds its request by the time
_changed = threading.Event()
_wanted: dict[str, list[str]] = {}
_start = threading.Lock()
_waker: threading.Thread | None = None


def tick() -> None:
    """Ask for a tick soon."""
    hint("gates.tick")


def hint(task: str) -> None:
    """Ask for a task soon. Returns at once; hints within a second become one, and one always follows the last call.

    The requests that asked travel along as the hint's header `woken_by`, for the log of the task.
    """
    global _waker
    cause = CAUSE.get()
    with _start:
        causes = _wanted.setdefault(task, [])
        if cause and cause not in causes and len(causes) < _MOST_CAUSES:
            causes.append(cause)
    _changed.set()
    if _waker is None or not _waker.is_alive():
        with _start:
            if _waker is None or not _waker.is_alive():
                _waker = threading.Thread(target=_send_hints, name="wake", daemon=True)
                _waker.start()


def _send_hints() -> None:
    from decisioning.celery import app  # loads Celery only in processes that ingest

    pause = threading.Event()
    while True:
        _changed.wait()
        _changed.clear()
        with _start:
            wanted = sorted(_wanted.items())
            _wanted.clear()
        for task, causes in wanted:
            try:
                app.send_task(task, expires=60, retry=False, ignore_result=True, headers={"woken_by": causes})
            except Exception as failure:
                _log.warning("No hint sent, the next beat will do: %s", failure)
        pause.wait(_COALESCE_S)
