"""`-p tests.stack`: a real PostgreSQL and a real Valkey for the tests, up before pytest-django reads the settings.

Servers named in the environment are used as they are. pytest-xdist's workers inherit it all from the process that
starts them.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg
import pytest

from decisioning.embedded import PROJECT, Home, Postgres, Server, Valkey, keep_bytecode, start

_running = ExitStack()
_PREFIX = "decisioning-tests-"
_LONG = (
    "test_up.py",
    "test_board.py",
    "test_mcp_server.py",
    "test_table.py",
    "test_evaluation.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(args: list[str]) -> None:
    """Start what the environment does not name, in a home of our own, and put it into the environment."""
    if "PYTEST_XDIST_WORKER" in os.environ or {"--help", "-h", "--version"} & set(args):
        return
    keep_bytecode()
    _sweep()
    home = Home(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    home.make()
    _running.callback(shutil.rmtree, home.path, ignore_errors=True)
    environment = {"DECISIONING_HOME": str(home.path), "DECISIONING_SECRET_KEY": secrets.token_urlsafe(48)}
    environment["DECISIONING_PULLS"] = "1"  # a thread of its own would not see what a test has not committed
    if "REDIS_URL" not in os.environ:
        valkey = Valkey(home)
        _keep(valkey, home)
        environment["REDIS_URL"] = valkey.url()
    if "DATABASE_URL" not in os.environ:
        postgres = Postgres(home, durable=False)
        _keep(postgres, home)
        postgres.bootstrap(for_tests=True)
        environment |= {
            "DATABASE_URL": postgres.dsn("web"),
            "DATABASE_OWNER_URL": postgres.dsn("owner"),
            "DATABASE_WORKER_URL": postgres.dsn("worker"),
            "DATABASE_SUPERUSER_URL": postgres.dsn("superuser"),
        }
        environment["DECISIONING_TEST_TEMPLATE"] = _TEMPLATE
        building = threading.Thread(
            target=_build_template, args=(postgres, os.environ | environment), name="template", daemon=True
        )
        building.start()
        _running.callback(building.join)  # a run that is over sooner waits for it, or it would be cut off
    os.environ.update(environment)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes or disturbs others, unless `-m` asks for it by name; begin with what takes longest."""
    items.sort(key=lambda item: item.path.name not in _LONG)
    if not config.option.markexpr:
        apart = [
            item
            for item in items
            if any(
                map(
                    item.get_closest_marker,
                    ("faults", "benchmarks", "packages", "looks", "databases", "installations", "cluster"),
                )
            )
        ]
        items[:] = [item for item in items if item not in apart]
        config.hook.pytest_deselected(items=apart)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    """Stop them and remove the home."""
    _running.close()


_TEMPLATE = "decisioning_template"


def _build_template(postgres: Postgres, environment: dict[str, str]) -> None:
    """Migrate one database while the tests are collected: each process of the run begins with a copy of it, in a second."""
    unfinished = f"{_TEMPLATE}_unfinished"
    with psycopg.connect(postgres.dsn("owner"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {unfinished}")
        owner = postgres.dsn("owner", unfinished)
        subprocess.run(
            [sys.executable, "manage.py", "migrate", "--skip-checks", "--verbosity", "0"],
            cwd=PROJECT,
            env=environment | {"DATABASE_URL": owner, "DATABASE_OWNER_URL": owner},
            check=True,
        )
        connection.execute(f"ALTER DATABASE {unfinished} RENAME TO {_TEMPLATE}")


def template() -> str | None:
    """The name of a migrated database to copy, waited for; None on servers of the environment."""
    name = os.environ.get("DECISIONING_TEST_TEMPLATE")
    if name is None:
        return None
    deadline = time.monotonic() + 300
    with psycopg.connect(os.environ["DATABASE_OWNER_URL"], autocommit=True) as connection:
        while not connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).rowcount:
            if time.monotonic() > deadline:
                raise RuntimeError("The database for the tests was not migrated: see what was printed above.")
            time.sleep(0.1)
    return name


def _keep(server: Postgres | Valkey, home: Home) -> None:
    server.prepare()
    process = start(server, home.logs / f"{server.name}.log")

    def stop(server: Server = server) -> None:
        process.send_signal(server.stop_signal)
        process.wait(30)

    _running.callback(stop)


def _sweep() -> None:
    """Remove homes left behind by a run that was killed; its servers ended with it."""
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = left.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit():
            with suppress(PermissionError):
                try:
                    os.kill(int(pid), 0)
                except ProcessLookupError:
                    shutil.rmtree(left, ignore_errors=True)
