"""docker-compose.yml, as far as it can be checked without an engine."""

import re
import subprocess
from string import Template
from typing import Any

import pytest
import yaml

from decisioning.celery import app
from decisioning.embedded import PROJECT

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
        assert held["DATABASE_URL"] == f"postgresql://{login}@postgres:5432/decisioning"
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


def test_the_data_of_postgres_18_is_on_a_volume_where_its_image_keeps_it(services: dict[str, Any]) -> None:
    assert services["postgres"]["image"] == "postgres:18"
    assert services["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]
    assert set(yaml.safe_load(COMPOSE)["volumes"]) == {"postgres", "proxy"}


def test_what_is_told_to_the_outside_is_no_workers_business(services: dict[str, Any]) -> None:
    """A receiver that hangs can hold up the courier's threads alone: no tick of the gates waits in its queue."""
    told = [entry["task"] for entry in app.conf.beat_schedule.values() if entry["task"].startswith("notices.")]
    queues = {task: app.amqp.router.route({}, task)["queue"].name for task in [*told, "gates.tick"]}

    assert {queues[task] for task in told} == {"notices"}
    assert len(told) == 4
    assert queues["gates.tick"] == "celery"
    assert services["courier"]["command"][4:6] == ["--queues", "notices"]
    assert "--queues" not in services["worker"]["command"]
