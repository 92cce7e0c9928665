"""Processes that are kept alive: one that dies is started again, later and later."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from decisioning.embedded import (
    PROJECT,
    SELF,
    Home,
    NotStarted,
    launch,
    tail,
)

LOG_BYTES, MOST_LOG_BYTES = 5_000_000, 20_000_000
LONGEST_BACKOFF_S = 30.0


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is being done, and then how long it took."""
    began = time.monotonic()
    say(f"{what} ...", end=" ")
    try:
        yield
    except BaseException:
        say("")
        raise
    say(f"{time.monotonic() - began:.1f} s")


def say(line: str, end: str = "\n") -> None:
    """Tell the person at the terminal, now; where nothing can be written any more, nobody."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(line + end)
        sys.stdout.flush()


class Interrupted(Exception):
    """Somebody asked us to stop."""


@dataclass
class Part:
    """One process that the supervisor keeps alive."""

    name: str
    command: list[str]
    env: dict[str, str] = field(repr=False)
    stop_signal: signal.Signals = signal.SIGTERM
    account: str = SELF
    answers: Callable[[], bool] | None = None
    before: Callable[[], None] | None = None  # what each start needs
    serves_others: bool = False  # stopped when those others are gone
    then: Callable[[], None] | None = None  # it has an end: called after exit code 0, which is no death
    on_terminal: bool = False  # its output is for the person, not for a log
    grace_s: float = 1.2  # how long it may take to end when asked; then it is killed

    process: "subprocess.Popen[bytes] | None" = None
    born: float = 0.0
    due: float = 0.0
    deaths: int = 0
    down: bool = False
    log_start: int = 0
    log_due: float = 0.0
    hindered: str = ""


class Supervisor:
    """Keeps parts alive: one that dies is started again, later and later, for as long as we live.

    What the system refuses meanwhile (a full disk, no more processes) is told once and tried again; it ends nothing.
    """

    def __init__(self, home: Home) -> None:
        self.home = home
        self.parts: list[Part] = []
        self.wanted: list[Part] = []  # what another thread wants to be kept from the next tick on
        self.stopping = False
        self._launcher = os.getppid() if _process_name(os.getppid()) == "uv" else None

    def interrupt(self, *_signal: object) -> None:
        """Have `wait` and `watch` raise Interrupted."""
        self.stopping = True

    def keep(self, part: Part) -> None:
        """Start a part and from now on keep it alive."""
        self.parts.append(part)
        self._start(part)

    def run(self, *arguments: str, env: dict[str, str], log: Path | None = None) -> str:
        """Run a manage.py command to its end; returns its output, of a logged one the last lines. Raises NotStarted."""
        return self.begin(*arguments, env=env, log=log)()

    def begin(self, *arguments: str, env: dict[str, str], log: Path | None = None) -> Callable[[], str]:
        """Start a manage.py command. What is returned waits for its end, as `run` does; it dies with us when nobody waits."""
        start = log.stat().st_size if log and log.exists() else 0
        command = [sys.executable, str(PROJECT / "manage.py"), *arguments]
        process = launch(command, env=env | self.home.mark(), output=log or subprocess.PIPE)

        def end() -> str:
            try:
                self.wait(lambda: process.poll() is not None, what=f"manage.py {arguments[0]}", seconds=3600)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
            said = tail(log, since=start) if log else process.communicate()[0].decode()
            if process.returncode:
                raise NotStarted(f"manage.py {' '.join(arguments)} failed:\n{said}")
            return said

        return end

    def wait(self, until: Callable[[], bool], *, what: str, seconds: float) -> None:
        """Keep the parts alive until something is so. Raises NotStarted when it takes too long or parts keep dying."""
        deadline = time.monotonic() + seconds
        while not until():
            self._tick()
            if self.stopping:
                raise Interrupted
            if weak := next((part for part in self.parts if part.deaths > 4), None):
                raise NotStarted(f"{weak.name} keeps dying:\n{tail(self._log(weak), since=weak.log_start)}")
            if time.monotonic() > deadline:
                raise NotStarted(f"{what} did not answer within {seconds:.0f} s.")
            time.sleep(0.05)

    def watch(self) -> NoReturn:
        """Keep the parts alive until somebody asks us to stop."""
        while not self.stopping:
            self._tick()
            time.sleep(0.1)
        raise Interrupted

    def stop(self) -> None:
        """End every part, those that serve others last. Who does not go in time is killed, which loses nothing."""
        for serving in (False, True):
            alive = [part.process for part in self.parts if part.process and part.serves_others is serving]
            for part in self.parts:
                if part.process in alive and part.process:
                    part.process.send_signal(part.stop_signal)
            asked_at = time.monotonic()
            while any(
                part.process in alive and part.process and part.process.poll() is None
                and time.monotonic() - asked_at < part.grace_s
                for part in self.parts
            ):  # fmt: skip
                time.sleep(0.02)
            for process in alive:
                _kill_group(process)

    def _tick(self) -> None:
        if self._launcher and os.getppid() != self._launcher:
            self.stopping = True  # `uv run` was killed: nobody could stop us any more
        while self.wanted:
            self.parts.append(self.wanted.pop())
        for part in list(self.parts):
            try:
                self._tend(part)
                self._bound(part)
            except (OSError, NotStarted) as failure:
                self._put_off(part, failure)

    def _tend(self, part: Part) -> None:
        now = time.monotonic()
        if part.process is None:
            if now >= part.due:
                self._start(part)
        elif part.process.poll() is not None:
            self._bury(part, part.process)
        elif part.down and (part.answers() if part.answers else now - part.born > 10):
            part.down = False
            say(f"{part.name} is back")
        elif now - part.born > 60:
            part.deaths, part.hindered = 0, ""

    def _put_off(self, part: Part, failure: OSError | NotStarted) -> None:
        """What could not be done for a part now is tried again, later and later."""
        if part.process is None:
            part.due = max(part.due, time.monotonic() + _delay(part.deaths))
            part.deaths += 1
        if part.hindered != str(failure):
            part.hindered = str(failure)
            say(f"\n{part.name}: {failure}; it is tried again")

    def _start(self, part: Part) -> None:
        if part.before:
            part.before()
        log = self._log(part)
        log.touch(0o600)
        part.log_start = log.stat().st_size
        part.process = launch(
            part.command,
            account=part.account,
            stop_signal=part.stop_signal,
            env=part.env | self.home.mark(),
            output=None if part.on_terminal else log,
        )
        part.born = time.monotonic()

    def _bury(self, part: Part, process: "subprocess.Popen[bytes]") -> None:
        _kill_group(process)
        part.process, code = None, process.returncode
        if part.then and code == 0:
            self.parts.remove(part)
            part.then()
            return
        delay = _delay(part.deaths)
        part.due = time.monotonic() + delay
        part.deaths += 1
        part.down = True
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        say(f"\n{part.name} {how}; starting it again in {delay:.1f} s (log: {self._log(part)})")
        if code > 0:
            say(tail(self._log(part), since=part.log_start))

    def _log(self, part: Part) -> Path:
        return self.home.logs / f"{part.name}.log"

    def _bound(self, part: Part) -> None:
        """Keep the log short. Where there is no room for its last part it is told, and let go of when it gets much too long."""
        log, now = self._log(part), time.monotonic()
        if now < part.log_due or not log.exists() or (size := log.stat().st_size) <= LOG_BYTES:
            return
        kept = log.with_suffix(".log.1")
        try:
            shutil.copyfile(log, kept)
        except OSError:
            with contextlib.suppress(OSError):
                kept.unlink()  # half of it is there, and the one before is gone: this makes room
            part.log_due = now + LONGEST_BACKOFF_S
            if size <= MOST_LOG_BYTES:
                raise
        os.truncate(log, 0)  # its writer appends, so it goes on at the new end


def _delay(deaths: int) -> float:
    """Seconds until the next try."""
    return min(0.5 * float(1 << min(deaths, 10)), LONGEST_BACKOFF_S)


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    """End what is left of a process and of the children it had."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _process_name(pid: int) -> str:
    """The name of a program that runs; empty where neither /proc nor ps can tell."""
    with contextlib.suppress(OSError):
        if (comm := Path(f"/proc/{pid}/comm")).exists():
            return comm.read_text().strip()
        command = ["ps", "-o", "comm=", "-p", str(pid)]
        return Path(subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()).name  # noqa: S603
    return ""
