"""An installation's folder, its servers, and processes that do not outlive who started them."""

import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from decisioning import embedded
from decisioning.embedded import LOGIN_ROLES, PROJECT, Home, NotStarted, Postgres, Valkey, join, launch, start


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.make()
    return made


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL as `up` runs it: durable, and without the rights that tests have."""
    home = Home(tmp_path_factory.mktemp("cluster"))
    home.make()
    postgres = Postgres(home)
    postgres.prepare()
    process = start(postgres, home.logs / "postgres.log")
    postgres.bootstrap()
    yield postgres
    process.send_signal(postgres.stop_signal)
    process.wait(30)


def soon(condition: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether something becomes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def gone(pid: int) -> bool:
    """Whether a process has ended; one that only waits to be reaped has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


class Program(subprocess.Popen[str]):
    """A Python program of its own, to be killed."""

    def __init__(self, source: str, *arguments: object) -> None:
        command = [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)]
        super().__init__(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT)

    def says(self) -> str:
        """The next line it prints."""
        assert self.stdout
        return self.stdout.readline().strip()

    def kill_9(self) -> None:
        self.kill()
        self.communicate()


def test_only_its_owner_can_read_a_home(home: Home) -> None:
    home.secret("django")
    home.write("credentials.json", "{}")

    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in home.path.iterdir() if file.is_file()} == {0o600}


def test_a_secret_is_generated_once_and_differs_between_homes(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "other")
    other.make()

    assert len(home.secret("owner")) >= 32
    assert home.secret("owner") == home.secret("owner")
    assert home.secret("owner") not in {home.secret("web"), other.secret("owner")}


def test_a_port_stays_the_same_unless_it_is_taken_when_its_server_starts(home: Home) -> None:
    port = home.settle_port("postgres")
    assert home.settle_port("postgres") == port

    with socket.create_server(("127.0.0.1", port)):
        assert home.port("postgres") == port  # our own server may be the one that has it
        assert home.settle_port("postgres") != port


def test_a_home_has_one_supervisor_and_is_free_again_when_that_is_killed(home: Home) -> None:
    holder = Program(
        """
        import sys, time
        from decisioning.embedded import Home
        home = Home(sys.argv[1]); print(home.claim(), flush=True); home.publish({"A": "b"}); print("ok", flush=True)
        time.sleep(60)
        """,
        home.path,
    )
    assert (holder.says(), holder.says()) == ("True", "ok")
    assert not home.claim()
    assert home.running() == {"A": "b"}

    holder.kill_9()

    assert home.running() is None
    assert home.claim()


def test_a_command_joins_the_running_installation(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("DECISIONING_ROLE", raising=False)
    with pytest.raises(NotStarted, match=r"Nothing runs in .*home\. Start it with: uv run manage\.py up"):
        join(home, "replay")
    assert "DATABASE_URL" not in join(home, "check")

    home.publish({"DATABASE_URL": "postgresql://of an earlier run"})
    assert home.claim()
    with pytest.raises(NotStarted):  # it is still starting
        join(home, "replay")

    home.publish({"DATABASE_URL": "postgresql://here"})

    assert join(Home(home.path), "replay")["DATABASE_URL"] == "postgresql://here"
    assert join(home, "replay")["DECISIONING_ROLE"] == "worker"
    assert join(home, "migrate")["DECISIONING_ROLE"] == "owner"


def test_a_database_named_in_the_environment_comes_first(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere")
    assert home.claim()
    home.publish({"DATABASE_URL": "postgresql://here"})

    assert join(home, "replay")["DATABASE_URL"] == "postgresql://elsewhere"


def test_a_process_ends_when_who_launched_it_is_killed() -> None:
    launcher = Program(
        """
        import time
        from decisioning.embedded import launch
        print(launch(["/bin/sleep", "60"]).pid, flush=True)
        time.sleep(60)
        """
    )
    child = int(launcher.says())
    assert soon(lambda: Path(f"/proc/{child}/comm").read_text().strip() == "sleep")

    launcher.kill_9()

    assert soon(lambda: gone(child))


def test_where_the_kernel_does_not_tell_a_watcher_ends_the_process() -> None:
    launcher = Program(
        """
        import os, subprocess, sys, time
        watcher = "from decisioning.embedded import _watch; import sys; _watch(int(sys.argv[1]), 15, sys.argv[2:])"
        command = ["/bin/sh", "-c", "echo $$; exec sleep 60"]
        subprocess.Popen([sys.executable, "-c", watcher, str(os.getpid()), *command])
        time.sleep(60)
        """
    )
    child = int(launcher.says())

    launcher.kill_9()

    assert soon(lambda: gone(child))


def test_the_next_supervisor_sweeps_what_survived_a_double_kill(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "other")
    left = launch(["/bin/sleep", "60"], env=home.mark())
    neighbour = launch(["/bin/sleep", "60"], env=other.mark())

    home.sweep()

    assert left.wait(5) == -signal.SIGKILL
    assert neighbour.poll() is None
    neighbour.kill()
    neighbour.wait()


def test_roles_have_the_rights_of_the_design_and_no_more(cluster: Postgres) -> None:
    cluster.bootstrap()  # once more: it is safe to repeat
    with psycopg.connect(cluster.dsn("superuser")) as connection:
        rows = connection.execute(
            "SELECT substr(rolname, 13), rolcanlogin, rolbypassrls, rolsuper OR rolcreatedb OR rolcreaterole"
            " FROM pg_roles WHERE rolname LIKE 'decisioning%'"
        ).fetchall()
        memberships = connection.execute(
            "SELECT member::regrole::text, roleid::regrole::text, admin_option FROM pg_auth_members"
            " WHERE member::regrole::text LIKE 'decisioning%'"
        ).fetchall()

    assert {name: tuple(rights) for name, *rights in rows} == {
        "owner": (True, False, False),
        "web": (True, False, False),
        "worker": (True, False, False),
        "backup": (True, True, False),
        "reader": (False, False, False),
    }
    assert set(memberships) == {
        ("decisioning_backup", "pg_read_all_data", False),
        ("decisioning_owner", "decisioning_reader", True),
        ("decisioning_owner", "pg_read_all_stats", False),
        ("decisioning_owner", "pg_signal_backend", False),
        *((f"decisioning_{role}", "pg_use_reserved_connections", False) for role in LOGIN_ROLES),
    }


def test_nobody_gets_in_without_the_right_password(cluster: Postgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(cluster.dsn("web").replace(cluster.home.secret("web"), "guess"))


def test_the_script_for_external_servers_makes_roles_and_database_and_sets_passwords(cluster: Postgres) -> None:
    with psycopg.connect(cluster.dsn("superuser", "postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE decisioning")
    environment = {
        "PATH": f"{cluster.bin}:{os.environ['PATH']}",
        "PGHOST": "127.0.0.1",
        "PGPORT": str(cluster.port),
        "PGUSER": "postgres",
        "PGPASSWORD": cluster.home.secret("superuser"),
        **{f"DECISIONING_{role.upper()}_PASSWORD": f"it's \\ {role}" for role in LOGIN_ROLES},
    }
    script = ["sh", str(PROJECT / "docker" / "roles.sh")]
    without = {name: value for name, value in environment.items() if name != "DECISIONING_WEB_PASSWORD"}
    assert subprocess.run(script, env=without, check=False, stderr=subprocess.DEVNULL).returncode != 0

    for _ in range(2):
        subprocess.run(script, env=environment, check=True)

    for role in LOGIN_ROLES:
        login = psycopg.conninfo.make_conninfo(
            host="127.0.0.1",
            port=cluster.port,
            dbname="decisioning",
            user=f"decisioning_{role}",
            password=f"it's \\ {role}",
        )
        with psycopg.connect(login) as connection:
            assert connection.info.user == f"decisioning_{role}"
    cluster.bootstrap()


def test_what_was_committed_is_there_after_kill_9_of_postgres(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.make()
    (tmp_path / "postgres.new").mkdir()  # an earlier start was killed while it made the cluster
    postgres = Postgres(home)
    postgres.prepare()
    process = start(postgres, home.logs / "postgres.log")
    postgres.bootstrap()
    with psycopg.connect(postgres.dsn("owner")) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    process.kill()
    process.wait()

    def again() -> bool:
        nonlocal process
        try:
            process = start(postgres, home.logs / "postgres.log")
        except NotStarted:  # the killed one's children are just noticing
            return False
        return True

    assert soon(again, 30)
    with psycopg.connect(postgres.dsn("owner")) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
    process.send_signal(postgres.stop_signal)
    assert process.wait(30) == 0


def test_a_pid_file_that_names_somebody_else_or_nothing_keeps_no_server_from_starting(tmp_path: Path) -> None:
    """After a crash of the machine, or in a container, the number of the killed server is another program's."""
    home = Home(tmp_path)
    home.make()
    postgres = Postgres(home)
    postgres.prepare()
    neighbour = subprocess.Popen(["/bin/sleep", "60"])
    try:
        for left in (f"{neighbour.pid}\n{postgres.data}\n1\n{postgres.port}\n\n127.0.0.1\n", "", "12", "torn"):
            (postgres.data / "postmaster.pid").write_text(left)
            postgres.prepare()
            process = start(postgres, home.logs / "postgres.log")
            process.send_signal(postgres.stop_signal)
            assert process.wait(30) == 0
        assert neighbour.poll() is None
    finally:
        neighbour.kill()
        neighbour.wait()


def test_a_server_that_somebody_started_by_hand_is_not_taken_for_a_stale_one(cluster: Postgres) -> None:
    with pytest.raises(NotStarted, match="was not started here"):
        Postgres(cluster.home).prepare()
    assert (cluster.data / "postmaster.pid").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs a stand-in")
def test_root_without_user_namespaces_runs_postgres_as_a_user_without_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "STAND_INS_FOR_ROOT", ("no such user", "nobody"))
    with tempfile.TemporaryDirectory() as folder:
        home = Home(folder)
        home.make()
        postgres = Postgres(home, durable=False)
        postgres.prepare()
        process = start(postgres, home.logs / "postgres.log")
        postgres.bootstrap()

        with psycopg.connect(postgres.dsn("owner")) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert Path(f"/proc/{process.pid}").owner() == postgres.data.owner() == "nobody"
        assert {stat.S_IMODE(file.stat().st_mode) for file in home.path.iterdir() if file.is_file()} == {0o600}
        process.send_signal(postgres.stop_signal)
        assert process.wait(30) == 0


def test_root_who_has_no_stand_in_is_told_what_to_do(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(embedded, "STAND_INS_FOR_ROOT", ("no such user",))

    with pytest.raises(NotStarted, match=r"refuses to run as root.* Run this as an ordinary user"):
        Postgres(home).prepare()


def test_a_server_that_cannot_start_says_why(home: Home) -> None:
    postgres = Postgres(home)
    postgres.prepare()
    (postgres.data / "postgresql.conf").unlink()

    with pytest.raises(NotStarted, match=r"postgres did not start:\n(.*\n)*.*postgresql.conf"):
        start(postgres, home.logs / "postgres.log")


def test_valkey_answers_to_its_password_only_and_keeps_nothing_on_disk(home: Home) -> None:
    valkey = Valkey(home)
    valkey.prepare()
    process = start(valkey, home.logs / "valkey.log")
    client = redis.Redis.from_url(valkey.url())
    assert client.set("a", "b")
    with pytest.raises(redis.AuthenticationError), redis.Redis(port=valkey.port) as stranger:
        stranger.ping()
    client.close()

    process.send_signal(valkey.stop_signal)

    assert process.wait(10) == 0
    assert not list(home.path.rglob("*.rdb")) + list(home.path.rglob("*.aof"))


def test_the_servers_of_a_test_run_end_when_it_is_killed(tmp_path: Path) -> None:
    probe = tmp_path / "test_probe.py"
    probe.write_text(
        "import os, time\n"
        "def test_probe() -> None:\n"
        "    print('HOME', os.environ['DECISIONING_HOME'], flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = {name: value for name, value in os.environ.items() if "DATABASE" not in name and name != "REDIS_URL"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-s",
        "-p",
        "tests.stack",
        "-p",
        "no:django",
        "-c",
        "/dev/null",
        str(probe),
    ]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT, env=environment)
    assert run.stdout
    home = Path(next(line for line in run.stdout if "HOME" in line).split()[-1])
    ports = [int((home / f"{name}.port").read_text()) for name in ("postgres", "valkey")]
    postmaster = int((home / "postgres" / "postmaster.pid").read_text().split()[0])

    run.kill()
    run.communicate()

    assert soon(lambda: gone(postmaster))
    assert soon(lambda: all(_refuses(port) for port in ports))


def _refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
