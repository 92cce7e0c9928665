"""Whether a PostgreSQL server answers at all.

A hung server ignores statement_timeout, and its kernel goes on acknowledging packets, so neither it nor TCP ends the wait. A
statement that hears nothing for a moment therefore asks for a probe on another connection: a server that answers the probe is
only slow, and the statement goes on; one that does not is away, and every statement on it is given up at once.

Where there are several hosts, the probe finds the one that serves now: a statement that waits for another is given up as well, and new
connections begin with the host that answered last. Each host has its own time to answer.

Silence is what was listened to, not what a clock says: a thread that had no turn for a second has not heard a server be silent
for a second. Each look for an answer that finds none counts for the time it was meant to take, however late it came back; by then
the answer could have come, and would have been found.
"""

import logging
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic, sleep
from typing import Any

import psycopg
from psycopg.waiting import READY_R

SILENCE_S = 0.1  # heard nothing for so long: ask
PROBE_S = 0.3  # a probe that hears nothing for longer has failed
EVERY_S = 0.25  # how often a server that is away is tried again
COMMIT_S = 10.0  # a commit that its standbys do not confirm waits for ever, whatever limits its session has; nobody waits longer
CONNECT_S = 2.0  # nobody waits longer for a new connection, whatever the others hear
UNWELL_S = 3.0  # who was away, or has lost a connection, is slow for a while
_LISTEN_S, _LISTEN_CONNECTING_S = 0.05, 0.1  # a look for an answer; while connecting it is psycopg's own
_LET_GO_S = 60.0  # a probe that is at hand is answered sooner than one that has to sign in

_log = logging.getLogger(__name__)
_watching = False
_until: ContextVar[float] = ContextVar("until", default=float("inf"))


def watch() -> None:
    """From now on this process gives up on a server that is away. For web servers: a tick would rather wait."""
    global _watching
    _watching = True


@contextmanager
def waiting_until(at: float) -> Iterator[None]:
    """Statements in here give up on a server that says nothing once it is `at` (monotonic): who asks has something else to go by."""
    before = _until.set(at)
    try:
        yield
    finally:
        _until.reset(before)


class ServerSilent(Exception):
    """Nothing was heard in time."""


class ServerLiveness:
    """What this process knows about one server. `away` is safe to read from any thread, and cheap."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.away = False
        self.last_heard_at = 0.0
        self.last_lost_at = float("-inf")
        self.parameters: dict[str, Any] = {}
        self.host = ""
        """The one that answered last."""
        self._asked = threading.Event()
        self._lock = threading.Lock()
        self._prober: threading.Thread | None = None

    def ask(self) -> None:
        """Have the server probed. Returns at once."""
        if not _watching:
            return
        if self._prober is None or not self._prober.is_alive():
            with self._lock:
                if self._prober is None or not self._prober.is_alive():
                    self._prober = threading.Thread(target=self._probe, name=f"liveness of {self.name}", daemon=True)
                    self._prober.start()
        self._asked.set()

    def check(self) -> None:
        """Raise Silent when the server is away."""
        if self.away and _watching:
            raise ServerSilent

    def has_moved_from(self, host: str) -> bool:
        """Whether another host writes now than the one a connection goes to."""
        return self.parameters.get("target_session_attrs") in ("read-write", "primary") and self.host not in ("", host)

    def first_the_last(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a connection with its hosts in the order in which they are to be tried.

        >>> server = ServerLiveness("database")
        >>> server.host = "b"
        >>> server.first_the_last({"host": "a,b,c", "port": "1,2,3"})
        {'host': 'b,a,c', 'port': '2,1,3'}
        """
        hosts = str(parameters.get("host", "")).split(",")
        if self.host not in hosts[1:] or "hostaddr" in parameters:
            return dict(parameters)
        ports = str(parameters.get("port", "")).split(",")
        place = hosts.index(self.host)
        order = [place, *(number for number in range(len(hosts)) if number != place)]
        found = {**parameters, "host": ",".join(hosts[number] for number in order)}
        return found | ({"port": ",".join(ports[number] for number in order)} if len(ports) == len(hosts) else {})

    def is_unwell(self) -> bool:
        """Whether it is away, or was a moment ago: its answers may take long yet."""
        return self.away or monotonic() - self.last_lost_at < UNWELL_S

    def _probe(self) -> None:
        probe: Probe | None = None
        while True:
            if not self._asked.wait(_LET_GO_S):
                probe = _close(probe)
                continue
            self._asked.clear()
            began = monotonic()
            try:
                probe = self._answered(probe)
            except (
                Exception
            ) as failure:  # whatever it is, this thread must live: who else would notice that the server is back?
                probe = _close(probe)
                if self.last_heard_at < began and not self.away:
                    _log.warning("The %s does not answer: %s", self.name, failure or type(failure).__name__)
                    self.away = True
            else:
                self.host = probe.info.host
                if self.away:
                    _log.warning("The %s answers again", self.name)
                    self.last_lost_at = monotonic()
                self.away = False
            if self.away:
                sleep(EVERY_S)
                self._asked.set()

    def _answered(self, probe: "Probe | None") -> "Probe":
        """A probe that was answered. One that was cut is made anew, as that tells nothing of the server; one that was silent is not."""
        began = monotonic()
        try:
            probe = probe or self._connected()
            probe.execute("SELECT 1")
        except psycopg.Error:
            if probe is None or monotonic() - began > PROBE_S:
                raise
            _close(probe)
            probe = self._connected()
        return probe

    def _connected(self) -> "Probe":
        return Probe.connect(**self.first_the_last(self.parameters), autocommit=True)


def _close(probe: "Probe | None") -> "Probe | None":
    if probe is not None:
        probe.pgconn.finish()
    return None


def _guarded[Y, R](
    steps: Generator[Y, int, R], *, every_s: float, quiet: Callable[[float], None], heard: Callable[[], None]
) -> Generator[Y, int, R]:
    """The same steps; `quiet` is called with the seconds of silence whenever a look of `every_s` has found nothing, and may raise."""
    silence_s = 0.0
    try:
        wanted = next(steps)
        while True:
            began = monotonic()
            ready = yield wanted
            if ready:
                silence_s = 0.0
                if ready & READY_R:  # what was only sent is in a buffer of the kernel's
                    heard()
            else:
                silence_s += min(monotonic() - began, every_s)
                quiet(silence_s)
            wanted = steps.send(ready)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]


class GuardedConnection(psycopg.Connection[Any]):
    """A connection that gives up when its server is away. Giving up closes it: what became of the statement is not known."""

    server: ServerLiveness
    is_committing = is_unconfirmed = False
    """is_unconfirmed: a commit stopped waiting for the standbys that have to confirm it."""

    @classmethod
    def of(cls, server: ServerLiveness) -> type["GuardedConnection"]:
        """The same class for the connections to one server."""
        return type(cls.__name__, (cls,), {"server": server})

    @classmethod
    def _quiet(cls, silence_s: float) -> None:
        if silence_s > SILENCE_S:
            cls.server.check()
            cls.server.ask()
        if monotonic() > _until.get() and _watching:
            raise ServerSilent

    @classmethod
    def _heard(cls) -> None:
        cls.server.last_heard_at = monotonic()

    @classmethod
    def _lost(cls) -> None:
        cls.server.last_lost_at = monotonic()

    @classmethod
    def _connect_gen(cls, conninfo: str = "") -> Any:
        steps = super()._connect_gen(conninfo)
        return _guarded(steps, every_s=_LISTEN_CONNECTING_S, quiet=cls._quiet_connecting, heard=lambda: None)

    @classmethod
    def _quiet_connecting(cls, silence_s: float) -> None:
        cls._quiet(silence_s)
        if silence_s > CONNECT_S and _watching:
            raise psycopg.OperationalError("the host does not answer")  # the next one is tried

    def commit(self) -> None:
        """Raises OperationalError, and closes, when nobody says in time that it is done: it may be, or come to be, or be lost."""
        self.is_committing = True
        try:
            super().commit()
        finally:
            self.is_committing = False

    def hear(self, notice: psycopg.errors.Diagnostic) -> None:
        """A commit whose waiting for standbys somebody cancels is told as done, with a warning: it is on this host alone, and lost if
        another takes over."""
        if notice.source_function == "SyncRepWaitForLSN":
            self.is_unconfirmed = True

    def _quiet_here(self, silence_s: float) -> None:
        self._quiet(silence_s)
        if not _watching:
            return
        if self.is_committing and silence_s > COMMIT_S:
            raise ServerSilent
        if silence_s > PROBE_S and self.server.has_moved_from(self.info.host):
            raise ServerSilent

    def wait(self, gen: Any, interval: float = _LISTEN_S, timeout: float | None = None) -> Any:
        try:
            steps = _guarded(gen, every_s=_LISTEN_S, quiet=self._quiet_here, heard=self._heard)
            found = super().wait(steps, min(interval, _LISTEN_S), timeout)
        except ServerSilent:
            self.pgconn.finish()
            raise psycopg.OperationalError("the server does not answer") from None
        except psycopg.OperationalError:
            if self.closed:
                self._lost()
            raise
        if self.is_unconfirmed:
            self.pgconn.finish()
            raise psycopg.OperationalError("no standby has confirmed the commit")
        return found


class Probe(GuardedConnection):
    """A connection that waits for its own time and for nothing else."""

    @classmethod
    def _quiet(cls, silence_s: float) -> None:
        if silence_s > PROBE_S:
            raise ServerSilent

    @classmethod
    def _quiet_connecting(cls, silence_s: float) -> None:
        if silence_s > PROBE_S:
            raise psycopg.OperationalError("the host does not answer")  # the next one is tried

    def _quiet_here(self, silence_s: float) -> None:
        self._quiet(silence_s)

    @classmethod
    def _heard(cls) -> None:
        """Says nothing about other connections."""

    @classmethod
    def _lost(cls) -> None:
        """Says nothing about other connections, either."""


PRIMARY, REPLICA = ServerLiveness("database"), ServerLiveness("replica")
