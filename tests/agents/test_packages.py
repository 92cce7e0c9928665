"""Other people's packages against a running installation, over HTTP: a fuzzer, a generated client, lineage, events."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

from decisioning.access.scopes import Scope
from decisioning.agents.client import Portal, PortalError
from decisioning.embedded import PROJECT
from tests.installation import Installation, clean_environment, soon
from tests.programs import needs_program

pytestmark = pytest.mark.packages
CLIENTS = Path(__file__).with_name("clients")
"""Programs in TypeScript, and in package.json the generators they are written for; Node.js 20."""

GATES = [{"name": "{metric}_uplift", "kind": "uplift", "for": "goal", "delete_below": "plan"}]


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    running = Installation(tmp_path_factory.mktemp("packages") / "home")
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def key(installation: Installation) -> str:
    """Every scope and no hurry."""
    asked = ["create_key", "--team", "main", "--scopes", ",".join(Scope), "--rate", "1000000/m"]
    made = installation.manage(*asked)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip().rpartition("\n")[2]


@pytest.fixture
def portal(installation: Installation, key: str) -> Iterator[Portal]:
    with Portal(installation.credentials()["url"], key) as found:
        yield found


def seed(portal: Portal) -> dict[str, list[Any]]:
    """Something of everything, so that a fuzzer gets past 404; the values that name it by parameter."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    goal = {"key": "seeded_share", "kind": "proportion", "expected_every_s": 3600, "freshness_target_s": 3600}
    plan: dict[str, Any] = {
        "name": "Seeded",
        "hypothesis": "H",
        "target_kpis": [{"metric": goal, "minimum_effect": 0.02}],
    }
    portal.create_experiment(plan | {"key": "seeded", "started_at": (now - timedelta(days=9)).isoformat()})
    plan |= {"target_kpis": ["seeded_share"]}
    portal.create_experiment(plan | {"key": "drafted", "start": False})
    portal.create_experiment(plan | {"key": "running"})
    rows = [
        {
            "metric": "seeded_share",
            "variant": v,
            "ts": (now - timedelta(hours=h)).isoformat(),
            "value": share,
            "n": 2000,
        }
        for h in range(9 * 24)
        for v, share in (("control", 0.30), ("treatment", 0.34))
    ]
    portal.push("seeded", rows)
    assert soon(lambda: portal.decision("seeded")["recommendation"]["action"] == "scale", 60)
    portal.post("/api/policies", {"name": "bold", "body": {"gates": GATES}})
    portal.post("/api/policies/bold/versions", {"body": {"gates": GATES, "persist": 2}})
    strange = {"specversion": "1.0", "id": "1", "source": "/x", "type": "of.another.world.v1", "data": {}}
    portal.http.post("/api/events", json=strange, headers={"Content-Type": "application/cloudevents+json"})
    digest = portal.decision("seeded")["recommendation"]["evidence_digest"]
    return {
        "ref": ["seeded", "drafted", "running", "1"],
        "name": ["bold", "default"],
        "number": [1, 2],
        "digest": [digest],
        "id": [portal.get("/api/quarantine")["results"][0]["id"]],
        "key": ["seeded_share"],
        "type_": ["decisioning.metric.observed.v1"],
        "words": ["seeded", "running", "main", "control", "treatment", "seeded_share", "bold", digest, now.isoformat()],
    }


def test_a_fuzzer_finds_no_server_error_and_no_answer_that_is_not_declared(
    portal: Portal, key: str, tmp_path: Path
) -> None:
    known = seed(portal)
    words = known.pop("words")
    lines = [f"headers = {{ Authorization = {json.dumps(f'Bearer {key}')} }}", "[dictionaries.words]"]
    lines.append(f"values = {json.dumps(words)}")
    for name, values in known.items():
        lines += [f"[dictionaries.{name}]", f"values = {json.dumps(values)}"]
    lines += ["[generation.dictionaries]", 'string = { dictionary = "words", probability = 0.3 }', "[parameters]"]
    lines += [f'"path.{name}" = {{ dictionary = "{name}", probability = 0.8 }}' for name in known]
    (tmp_path / "schemathesis.toml").write_text("\n".join(lines))
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "--config-file",
        str(tmp_path / "schemathesis.toml"),
    ]
    command += ["run", f"{portal.url}/api/openapi.json", "--exclude-operation-id", "deleteOneKey"]
    command += [
        "--checks",
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
    ]
    command += ["--phases", "coverage,fuzzing", "--max-examples", "40", "--max-time", os.environ.get("FUZZ_S", "150")]
    command += [
        "--continue-on-failure",
        "--no-color",
        "--generation-database",
        "none",
        "--suppress-health-check",
        "all",
    ]

    done = subprocess.run(command, cwd=tmp_path, env=clean_environment(), text=True, capture_output=True, check=False)

    sys.stdout.write(done.stdout[-4_000:])
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert " generated, " in done.stdout


ANSWERED = {"created": "running", "pushed": 2, "action": "hold", "taken": 1, "refused": "key_taken"}
"""What every generated client is told from an experiment's creation to its decision, and when it is created again."""


@pytest.fixture
def metric(portal: Portal) -> str:
    key = "generated_share"
    try:
        portal.post(
            "/api/metrics", {"key": key, "kind": "proportion", "expected_every_s": 3600, "freshness_target_s": 3600}
        )
    except PortalError as refusal:
        assert refusal.code == "key_taken"  # noqa: PT017 - another client was here before
    return key


def run(*command: str, within: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=within, env=clean_environment() | environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, (command, done.stdout[-4_000:], done.stderr[-4_000:])
    return done.stdout


def test_a_python_client_generated_from_the_document_works(
    portal: Portal, key: str, metric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openapi.json").write_bytes(httpx.get(f"{portal.url}/api/openapi.json").content)
    generator = ["uv", "tool", "run", "--from", "openapi-python-client==0.29.1", "openapi-python-client", "generate"]
    (tmp_path / "portal.yml").write_text(of_the_quick_starts("yaml"))
    asked = ["--path", "openapi.json", "--output-path", "generated", "--meta", "none", "--config", "portal.yml"]
    run(*generator, *asked, "--fail-on-warning", within=tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    models = importlib.import_module("generated.models")
    client = importlib.import_module("generated.client").AuthenticatedClient(base_url=portal.url, token=key)

    def call(name: str, *path: str, **body: Any) -> Any:
        return importlib.import_module(f"generated.api.{name}").sync(*path, client=client, **body)

    def row(variant: str, hours_ago: int = 0) -> dict[str, Any]:
        ts = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=hours_ago)
        return {"metric": metric, "variant": variant, "ts": ts.isoformat(), "value": 0.25, "n": 1000}

    plan = {"key": "by-python", "name": "Generated", "hypothesis": "It works", "target_kpis": [metric]}
    rows = models.KpiRows.from_dict({"rows": [row("control"), row("treatment")]})
    told = {
        "specversion": "1.0", "id": "1", "source": "/by-python", "type": "decisioning.metric.observed.v1",
        "data": {"experiment": "by-python", **row("control", 1)},
    }  # fmt: skip
    with client:
        answered = {
            "created": call("experiments.post_experiments", body=models.ExperimentIn.from_dict(plan)).status,
            "pushed": call("experiments.post_kpis", "by-python", body=rows).accepted,
            "action": call("experiments.get_one_decision", "by-python").recommendation.action,
            "taken": call("events.post_takes_events", body=models.CloudEvent.from_dict(told)).accepted,
            "refused": call("experiments.post_experiments", body=models.ExperimentIn.from_dict(plan)).code,
        }
    assert answered == ANSWERED


def of_the_quick_starts(language: str) -> str:
    """What the page says of generated clients in this language."""
    part = (
        (PROJECT / "docs" / "quick-starts.md").read_text().partition("## A generated client")[2].partition("\n## ")[0]
    )
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", part, flags=re.M | re.S)
    return str(found)


@pytest.fixture(scope="module")
def clients(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of the folder `clients` beside what three generators make of the document, which they are checked against."""
    needs_program("npm")
    folder = tmp_path_factory.mktemp("clients") / "clients"
    shutil.copytree(CLIENTS, folder, ignore=shutil.ignore_patterns("node_modules", "generated", "built"))
    url = installation.credentials()["url"]
    (folder / "openapi.json").write_bytes(httpx.get(f"{url}/api/openapi.json").content)
    run("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", within=folder)
    for line in filter(None, of_the_quick_starts("sh").splitlines()):
        run(*shlex.split(line, comments=True), within=folder, DECISIONING_URL=url)
    run("npx", "tsc", "--project", ".", within=folder)
    return folder


@pytest.mark.parametrize("name", ["openapi_typescript", "hey_api", "orval"])
def test_a_typescript_client_generated_from_the_document_works(
    portal: Portal, key: str, metric: str, clients: Path, name: str
) -> None:
    built = f"built/{name}.mjs"
    run(
        "npx",
        "esbuild",
        f"{name}.ts",
        "--bundle",
        "--platform=node",
        "--format=esm",
        f"--outfile={built}",
        within=clients,
    )
    told = run("node", built, within=clients, DECISIONING_URL=portal.url, DECISIONING_API_KEY=key, METRIC=metric)
    assert json.loads(told) == ANSWERED


def test_a_job_tells_its_runs_by_environment_variables_alone(portal: Portal, key: str) -> None:
    job = """
        from datetime import UTC, datetime
        from openlineage.client import OpenLineageClient
        from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
        from openlineage.client.uuid import generate_new_uuid
        run, job, client = Run(str(generate_new_uuid())), Job("airflow", "orders.load"), OpenLineageClient()
        told = {"run": run, "job": job, "producer": "https://example.org/airflow"}
        for state in (RunState.START, RunState.COMPLETE):
            client.emit(RunEvent(eventType=state, eventTime=datetime.now(UTC).isoformat(), **told))
    """
    page = (PROJECT / "docs" / "quick-starts.md").read_text()
    said = dict(re.findall(r"^export (OPENLINEAGE_\w+)=(.*)$", page, flags=re.MULTILINE))
    environment = clean_environment() | said | {"OPENLINEAGE_URL": portal.url, "OPENLINEAGE_API_KEY": key}
    assert set(said) == {"OPENLINEAGE_URL", "OPENLINEAGE_API_KEY"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(job)], cwd=PROJECT, env=environment, check=True)

    (run,) = portal.pages("/api/refresh-log", job="airflow/orders.load")
    assert (run["status"], run["error"]) == ("succeeded", None)


@pytest.mark.parametrize("binding", [to_binary_event, to_structured_event])
def test_rows_come_as_cloud_events(portal: Portal, key: str, binding: Any) -> None:
    try:
        portal.create_experiment({"key": "clouded", "name": "C", "hypothesis": "H", "target_kpis": ["clouded_share"]})
    except PortalError as refusal:
        assert refusal.code == "key_taken"  # noqa: PT017 - the second binding finds it there
    ts = datetime.now(UTC).replace(microsecond=0).isoformat()
    data = {"experiment": "clouded", "metric": "clouded_share", "variant": "control", "ts": ts, "value": 0.5, "n": 10}
    attributes = {
        "id": binding.__name__, "source": "/tests", "specversion": "1.0", "type": "decisioning.metric.observed.v1",
        "datacontenttype": "application/json",
    }  # fmt: skip
    message = binding(CloudEvent(attributes, data))

    answer = httpx.post(
        f"{portal.url}/api/events",
        content=message.body,
        headers={**message.headers, "Authorization": f"Bearer {key}"},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["accepted"] == 1
