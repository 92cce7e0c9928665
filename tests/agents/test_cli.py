"""The terminal client: what it prints, and the exit codes that scripts branch on."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from decisioning.agents import cli
from decisioning.agents.client import Portal

Asked = list[httpx.Request]
Run = Callable[..., int]

PROPOSAL = {
    "action": "scale",
    "code": "wins",
    "state": "proposed",
    "rationale": ["It wins [95%]."],
    "blockers": [],
    "evidence_digest": "sha256:1",
}


@pytest.fixture
def answers() -> dict[str, httpx.Response]:
    return {}


@pytest.fixture
def asked() -> Asked:
    return []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, answers: dict[str, httpx.Response], asked: Asked) -> Run:
    """The exit code of `decisioning ...` against a portal that gives `answers` by path."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answers[request.url.path]

    monkeypatch.setattr(
        cli, "_portal", lambda: Portal("http://portal.test", "k", transport=httpx.MockTransport(answer))
    )

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["decisioning", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return call


@pytest.mark.parametrize(
    ("action", "state", "code"),
    [
        ("scale", "proposed", 0),
        ("hold", "open", 10),
        ("review", "proposed", 11),
        ("delete", "proposed", 12),
        ("scale", "suspended", 10),
    ],
)
def test_a_pipeline_can_branch_on_the_exit_code_and_a_suspended_scale_holds(
    run: Run, answers: dict[str, httpx.Response], action: str, state: str, code: int
) -> None:
    recommendation = PROPOSAL | {"action": action, "state": state}
    answers["/api/experiments/x/decision"] = httpx.Response(
        200, json={"recommendation": recommendation, "decision": None}
    )

    assert run("decision", "show", "x") == code


def test_a_rationale_is_printed_as_it_is_and_json_is_the_answer_itself(
    run: Run, answers: dict[str, httpx.Response], capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"recommendation": PROPOSAL, "decision": None}
    answers["/api/experiments/x/decision"] = httpx.Response(200, json=told)

    assert run("decision", "show", "x") == 0
    assert "  It wins [95%]." in capsys.readouterr().out
    assert run("decision", "show", "x", "--json") == 0
    assert json.loads(capsys.readouterr().out) == told


def test_a_refusal_is_code_1_and_says_why_on_stderr(
    run: Run, answers: dict[str, httpx.Response], capsys: pytest.CaptureFixture[str]
) -> None:
    answers["/api/experiments/x/decision"] = httpx.Response(404, json={"code": "not_found", "detail": "No x."})

    assert run("decision", "show", "x") == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "No x. (not_found, 404)\n")


def test_rows_come_from_csv_or_json_lines_and_go_out_as_numbers(
    run: Run, answers: dict[str, httpx.Response], asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers["/api/experiments/x/kpis"] = httpx.Response(200, json={"accepted": 1, "changed": 0, "duplicates": 0})
    (tmp_path / "a.csv").write_text("metric,variant,ts,value,n,variance\nvrps,control,2026-11-24T06:00:00Z,3.5,10,\n")
    (tmp_path / "a.jsonl").write_text(
        '{"metric": "vrps", "variant": "control", "ts": "2026-11-24T06:00:00Z", "value": 3.5, "n": 10}\n'
    )

    for name in ("a.csv", "a.jsonl"):
        assert run("kpis", "push", str(tmp_path / name), "-e", "x") == 0
    sent = [json.loads(request.content)["rows"] for request in asked]
    assert sent[0] == sent[1]
    assert sent[0] == [{"metric": "vrps", "variant": "control", "ts": "2026-11-24T06:00:00Z", "value": 3.5, "n": 10}]
    assert capsys.readouterr().out == "1 new, 0 changed, 0 there already\n" * 2


def test_a_file_that_cannot_be_read_as_rows_is_a_usage_error_with_its_line(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_text("metric,ts,value\nvrps,2026-11-24T06:00:00Z,much\n")

    assert run("kpis", "push", str(tmp_path / "a.csv"), "-e", "x") == 2
    assert "line 2: value is 'much', no number" in capsys.readouterr().err


def test_creating_prints_the_key(
    run: Run, answers: dict[str, httpx.Response], asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers["/api/experiments"] = httpx.Response(201, json={"key": "pay-later"})
    (tmp_path / "plan.json").write_text('{"name": "Pay later"}')

    assert run("experiments", "create", str(tmp_path / "plan.json")) == 0
    assert json.loads(asked[0].content) == {"name": "Pay later"}
    assert capsys.readouterr().out == "pay-later\n"
