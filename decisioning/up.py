"""`manage.py up`: the whole installation under one supervisor, from an empty folder to a URL that answers."""

import argparse
import http.client
import json
import os
import resource
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from typing import LiteralString

from decisioning.embedded import (
    FOR_READERS,
    PROJECT,
    Home,
    NotStarted,
    Postgres,
    Server,
    Valkey,
    free_port,
    is_free,
)
from decisioning.supervisor import Interrupted, Part, Supervisor, say, step

DATABASE_URLS = {"web": "DATABASE_URL", "owner": "DATABASE_OWNER_URL", "worker": "DATABASE_WORKER_URL"}
MOST_PROCESSES = 32
WEB_THREADS = 32
"""Of each web process. Each keeps a connection to PostgreSQL once it has had one."""
WEB_CONNECTIONS = 4096
"""That each takes at a time: who says nothing keeps a connection, and no thread."""


def main(argv: list[str] | None = None) -> int:
    """Run an installation until Ctrl-C. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="manage.py up", description=__doc__)
    add_arguments(parser)
    options = parser.parse_args(argv)
    home = Home(options.home)
    home.make()
    if not home.claim():
        running = (home.running() or {}).get("DECISIONING_URL", "still starting")
        say(f"An installation already runs in {home.path}: {running}")
        say("Stop it there with Ctrl-C, or start another with --home.")
        return 1
    home.sweep()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * WEB_CONNECTIONS  # files, sockets among them, of each process we start
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))
    supervisor = Supervisor(home)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
            signal.signal(number, supervisor.interrupt)
    try:
        counts = {"web": options.web, "worker": options.worker}
        Installation(home, supervisor, host=options.host, port=options.port, demo=options.demo, **counts).start()
        supervisor.watch()
    except Interrupted:
        pass
    except (NotStarted, OSError) as problem:  # once it runs, the supervisor outlives what the system refuses
        say(f"Not started. {problem}\nThe logs are in {home.logs}")
        return 1
    finally:
        with step("Stopping"):
            supervisor.stop()
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `up`, shared with `manage.py help up`."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on, 0 for any (default: %(default)s)")
    parser.add_argument("--home", help="folder that keeps the installation (default: DECISIONING_HOME or .data)")
    parser.add_argument("--web", type=_count, default=1, help="web processes on that port (default: %(default)s)")
    parser.add_argument("--worker", type=_count, default=1, help="workers that judge (default: %(default)s)")
    parser.add_argument("--no-demo", dest="demo", action="store_false", help="lay out no demo team")


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= MOST_PROCESSES:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {MOST_PROCESSES}.")
    return number


class Installation:
    """What runs, in which order, with which environment."""

    def __init__(
        self, home: Home, supervisor: Supervisor, *, host: str, port: int, demo: bool, web: int = 1, worker: int = 1
    ) -> None:
        self.home, self.supervisor = home, supervisor
        self.host, self.port = host, port or free_port()
        self.demo, self.web, self.worker = demo, web, worker
        local = host in {"localhost", "::1"} or host.startswith("127.")
        shown = f"[{host}]" if ":" in host else host
        self.url = os.environ.get("DECISIONING_URL") or f"http://{shown if local else '127.0.0.1'}:{self.port}"
        self.environment = {
            "DECISIONING_HOME": str(home.path),
            "DECISIONING_URL": self.url,
            "DECISIONING_SECRET_KEY": os.environ.get("DECISIONING_SECRET_KEY") or home.secret("django"),
            "DECISIONING_INSECURE_HTTP": os.environ.get("DECISIONING_INSECURE_HTTP", "1" if local else "0"),
        }
        self.postgres = None if "DATABASE_URL" in os.environ else Postgres(home, connections=_connections(web, worker))
        self.valkey = None if "REDIS_URL" in os.environ else Valkey(home)

    def start(self) -> None:
        """Bring everything up, print what a person needs, then lay out the demo. Raises NotStarted."""
        began = time.monotonic()
        if not is_free(self.port, self.host):
            raise NotStarted(f"Port {self.port} on {self.host} is taken by another program. Choose one with --port.")
        self._name_servers()
        unknown = self.home.read("credentials.json") is None
        if unknown:  # nobody can ask for anything yet: both load, and compile, while the database is made
            self._keep_web()
            # A server of the environment is there, or its refusal is told at once.
            renewal = self._renewal("--migrate", *(["--wait", "120"] if self.postgres else []))
        self._start_servers()
        self.home.publish(self.environment)
        if unknown:
            self._keep_workers()
        with step("Bringing the database schema up to date"):
            credentials, fresh = (renewal(), True) if unknown else self._prepare()
        with step("Starting web and worker"):
            if not unknown:
                self._keep_web()
                self._keep_workers()
            self.supervisor.wait(self._ready, what=f"{self.url}/readyz", seconds=180)
        if not self._accepts(credentials["api_key"]):
            credentials, fresh = self._renewal()(), True
        threading.Thread(target=self._stand_in, name="stand-in", daemon=True).start()
        self._welcome(credentials, fresh=fresh, seconds=time.monotonic() - began)
        self._lay_out_demo()

    def _name_servers(self) -> None:
        """Complete the environment: where the servers are, or will be."""
        if self.valkey:
            self.valkey.settle()
        if self.postgres:
            self.postgres.settle()
            self.environment |= {name: self.postgres.dsn(role) for role, name in DATABASE_URLS.items()}
        elif missing := [name for name in DATABASE_URLS.values() if name not in os.environ]:
            raise NotStarted(f"DATABASE_URL is set, so {' and '.join(missing)} must be too: one login for each role.")
        else:
            self.environment |= {name: os.environ[name] for name in DATABASE_URLS.values()}
        self.environment["REDIS_URL"] = self.valkey.url() if self.valkey else os.environ["REDIS_URL"]

    def _start_servers(self) -> None:
        for server, what in ((self.valkey, "Valkey"), (self.postgres, "PostgreSQL")):
            if server is None:
                say(f"Using the {what} of the environment")
                continue
            with step(f"Starting {what}"):
                server.prepare()
                self._keep_server(server)
                self.supervisor.wait(server.ready, what=what, seconds=120)
        if self.postgres:
            _apart(self.postgres.bootstrap)

    def _keep_server(self, server: Server) -> None:
        self.supervisor.keep(
            Part(
                server.name,
                server.command(),
                dict(os.environ),
                stop_signal=server.stop_signal,
                account=server.account,
                answers=server.ready,
                before=server.forget_stale_pid if isinstance(server, Postgres) else None,
                serves_others=True,
            )
        )

    def _keep_web(self) -> None:
        (self.home.path / "static").mkdir(exist_ok=True)  # WhiteNoise looks there, too
        options = ["--interface", "asginl", "--host", self.host, "--port", str(self.port)]
        options += ["--workers", str(self.web)]
        environment = self._env("web")
        if self.web > 1:  # one alone is started again by the supervisor; of several the others go on answering
            options += ["--respawn-failed-workers", "--respawn-interval", "0.5"]
            environment["PROMETHEUS_MULTIPROC_DIR"] = self._counts()
        environment["DECISIONING_WEB_THREADS"] = str(WEB_THREADS)
        # Slow or endless headers are cut off by the server, slow bodies by availability.intake; a stop waits for what is being answered.
        options += ["--http", "1", "--http1-header-read-timeout", "5000", "--http1-buffer-size", "65536"]
        options += ["--workers-kill-timeout", "10", "--backpressure", str(WEB_CONNECTIONS), "--backlog", "2048"]
        options += ["--no-ws", "decisioning.asgi:application"]
        command = [sys.executable, "-m", "granian", *options]
        self.supervisor.keep(Part("web", command, environment, answers=self._ready, grace_s=10))

    def _counts(self) -> str:
        """A new folder for what /metrics tells of all of them. In memory: a mapped file on a full disk kills who writes to it."""
        if before := self.home.read("counts.at"):
            shutil.rmtree(before, ignore_errors=True)
        memory = "/dev/shm"  # noqa: S108 - mkdtemp makes a private folder there
        made = tempfile.mkdtemp(
            prefix="decisioning-counts-", dir=memory if os.access(memory, os.W_OK) else self.home.path
        )
        self.home.write("counts.at", made)
        return made

    def _keep_workers(self) -> None:
        """Workers, courier and beat: one part, which keeps each of them alive."""
        options = ["--workers", str(self.worker), "--schedule", str(self.home.path / "beat-schedule")]
        command = [sys.executable, "-m", "decisioning.run_celery", *options]
        self.supervisor.keep(Part("workers", command, self._env("worker")))

    def _stand_in(self) -> None:
        """While the broker is away nothing wakes the worker, so a process of its own ticks in its place."""
        failures = 0
        while True:
            time.sleep(5)
            try:
                failures = 0 if self._broker_answers() else failures + 1
            except OSError:  # it could not even be asked
                continue
            if failures > 1 and not any(part.name == "ticks" for part in self.supervisor.parts):
                command = [sys.executable, str(PROJECT / "manage.py"), "ticks"]
                self.supervisor.wanted.append(Part("ticks", command, self._env("worker"), then=lambda: None))

    def _broker_answers(self) -> bool:
        if self.valkey:
            return self.valkey.ready()
        import redis  # only where it is not ours

        try:
            return bool(
                redis.Redis.from_url(os.environ["REDIS_URL"], socket_timeout=1, socket_connect_timeout=1).ping()
            )
        except redis.RedisError:
            return False

    def _env(self, role: str) -> dict[str, str]:
        """A process gets the login of its own role, not those of the others."""
        login = self.environment[DATABASE_URLS[role]]
        withheld = {*DATABASE_URLS.values(), "DECISIONING_ADMIN_PASSWORD"}
        shared = {name: value for name, value in {**os.environ, **self.environment}.items() if name not in withheld}
        settings = {"DJANGO_SETTINGS_MODULE": "decisioning.settings", "DECISIONING_ROLE": role, "PYTHONUNBUFFERED": "1"}
        settings["SPT_NOENV"] = (
            "1"  # a process that gives itself a title leaves its environment readable: a home knows its own by it
        )
        return shared | settings | {DATABASE_URLS[role]: login, "DATABASE_URL": login}

    def _prepare(self) -> tuple[dict[str, str], bool]:
        """Migrate. The credentials: the kept ones, or new ones on the first start, when they got lost, for another password."""
        kept = self._kept_credentials()
        if not kept or os.environ.get("DECISIONING_ADMIN_PASSWORD", kept["admin_password"]) != kept["admin_password"]:
            return self._renewal("--migrate")(), True
        self.supervisor.run("migrate", "--skip-checks", env=self._env("owner"), log=self.home.logs / "migrate.log")
        if kept["url"] != self.url:
            self._write_credentials(kept := kept | {"url": self.url})
        return kept, False

    def _kept_credentials(self) -> dict[str, str]:
        """Nothing where there are none, or they were torn: new ones are made then."""
        try:
            kept = json.loads(self.home.read("credentials.json") or "{}")
        except ValueError:
            kept = None
        if isinstance(kept, dict) and (not kept or {"url", "admin_password", "api_key"} <= kept.keys()):
            return kept
        say("credentials.json cannot be read; the password and the key are made anew.")
        return {}

    def _renewal(self, *options: str) -> Callable[[], dict[str, str]]:
        """Begin to make new credentials. What is returned waits for them and keeps them."""
        password = os.environ.get("DECISIONING_ADMIN_PASSWORD") or secrets.token_urlsafe(12)
        environment = self._env("owner") | {"DECISIONING_ADMIN_PASSWORD": password}
        end = self.supervisor.begin("bootstrap_access", "--skip-checks", "--new-key", *options, env=environment)

        def renew() -> dict[str, str]:
            key = end().strip().rpartition("\n")[2]
            credentials = {"url": self.url, "admin_user": "admin", "admin_password": password, "api_key": key}
            self._write_credentials(credentials)
            return credentials

        return renew

    def _write_credentials(self, credentials: dict[str, str]) -> None:
        self.home.write("credentials.json", json.dumps(credentials, indent=2) + "\n")

    def _ready(self) -> bool:
        """Whether reads are answered: a disk that is full keeps nobody from looking."""
        status, body = self._asked("/readyz")
        return status == 200 or b'"database": "ok"' in body

    def _accepts(self, key: str) -> bool:
        return self._asked("/api/experiments?limit=1", {"Authorization": f"Bearer {key}"})[0] != 401

    def _asked(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body of a GET to our own web server; status 0 when it does not answer."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - a name for it, no bind
        connection = http.client.HTTPConnection(host, self.port, timeout=2)
        try:
            connection.request("GET", path, headers={"Host": "localhost"} | (headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def _welcome(self, credentials: dict[str, str], *, fresh: bool, seconds: float) -> None:
        kept = self.home.path / "credentials.json"
        say(f"\nReady in {seconds:.1f} s: {self.url}\n")
        if fresh:
            say(f"  admin     {credentials['admin_user']} / {credentials['admin_password']}")
            say(f"  API key   {credentials['api_key']}")
            say(f"  (kept in {kept}, readable only by you)\n")
        else:
            say(f"  admin login and API key: {kept}\n")
        say(f"  Open {self.url}/ and sign in; the admin is at {self.url}/admin/, the API at {self.url}/api/.")
        say("  In a second terminal: uv run manage.py selfcheck tries everything on live traffic.")
        say("  Ctrl-C stops; the same command starts again with everything kept.\n")

    def _lay_out_demo(self) -> None:
        """A demo team and its live feed, in an embedded installation where nobody has created anything yet.

        What was interrupted is finished at the next start. What was removed stays away.
        """
        if not (self.demo and self.postgres):
            return
        environment = self._env("worker")
        command = [sys.executable, str(PROJECT / "manage.py"), "demo"]

        def feed() -> None:
            self.home.write("demo", "laid out")
            self.supervisor.keep(Part("feed", [*command, "--feed"], environment, then=lambda: None))

        there = self._has("metadata.teams WHERE key = 'demo'")
        if self.home.read("demo"):
            if there:
                feed()
        elif there or not self._has("metadata.experiments"):
            self.supervisor.keep(Part("demo", [*command, "--install"], environment, then=feed, on_terminal=True))

    def _has(self, rows: LiteralString) -> bool:
        import psycopg

        assert self.postgres  # noqa: S101
        with psycopg.connect(self.postgres.dsn("superuser")) as connection:
            return bool(connection.execute(f"SELECT FROM {rows} LIMIT 1").rowcount)


def _connections(web: int, worker: int) -> int:
    """How many PostgreSQL has to take: all threads of web with a probe and a counter of reads each, three a worker, those of readers, and forty for all else."""
    return max(100, web * (WEB_THREADS + 2) + worker * 3 + FOR_READERS + 40)


def _apart(work: Callable[[], None]) -> None:
    """Do something in a child: the supervisor lives as long as the installation and does not keep what this loads."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise NotStarted("PostgreSQL runs, but its roles and database could not be made; the reason is above.")
