"""Everything that runs against a portal, against a real one: `manage.py up` in a home of its own, once for this file."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import TextResourceContents
from prometheus_client.parser import text_string_to_metric_families

from decisioning.agents.client import Portal, PortalError
from decisioning.embedded import PROJECT
from tests.agents import loop
from tests.installation import Installation, clean_environment, soon

WIDE = "experiment_id,variant_id,metric_id,time_since_start,count_c,count_t,mean_c,mean_t,variance_c,variance_t"


pytestmark = pytest.mark.installations


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    running = Installation(tmp_path_factory.mktemp("http") / "home")
    running.start()
    yield running
    running.stop()


@pytest.fixture
def portal(installation: Installation) -> Iterator[Portal]:
    kept = installation.credentials()
    with Portal(kept["url"], kept["api_key"]) as found:
        yield found


def last_line(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().rpartition("\n")[2]


def walked(installation: Installation, heading: str, tmp_path: Path) -> list[str]:
    """What each shell block of a chapter of the README prints, run one after the other in one shell."""
    chapter = (PROJECT / "README.md").read_text().partition(f"## {heading}")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", chapter, flags=re.DOTALL)
    script = "set -euo pipefail\n" + "".join(f"{block}\necho '=== {place}'\n" for place, block in enumerate(blocks))
    script = script.replace('".data/', f'"{installation.home}/')
    script = re.sub(r"\brows\.(json|csv)\b", rf"{tmp_path}/rows.\1", script)
    environment = clean_environment() | {"DECISIONING_HOME": str(installation.home)}

    done = subprocess.run(
        ["bash", "-c", script], cwd=PROJECT, env=environment, text=True, capture_output=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    return re.split(r"=== \d\n", done.stdout)[:-1]


def test_the_tour_of_the_readme_works_word_for_word(installation: Installation, tmp_path: Path) -> None:
    said = walked(installation, "Five minutes", tmp_path)

    created, sent, seen, answered, verified = (json.loads(part.strip()) for part in said[1:6])
    assert created["status"] == "running"
    assert sent["accepted"] == sum(1 for _ in json.loads((tmp_path / "rows.json").read_text())["rows"])
    assert (seen["recommendation"]["action"], seen["recommendation"]["state"]) == ("scale", "proposed")
    assert answered["status"] == "scaled"
    assert verified["same"] is True


def test_the_tour_of_the_terminal_works_word_for_word(installation: Installation, tmp_path: Path) -> None:
    created, pushed, decided, lineage = walked(installation, "The same from a terminal", tmp_path)

    assert created == "faster-search\n"
    assert pushed == "432 new, 0 changed, 0 there already\n"
    assert decided.startswith("scale of treatment wins (proposed)")
    assert "the gates say: scale it" in decided
    assert "found_something_uplift  treatment  pass" in decided
    assert "faster-search is scaled, by" in decided
    assert decided.endswith("a person said: scale it\n")
    table, _, listed = lineage.partition("[\n")
    assert "pushed  found_something  goal" in table
    assert "faster-search" in [row["key"] for row in json.loads("[\n" + listed)]


def test_a_recorded_history_is_brought_in_judged_and_told_and_again_changes_nothing(
    installation: Installation, portal: Portal, tmp_path: Path
) -> None:
    """Twenty daily snapshots: one experiment whose goal wins, one whose goal is nothing; one line without its variance."""
    file = tmp_path / "recorded.csv"
    lines = [WIDE]
    for day in range(1, 21):
        n = day * 400_000
        for name, mean in (("winner", 5.6), ("nothing", 5.0)):
            lines.append(f"{name},1,1,{day},{n},{n + 7},0.2,0.21,0.16,0.1659")
            lines.append(f"{name},1,4,{day},{n},{n + 7},5.0,{mean},400,400")
    lines.append("nothing,1,4,20.5,8000000,8000007,5.0,5.0,,400")
    file.write_text("\n".join(lines) + "\n")

    first = json.loads(last_line(installation.manage("import_history", str(file), "--team", "recorded", "--json")))
    second = json.loads(last_line(installation.manage("import_history", str(file), "--team", "recorded", "--json")))

    told = {arm["experiment"]: (arm["arm"], arm["action"], arm["code"]) for arm in first["arms"]}
    assert told == {
        "asos-winner": ("arm-1", "scale", "wins"),
        "asos-nothing": ("arm-1", "delete", "not_worth_it"),
    }
    assert first["bad_lines"] == [{"line": 82, "reason": "control: the variance of metric_4 is missing"}]
    assert (first["rows_accepted"], first["rows_duplicate"]) == (160, 0)
    assert (second["rows_accepted"], second["rows_duplicate"]) == (0, 160)
    assert second["arms"] == first["arms"]


def test_a_policy_brought_with_a_history_judges_it(installation: Installation, tmp_path: Path) -> None:
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    file, policy, plan = tmp_path / "long.csv", tmp_path / "two-days.json", tmp_path / "plan.json"
    lines = ["experiment,metric,variant,ts,value,n,variance"]
    for hour in range(72):
        ts = (now - timedelta(hours=71 - hour)).isoformat()
        lines += [f"long-one,paid_share,control,{ts},0.30,2000,", f"long-one,paid_share,treatment,{ts},0.34,2000,"]
    file.write_text("\n".join(lines))
    metric = {"key": "paid_share", "kind": "proportion", "expected_every_s": 3600, "freshness_target_s": 3600}
    plan.write_text(json.dumps({"target_kpis": [{"metric": metric, "role": "goal"}]}))
    policy.write_text(
        json.dumps({"min_days": 2, "gates": [{"name": "up", "kind": "uplift", "for": "goal", "delete_below": "plan"}]})
    )

    arguments = ["--plan", str(plan), "--policy", str(policy), "--team", "recorded"]
    done = installation.manage("import_history", str(file), *arguments)

    assert "1 experiments, 1 arms: 1 scale" in last_line(done)
    assert "long-one" in done.stdout


@pytest.mark.faults
def test_the_demo_comes_up_lives_and_goes_without_a_trace(installation: Installation, portal: Portal) -> None:
    installed = last_line(installation.manage("demo", "--install"))
    assert re.fullmatch(r"The demo team has 15 experiments; \d{5} rows are new\.", installed)
    assert last_line(installation.manage("demo", "--install")).endswith("; 0 rows are new.")

    key = last_line(installation.manage("create_key", "--team", "demo", "--scopes", "experiments:read"))
    with Portal(portal.url, key) as demo:
        assert {row["status"] for row in demo.experiments()} == {"running", "paused", "draft", "scaled", "deleted"}
        before = demo.experiment("gift-wrap")["freshness"]["data_watermark"]
        feed = start_feed(installation)
        assert soon(lambda: any(demo.pages("/api/refresh-log", job="demo/feed")), 90)
        feed.send_signal(signal.SIGTERM)
        assert feed.wait(5) == 0
        newest = next(demo.pages("/api/refresh-log", job="demo/feed"))
        assert newest["status"] == "succeeded"
        assert newest["rows"] > 0
        assert demo.experiment("gift-wrap")["freshness"]["data_watermark"] > before

    orphan = start_feed(installation)
    removed = last_line(installation.manage("demo", "--remove", "--yes"))
    assert re.fullmatch(r"Removed the demo team, its 15 experiments and \d+ KPI rows, policies and keys\..*", removed)
    assert orphan.wait(60) == 0  # nothing to feed any more; above all it does not make the team again
    assert last_line(installation.manage("demo", "--remove", "--yes")) == "There is no demo team."
    assert httpx.get(f"{portal.url}/api/experiments", headers={"Authorization": f"Bearer {key}"}).status_code == 401


def start_feed(installation: Installation) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "manage.py", "demo", "--feed", "--every", "1"],
        cwd=PROJECT,
        env=clean_environment() | {"DECISIONING_HOME": str(installation.home)},
    )


@pytest.mark.faults
def test_the_selfcheck_finds_the_truth_about_this_installation(installation: Installation) -> None:
    done = installation.manage("selfcheck")

    assert re.fullmatch(r"Passed: 3 of 3 as they must be, in \d+ s\.", last_line(done))


def test_the_cron_job_of_the_quick_starts_pushes_its_rows(
    portal: Portal, agent: dict[str, str], tmp_path: Path
) -> None:
    page = (PROJECT / "docs" / "quick-starts.md").read_text().partition("## A cron job")[2]
    script = page.partition("```sh\n")[2].partition("```")[0]
    with suppress(PortalError):  # the tour of the terminal may have made it
        plan = {"key": "faster-search", "name": "F", "hypothesis": "H", "target_kpis": ["found_something"]}
        portal.create_experiment(plan)
    ts = datetime.now(UTC).replace(microsecond=0).isoformat()
    row = {"metric": "found_something", "variant": "control", "ts": ts, "value": 0.41, "n": 980}
    (tmp_path / "hourly_rows").write_text(f"#!/bin/sh\necho '{json.dumps({'rows': [row]})}'\n")
    (tmp_path / "hourly_rows").chmod(0o755)

    environment = agent | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", script], env=environment, text=True, capture_output=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["accepted"] == 1


# Agents ---------------------------------------------------------------------------------------------------------------

TOOLS = {
    "list_experiments", "get_experiment", "get_decision", "explain_gate", "get_freshness", "create_experiment", "push_kpis",
    "backtest_policy", "forecast", "list_sources", "list_metrics", "get_schedule", "list_policies",
}  # fmt: skip
SERVE = [sys.executable, "-c", "from decisioning.agents.cli import main; main()", "mcp"]


@pytest.fixture(scope="module")
def agent(installation: Installation) -> dict[str, str]:
    """What an agent's process gets to know: the address and a key that was made for an agent."""
    kept = installation.credentials()
    scopes = ["experiments:read", "experiments:write", "telemetry:write"]
    with Portal(kept["url"], kept["api_key"]) as portal:
        key = portal.post("/api/keys", {"scopes": scopes, "agent": True})["key"]
    return clean_environment() | {"DECISIONING_URL": kept["url"], "DECISIONING_API_KEY": key}


async def told(client: Client, tool: str, **arguments: object) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    text = str(getattr(result.content[0], "text", ""))
    assert not result.is_error, text
    assert len(text.encode()) <= 2048
    found: dict[str, Any] = json.loads(text)
    return found


def hourly(metric: str, days: int) -> list[dict[str, object]]:
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    return [
        {"metric": metric, "variant": v, "ts": (now - timedelta(hours=h)).isoformat(), "value": share, "n": 2000}
        for h in range(days * 24)
        for v, share in (("control", 0.30), ("treatment", 0.34))
    ]


async def from_an_idea_to_a_proposal(client: Client, key: str, wait_s: int = 30) -> dict[str, Any]:
    """Create, push, get the decision: each call is the one that the answer before it names."""
    goal = {"key": "replied", "kind": "proportion", "expected_every_s": 3600, "freshness_target_s": 3600}
    started_at = (datetime.now(UTC) - timedelta(days=9)).isoformat()
    made = await told(
        client,
        "create_experiment",
        name="Warmer greeting",
        hypothesis="More people reply",
        key=key,
        started_at=started_at,
        target_kpis=[{"metric": goal, "minimum_effect": 0.02}],
    )
    assert made["next"] == f"push_kpis('{key}', rows)"
    sent = await told(client, "push_kpis", experiment=key, rows=hourly("replied", 9))
    assert (sent["new"], sent["next"]) == (432, f"get_decision('{key}', wait_s=30)")
    return await told(client, "get_decision", experiment=key, wait_s=wait_s)


def test_an_agent_goes_from_an_idea_to_a_proposal_over_stdio_and_a_person_decides(
    installation: Installation, portal: Portal, agent: dict[str, str]
) -> None:
    async def walk() -> None:
        server = StdioServerParameters(command=SERVE[0], args=SERVE[1:], env=agent, cwd=PROJECT)
        async with Client(server) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
            found = await from_an_idea_to_a_proposal(client, "warmer-greeting")
            assert (found["recommendation"]["action"], found["recommendation"]["state"]) == ("scale", "proposed")
            assert found["next"].startswith(f"a person answers at {portal.url}/experiments/warmer-greeting")
            listed = await told(client, "list_experiments", recommendation="scale")
            assert "warmer-greeting" in [e["experiment"] for e in listed["experiments"]]
            shown = await told(client, "get_experiment", experiment="warmer-greeting")
            assert shown["as_of"] == found["as_of"]
            why = await told(client, "explain_gate", experiment="warmer-greeting", gate="replied_uplift")
            assert why["rule"]["name"] == "{metric}_uplift"
            assert (await told(client, "get_freshness", experiment="warmer-greeting"))["tracked"] == 1
            (goal,) = (await told(client, "forecast", experiment=shown["experiment"]))["goals"] or [
                {"metric": "replied"}
            ]
            assert goal["metric"] == "replied"
            assert (await told(client, "list_sources"))["count"] == 0
            assert any(
                m.startswith("replied (") for m in (await told(client, "list_metrics", search="repl"))["metrics"]
            )
            assert "default" in [p["policy"] for p in (await told(client, "list_policies"))["policies"]]
            for uri in ("experiments/warmer-greeting", "decisions/warmer-greeting", "policies/default"):
                (content,) = (await client.read_resource(f"decisioning://{uri}")).contents
                assert isinstance(content, TextResourceContents)
                assert json.loads(content.text)

    loop.run(walk)
    proposed = portal.decision("warmer-greeting")["recommendation"]
    key = agent["DECISIONING_API_KEY"]
    for path, body in (
        ("experiments/warmer-greeting/decision", {"evidence_digest": proposed["evidence_digest"], "action": "accept"}),
        ("policies/default/versions/1/activate", {}),
        ("policies/default/versions/1/backtest", {}),
    ):
        answer = httpx.post(f"{portal.url}/api/{path}", json=body, headers={"Authorization": f"Bearer {key}"})
        assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied"), path
    assert portal.answer("warmer-greeting", proposed["evidence_digest"])["status"] == "scaled"


def test_agents_over_http_come_by_loopback_names_and_with_their_own_key(
    installation: Installation, agent: dict[str, str]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/mcp"

    async def walk() -> None:
        async with Client(url) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
            found = await from_an_idea_to_a_proposal(client, "warmer-farewell", wait_s=0)
            assert found["recommendation"]["action"] in ("hold", "scale")  # judged by now or not
        stranger = httpx2.AsyncClient(headers={"Authorization": "Bearer dk_00000000_nobody"})
        async with stranger, Client(streamable_http_client(url, http_client=stranger)) as client:
            result = await client.call_tool("list_experiments", {})
            assert result.is_error
            assert "(not_authenticated, 401)" in str(getattr(result.content[0], "text", ""))

    serving = subprocess.Popen([*SERVE, "--http", "--port", str(port)], cwd=PROJECT, env=agent)
    try:
        assert soon(lambda: listens(port), 30)
        loop.run(walk)
        rebound = httpx.post(url, json={}, headers={"Host": "evil.example", "Accept": "application/json"})
        assert (rebound.status_code, "not called 'evil.example'" in rebound.text) == (421, True)
    finally:
        serving.terminate()
        serving.wait(10)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_prometheus_can_scrape_it_from_this_machine(installation: Installation) -> None:
    answer = httpx.get(f"{installation.credentials()['url']}/metrics", timeout=10)

    assert answer.status_code == 200
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert any(name.startswith("decisioning_") and family.samples for name, family in families.items())
