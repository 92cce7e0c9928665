"""The portal behind PgBouncer in transaction mode, where a session is anybody's from one transaction to the next."""

import concurrent.futures
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import psycopg
import pytest

from decisioning.embedded import Home, Postgres, free_port, launch, start
from telemetry.models import Source
from telemetry.sources import engines
from telemetry.sources.refusals import SourceFailed
from tests.installation import Installation, soon
from tests.programs import needs_program

pytestmark = pytest.mark.databases
NAMES = {"web": "DATABASE_URL", "owner": "DATABASE_OWNER_URL", "worker": "DATABASE_WORKER_URL"}


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL with the portal's roles and an empty database."""
    home = Home(tmp_path_factory.mktemp("server") / "home")
    home.make()
    found = Postgres(home, durable=False)
    found.prepare()
    process = start(found, home.logs / "postgres.log")
    found.bootstrap()
    yield found
    process.send_signal(found.stop_signal)
    process.wait(30)


@pytest.fixture(scope="module")
def pooler(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a PgBouncer before it, which has two sessions for each role and all their clients."""
    program = needs_program("pgbouncer")
    folder, port = tmp_path_factory.mktemp("pooler"), free_port()
    folder.chmod(0o755)
    users = [f'"decisioning_{role}" "{postgres.home.secret(role)}"' for role in NAMES] + ['"shop" "shop"']
    with psycopg.connect(postgres.dsn("superuser", "postgres"), autocommit=True) as db:
        db.execute("CREATE ROLE shop LOGIN PASSWORD 'shop'")
        db.execute("CREATE DATABASE shop OWNER shop")
    (folder / "users.txt").write_text("\n".join([*users, ""]))
    (folder / "pgbouncer.ini").write_text(f"""
[databases]
* = host=127.0.0.1 port={postgres.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users.txt
pool_mode = transaction
default_pool_size = 2
max_client_conn = 200
""")
    log = folder / "log"
    process = launch([program, str(folder / "pgbouncer.ini")], account=postgres.account, output=log)
    try:
        assert soon(lambda: _answers(url(postgres, port, "web"))), log.read_text()
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _answers(dsn: str) -> bool:
    try:
        psycopg.connect(dsn, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def url(postgres: Postgres, port: int, role: str) -> str:
    return postgres.dsn(role).replace(f":{postgres.port}/", f":{port}/")


def environment(postgres: Postgres, port: int, mode: str = "transaction") -> dict[str, str]:
    return {name: url(postgres, port, role) for role, name in NAMES.items()} | {"DECISIONING_POOL_MODE": mode}


@pytest.fixture(scope="module")
def installation(postgres: Postgres, pooler: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(
        tmp_path_factory.mktemp("pooled") / "home", environment=environment(postgres, pooler), options=("--web", "2")
    )
    made.start()
    yield made
    made.stop()


def test_an_experiment_is_decided_through_the_pooler_by_many_clients_at_once(installation: Installation) -> None:
    held = installation.credentials()
    top = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    goal = {"key": "pooled_share", "kind": "proportion", "expected_every_s": 3600, "freshness_target_s": 3600}
    plan = {"key": "pooled", "name": "Pooled", "hypothesis": "H", "started_at": (top - timedelta(days=9)).isoformat(),
            "target_kpis": [{"metric": goal, "minimum_effect": 0.02}]}  # fmt: skip
    rows = [
        {"metric": "pooled_share", "variant": variant, "ts": (top - timedelta(hours=hours)).isoformat(), "value": share, "n": 2000}
        for hours in range(9 * 24) for variant, share in (("control", 0.30), ("treatment", 0.34))
    ]  # fmt: skip
    headers = {"Authorization": f"Bearer {held['api_key']}"}
    with httpx.Client(base_url=held["url"], headers=headers, timeout=30) as api:
        assert api.post("/api/experiments", json=plan).status_code == 201
        answer = api.post("/api/experiments/pooled/kpis", json={"rows": rows})
        assert (answer.status_code, answer.json()["accepted"]) == (200, len(rows))

        def action() -> str:
            return str(api.get("/api/experiments/pooled/decision").json()["recommendation"]["action"])

        assert soon(lambda: action() == "scale", 60)
        digest = api.get("/api/experiments/pooled/decision").json()["recommendation"]["evidence_digest"]

        def read(number: int) -> int:
            return api.get(f"/api/experiments?limit={1 + number % 5}").status_code

        with concurrent.futures.ThreadPoolExecutor(16) as many:
            assert {*many.map(read, range(160))} == {200}
            stranger = [
                *many.map(lambda _: httpx.get(f"{held['url']}/api/experiments", timeout=30).status_code, range(20))
            ]
        assert {*stranger} == {401}, "whom a session was bound to a transaction ago is forgotten"
        answered = api.post("/api/experiments/pooled/decision", json={"action": "accept", "evidence_digest": digest})
        assert answered.status_code == 201, answer.text
        assert api.post(f"/api/experiments/pooled/evidence/{digest}/verify").json()["same"] is True
        assert soon(lambda: api.get("/readyz").status_code == 200)
    log = "".join(path.read_text() for path in Path(installation.home).rglob("*.log"))
    assert "prepared statement" not in log


@pytest.mark.django_db
@pytest.mark.parametrize("through", ["the pooler", "nothing"])
def test_a_source_is_read_through_it_as_it_is_without_and_writes_nothing(
    postgres: Postgres, pooler: int, monkeypatch: pytest.MonkeyPatch, through: str
) -> None:
    port = pooler if through == "the pooler" else postgres.port
    monkeypatch.setenv("SHOP_URL", f"postgresql://shop:shop@127.0.0.1:{port}/shop")
    top = datetime(2026, 11, 24, 12, tzinfo=UTC)

    def ask(query: str, limit_s: float = 10) -> list[dict[str, object]]:
        source = Source(kind="sql", url_env="SHOP_URL", query=query, metrics=["m"])
        return [
            row
            for chunk in engines.read(source, since=top - timedelta(days=1), until=top, limit_s=limit_s)
            for row in chunk
        ]

    shown = "SELECT i AS n, 1 / 3::float8 AS value, ts FROM (SELECT i, timestamptz '2026-11-24 12:00+03' - i * interval '1 s' AS ts FROM generate_series(1, 12000) AS i) AS t"
    rows = ask(f"{shown} WHERE ts > :since AND ts <= :until ORDER BY i")
    assert (len(rows), rows[0]["value"], rows[0]["ts"]) == (12_000, 1 / 3, top - timedelta(hours=3, seconds=1))
    assert [*ask("SELECT current_setting('TimeZone') AS value WHERE :since < :until")] == [{"value": "UTC"}]
    for query, said in (
        ("SELECT lo_create(0) AS value WHERE :since < :until", "read-only transaction"),
        ("SELECT pg_sleep(9) AS value WHERE :since < :until", "statement timeout"),
        ("SELECT set_config('transaction_read_only', 'off', true) AS value WHERE :since < :until", "read-write mode"),
    ):
        with pytest.raises(SourceFailed, match=said):
            ask(query, limit_s=1)


def refused(made: Installation) -> str:
    """What an installation says that does not start."""
    with pytest.raises(AssertionError) as told:
        made.start()
    assert made.process
    assert made.process.stdout
    made.process.stdout.close()
    return str(told.value)


def test_an_installation_that_does_not_say_so_is_told_what_to_write(
    postgres: Postgres, pooler: int, tmp_path: Path
) -> None:
    made = Installation(tmp_path / "home", environment=environment(postgres, pooler, ""))
    assert "Set DECISIONING_POOL_MODE=transaction" in refused(made)


def test_roles_without_their_settings_are_told_what_to_run(postgres: Postgres, pooler: int, tmp_path: Path) -> None:
    with psycopg.connect(postgres.dsn("superuser"), autocommit=True) as db:
        for role in NAMES:
            db.execute(f"ALTER ROLE decisioning_{role} RESET ALL")
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [f"decisioning_{role}"]
            )
    made = Installation(tmp_path / "home", environment=environment(postgres, pooler))
    assert "Run docker/roles.sh" in refused(made)
