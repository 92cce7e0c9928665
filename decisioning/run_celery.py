"""`python -m decisioning.run_celery`: the workers and the courier of one machine, forked from one process that has loaded the code.

Each is a process of its own, with Celery's own worker in it, and is started again when it dies. What they share is memory: three
quarters of what one of them needs is code and tables that nobody writes to, and a child of a process that has them gets them for
nothing. Beat, which only says every few seconds that something is due, is a thread of the courier's. Celery's command line is left out,
which would import a terminal toolkit, and so are the checks of the web side.
"""

import argparse
import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

LONGEST_BACKOFF_S = 30.0
GRACE_S = 1.0
"""How long a child may take to end when asked; then it is killed with its own, which loses nothing."""


@dataclass
class Child:
    """One process: what it does, and when it is due to be started again."""

    name: str
    work: Callable[[], int]
    pid: int = 0
    born: float = 0.0
    due: float = 0.0
    deaths: int = 0
    code: int = 0


def main(argv: list[str] | None = None) -> int:
    """Run until a signal ends it. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m decisioning.run_celery", description=__doc__)
    parser.add_argument("--workers", type=int, default=1, help="workers that judge (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=2, help="jobs at a time of each (default: %(default)s)")
    parser.add_argument("--schedule", required=True, help="file in which beat keeps when each job was last due")
    options = parser.parse_args(argv)
    children = [
        Child(name, _worker(name, pool="prefork", concurrency=options.concurrency))
        for name in ("worker", *(f"worker-{number}" for number in range(2, options.workers + 1)))
    ]
    deliver = _worker("courier", queues="notices", pool="threads", concurrency=4)
    children.append(Child("courier", _with_beat(deliver, options.schedule)))
    _load()
    return _keep(children)


def _load() -> None:
    """Everything a child will need, once.

    Nothing is collected meanwhile: what a child makes later would go into the holes, and each page it writes to is a page of its own.
    """
    gc.disable()
    os.environ.setdefault("CELERY_SKIP_CHECKS", "true")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads of the parent would not be there in a child
    import celery.apps.worker
    import celery.beat  # noqa: F401
    import kombu.transport.redis  # noqa: F401

    from decisioning.celery import app

    app.loader.init_worker()
    app.finalize()
    gc.freeze()


def _worker(name: str, *, pool: str, concurrency: int, queues: str | None = None) -> Callable[[], int]:
    def work() -> int:
        from celery.utils.nodenames import default_nodename, host_format

        from decisioning.celery import app

        process = app.Worker(
            hostname=host_format(default_nodename(f"{name}@%h")),
            queues=queues,
            pool_cls=pool,
            concurrency=concurrency,
            loglevel="INFO",
            without_mingle=True,
            without_gossip=True,
        )
        process.start()
        return process.exitcode or 0

    return work


def _with_beat(work: Callable[[], int], schedule: str) -> Callable[[], int]:
    """The same with beat beside it. When beat ends, for whatever reason, so does the process, and both are started again."""

    def beat() -> None:
        from celery.beat import Service

        from decisioning.celery import app

        try:
            Service(app, schedule_filename=schedule).start()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def both() -> int:
        threading.Thread(target=beat, name="beat", daemon=True).start()
        return work()

    return both


def _keep(children: list[Child]) -> int:
    """Start them, start again who dies, later and later; on a signal pass it on and wait for them."""
    ending = 0

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal ending
        ending = number

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, end)
    while not ending:
        now = time.monotonic()
        for child in children:
            if not child.pid and now >= child.due:
                try:
                    _start(child)
                except OSError as failure:  # no more processes, no memory
                    _put_off(child, f"could not be started: {failure}")
            elif child.pid and now - child.born > 60:
                child.deaths = 0
        for child in _ended(children):
            _bury(child)
        time.sleep(0.1)
    for child in children:
        if child.pid:
            os.kill(child.pid, ending)
    until = time.monotonic() + GRACE_S
    while any(child.pid for child in children) and time.monotonic() < until:
        for child in _ended(children):
            child.pid = 0
        time.sleep(0.02)
    for child in children:
        _kill(child)
    return 0


def _start(child: Child) -> None:
    parent = os.getpid()
    child.born = time.monotonic()
    child.pid = os.fork()
    if child.pid == 0:
        _become(child, parent)


def _become(child: Child, parent: int) -> NoReturn:
    """In the new process: end with the parent, kill -9 included, carry a name of our own, work, and never return."""
    code = 1
    try:
        import setproctitle

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:
                os._exit(0)
        os.setpgid(0, 0)
        setproctitle.setproctitle(f"decisioning {child.name}")
        gc.enable()
        code = child.work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(children: list[Child]) -> list[Child]:
    """Those that are gone, with how they ended in `code`."""
    gone = []
    for child in children:
        if child.pid:
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                _kill(child)
                child.code = os.waitstatus_to_exitcode(status)
                gone.append(child)
    return gone


def _kill(child: Child) -> None:
    """End what is left of a child and of the processes it had."""
    if child.pid:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def _bury(child: Child) -> None:
    """Say how it ended and when it is started again."""
    _put_off(
        child, f"was ended by {signal.Signals(-child.code).name}" if child.code < 0 else f"ended with code {child.code}"
    )


def _put_off(child: Child, how: str) -> None:
    delay = min(0.5 * 2 ** min(child.deaths, 10), LONGEST_BACKOFF_S)
    with suppress(OSError):  # a full disk keeps nobody from being started again
        sys.stderr.write(f"{child.name} {how}; starting it again in {delay:.1f} s\n")
        sys.stderr.flush()
    child.pid, child.due = 0, time.monotonic() + delay
    child.deaths += 1


if __name__ == "__main__":
    sys.exit(main())
