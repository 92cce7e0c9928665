"""Everything that runs against a portal, against a real one: `manage.py up` in a home of its own, once for this file."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from decisioning.agents.client import Portal
from decisioning.embedded import PROJECT
from tests.installation import Installation, clean_environment, soon

WIDE = "experiment_id,variant_id,metric_id,time_since_start,count_c,count_t,mean_c,mean_t,variance_c,variance_t"


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
    assert re.fullmatch(r"The demo team has 13 experiments; \d{5} rows are new\.", installed)
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
    assert re.fullmatch(r"Removed the demo team, its 13 experiments and \d+ KPI rows, policies and keys\..*", removed)
    assert orphan.wait(60) == 0  # nothing to feed any more; above all it does not make the team again
    assert last_line(installation.manage("demo", "--remove", "--yes")) == "There is no demo team."
    assert httpx.get(f"{portal.url}/api/experiments", headers={"Authorization": f"Bearer {key}"}).status_code == 401


def start_feed(installation: Installation) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "manage.py", "demo", "--feed", "--every", "1"],
        cwd=PROJECT,
        env=clean_environment() | {"DECISIONING_HOME": str(installation.home)},
    )


def test_the_terminal_client_finds_the_installation_by_its_home(installation: Installation) -> None:
    environment = clean_environment() | {"DECISIONING_HOME": str(installation.home), "NO_COLOR": "1"}
    command = [sys.executable, "-c", "from decisioning.agents.cli import main; main()", "experiments", "list", "--json"]
    done = subprocess.run(command, cwd=PROJECT, env=environment, text=True, capture_output=True, check=True)

    assert isinstance(json.loads(done.stdout), list)
    assert os.fspath(installation.home) not in done.stderr


@pytest.mark.faults
def test_the_selfcheck_finds_the_truth_about_this_installation(installation: Installation) -> None:
    done = installation.manage("selfcheck")

    assert re.fullmatch(r"Passed: 3 of 3 as they must be, in \d+ s\.", last_line(done))
