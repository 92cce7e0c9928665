"""docker-compose.yml, as far as it can be checked without an engine."""

import re
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
import yaml
from django.conf import settings
from django.db.utils import ConnectionHandler
from kombu.exceptions import OperationalError
from psycopg.conninfo import conninfo_to_dict

from decisioning.celery import app
from decisioning.database.backend.base import DatabaseWrapper
from decisioning.embedded import PROJECT
from decisioning.settings import database

COMPOSE = (PROJECT / "docker-compose.yml").read_text()


@pytest.fixture
def environment() -> dict[str, str]:
    """A new .env."""
    command = ["sh", str(PROJECT / "docker" / "env.sh"), "decisions.example.org"]
    written = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(line.split("=", 1) for line in written.splitlines())


@pytest.fixture
def services(environment: dict[str, str]) -> dict[str, Any]:
    """The services, with the variables put in as compose does."""
    plain = re.sub(r"\$\{(\w+):\?[^}]*\}", r"${\1}", COMPOSE)
    found: dict[str, Any] = yaml.safe_load(Template(plain).substitute(environment))["services"]
    return found


def test_no_variable_has_a_default_and_env_sh_writes_them_all(environment: dict[str, str]) -> None:
    used = re.findall(r"(?<!\$)\$\{?(\w+)(:\?)?", COMPOSE)

    assert {demanded for _, demanded in used} == {":?"}
    assert {name for name, _ in used} == set(environment) | {"DECISIONING_ADMIN_PASSWORD"}


def test_every_password_is_long_and_another_each_time(environment: dict[str, str]) -> None:
    secrets = [value for name, value in environment.items() if name != "DECISIONING_SITE"]

    assert min(map(len, secrets)) >= 48
    assert len(set(secrets)) == len(secrets) == 8


def test_each_service_logs_in_as_its_own_role(services: dict[str, Any], environment: dict[str, str]) -> None:
    for name, role in {
        "migrate": "owner",
        "web": "web",
        "worker": "worker",
        "courier": "worker",
        "beat": "worker",
    }.items():
        held = services[name]["environment"]
        login = f"decisioning_{role}:{environment[f'DECISIONING_{role.upper()}_PASSWORD']}"
        assert held["DECISIONING_ROLE"] == role
        assert (
            held["DATABASE_URL"]
            == f"postgresql://{login}@postgres:5432/decisioning?sslmode=verify-full&sslrootcert=/tls/ca.crt"
        )
        assert {value for key, value in held.items() if key.startswith("DATABASE")} == {held["DATABASE_URL"]}


def test_web_and_worker_can_be_scaled_behind_the_proxy(services: dict[str, Any]) -> None:
    for name in ("web", "worker"):
        assert not {"ports", "container_name", "hostname"} & services[name].keys()
    assert [name for name, service in services.items() if "ports" in service] == ["proxy"]
    assert "dynamic a web 8000" in (PROJECT / "docker" / "Caddyfile").read_text()


def test_nothing_starts_before_what_it_needs_is_healthy(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            once = services[needed]["restart"] == "no"
            assert how["condition"] == ("service_completed_successfully" if once else "service_healthy"), (name, needed)
            assert once or "healthcheck" in services[needed], (name, needed)
    assert set(services["web"]["depends_on"]) == {"migrate", "postgres", "valkey"}
    assert set(services["migrate"]["depends_on"]) == {"roles"}
    assert "certificates" in services["postgres"]["depends_on"].keys() & services["valkey"]["depends_on"].keys()


def test_the_data_of_postgres_18_is_on_a_volume_where_its_image_keeps_it(services: dict[str, Any]) -> None:
    assert services["postgres"]["image"].startswith("postgres:18.")
    assert "postgres:/var/lib/postgresql" in services["postgres"]["volumes"]


def test_every_image_is_named_by_its_version(services: dict[str, Any]) -> None:
    images = {service["image"] for service in services.values()} - {"decisioning"}
    lines = [*images, (PROJECT / "Dockerfile").read_text().splitlines()[1].removeprefix("FROM ")]
    for image in lines:
        assert re.search(r":\d+\.\d+(\.\d+)?(-slim)?$", image), image


def test_the_audits_anchor_is_one_for_all_who_seal_and_outlives_them(services: dict[str, Any]) -> None:
    """A container that is made anew has an empty home; the volume is what `verify_audit` finds a cut tail by."""
    for name in ("worker", "courier"):
        file = Path(services[name]["environment"]["DECISIONING_ANCHOR"])
        assert f"anchor:{file.parent}" in services[name]["volumes"]
    assert "anchor" in yaml.safe_load(COMPOSE)["volumes"]
    assert not any("anchor:" in place for place in services["web"]["volumes"]), "who answers requests cannot touch it"
    assert re.search(r"install -d -o decisioning .*/anchor", (PROJECT / "Dockerfile").read_text())


# --- TLS inside -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the service `certificates` makes."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(["sh", str(PROJECT / "docker" / "certificates.sh"), str(folder)], check=True, capture_output=True)
    return folder


class Served(threading.Thread):
    """The test's own server, which has no TLS, behind TLS with a certificate of Compose's."""

    def __init__(self, certificate: Path, port: int, *, asks_first: bool) -> None:
        super().__init__(daemon=True)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate / "server.crt", certificate / "server.key")
        self.port, self.asks_first = port, asks_first
        self.door = socket.create_server(("127.0.0.1", 0))
        self.start()

    @property
    def at(self) -> int:
        return int(self.door.getsockname()[1])

    def run(self) -> None:
        while True:
            client, _ = self.door.accept()
            threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            if self.asks_first:  # PostgreSQL's clients ask in the clear whether there is TLS
                client.recv(8)
                client.sendall(b"S")
            with (
                self.context.wrap_socket(client, server_side=True) as inside,
                socket.create_connection(("127.0.0.1", self.port)) as server,
            ):
                back = threading.Thread(target=_pour, args=[server, inside], daemon=True)
                back.start()
                _pour(inside, server)
                back.join(5)


def _pour(source: socket.socket, into: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            into.sendall(data)
    with suppress(OSError):
        into.shutdown(socket.SHUT_WR)


def _as_here(url: str, host: str, here: int, tls: Path, login: str) -> str:
    """A URL of Compose's for this machine."""
    return re.sub(rf"//.*@{host}:\d+", f"//{login}@localhost:{here}", url).replace(
        "/tls/ca.crt", str(tls / "ca" / "ca.crt")
    )


@pytest.mark.parametrize("name", ["web", "worker", "migrate"])
def test_who_connects_to_postgresql_verifies_who_answers(
    services: dict[str, Any], tls: Path, tmp_path: Path, name: str
) -> None:
    own = conninfo_to_dict(settings.ROLE_URLS["web"])
    served = Served(tls / "postgres", int(own["port"] or 5432), asks_first=True)
    url = _as_here(
        services[name]["environment"]["DATABASE_URL"], "postgres", served.at, tls, f"{own['user']}:{own['password']}"
    )
    wrapper = DatabaseWrapper(
        ConnectionHandler({"default": database(url) | {"NAME": own["dbname"]}}).settings["default"]
    )
    with wrapper.get_new_connection(wrapper.get_connection_params()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert connection.pgconn.ssl_in_use

    other = tmp_path / "other"
    subprocess.run(["sh", str(PROJECT / "docker" / "certificates.sh"), str(other)], check=True, capture_output=True)
    impostor = Served(other / "postgres", int(own["port"] or 5432), asks_first=True)
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        psycopg.connect(url.replace(f":{served.at}/", f":{impostor.at}/"))
    with pytest.raises(psycopg.OperationalError, match="valkey"):  # a certificate of ours for another name
        psycopg.connect(
            url.replace(f":{served.at}/", f":{Served(tls / 'valkey', 1, asks_first=True).at}/").replace(
                "localhost", "127.0.0.1"
            )
        )


def test_who_connects_to_valkey_verifies_who_answers(services: dict[str, Any], tls: Path, tmp_path: Path) -> None:
    own = urlsplit(settings.REDIS_URL)
    served = Served(tls / "valkey", own.port or 6379, asks_first=False)
    url = _as_here(services["web"]["environment"]["REDIS_URL"], "valkey", served.at, tls, f":{own.password}")
    assert redis.Redis.from_url(url).ping()
    with app.connection(url) as broker:  # as Celery does
        broker.ensure_connection(max_retries=1)

    other = tmp_path / "other"
    subprocess.run(["sh", str(PROJECT / "docker" / "certificates.sh"), str(other)], check=True, capture_output=True)
    false = url.replace(f":{served.at}/", f":{Served(other / 'valkey', own.port or 6379, asks_first=False).at}/")
    with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
        redis.Redis.from_url(false).ping()
    with pytest.raises(OperationalError, match="certificate verify failed"), app.connection(false) as broker:
        broker.ensure_connection(max_retries=1)


def test_nobody_connects_to_postgresql_or_valkey_in_the_clear(services: dict[str, Any]) -> None:
    rules = [
        line.split()
        for line in (PROJECT / "docker" / "pg_hba.conf").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert [rule for rule in rules if rule[0] not in {"hostssl", "local"}] == []
    assert {rule[-1] for rule in rules if rule[0] == "hostssl"} == {"scram-sha-256"}
    assert "--port 0 --tls-port 6379" in services["valkey"]["command"][2]
    assert {name for name, service in services.items() if "tls-postgres:/tls:ro" in service.get("volumes", [])} == {
        "postgres"
    }


def test_certificates_that_last_are_kept_and_asked_for_are_made_anew(tls: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    shutil.copytree(tls, folder)
    command = ["sh", str(PROJECT / "docker" / "certificates.sh"), str(folder)]
    before = (folder / "ca" / "ca.crt").read_bytes()
    subprocess.run(command, check=True, capture_output=True)
    assert (folder / "ca" / "ca.crt").read_bytes() == before
    subprocess.run([*command, "--new"], check=True, capture_output=True)
    assert (folder / "ca" / "ca.crt").read_bytes() != before
    assert not list(folder.rglob("ca.key")), "nobody can make another certificate of this authority"
    assert all(stat.S_IMODE(key.stat().st_mode) == 0o600 for key in folder.rglob("*.key"))


def test_what_is_told_to_the_outside_is_no_workers_business(services: dict[str, Any]) -> None:
    """A receiver that hangs can hold up the courier's threads alone: no tick of the gates waits in its queue."""
    told = [entry["task"] for entry in app.conf.beat_schedule.values() if entry["task"].startswith("notices.")]
    queues = {task: app.amqp.router.route({}, task)["queue"].name for task in [*told, "gates.tick"]}

    assert {queues[task] for task in told} == {"notices"}
    assert len(told) == 4
    assert queues["gates.tick"] == "celery"
    assert services["courier"]["command"][4:6] == ["--queues", "notices"]
    assert "--queues" not in services["worker"]["command"]
