"""The terminal client: what it prints, and the exit codes that scripts branch on."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer

from decisioning.agents import cli, client, credentials, news, options, terminal
from decisioning.agents.client import Portal, Unreachable
from decisioning.embedded import PROJECT

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

    def portal(*_known: str, **_patience: float) -> Portal:
        return Portal(
            "http://portal.test", "k", transport=httpx.MockTransport(answer), patience_s=0, sleep=lambda _: None
        )

    for asking in (cli, options):
        monkeypatch.setattr(asking, "Portal", portal)
    monkeypatch.setenv("DECISIONING_URL", "http://portal.test")
    monkeypatch.setenv("DECISIONING_API_KEY", "k")
    monkeypatch.setenv("COLUMNS", "200")

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


METRIC = {"key": "visits", "expected_in_words": "weekdays at 06:00 Europe/Berlin", "schedules": []}
SHOWN = {
    "metric": "visits", "state": "differs", "detail": "Rows come weekdays at about 06:10 Europe/Berlin.",
    "configured": {"words": "every 15 minutes", "expected": {"every_s": 900},
                   "fit": {"due": 1_000, "missing": 990, "rows": 10, "shared": 0, "explained": 10, "off_s": 500}},
    "found": {"words": "weekdays at about 06:10 Europe/Berlin", "told_by": "rows", "others": [],
              "expected": {"every": "weekdays", "at": "06:10", "timezone": "Europe/Berlin"},
              "fit": {"due": 10, "missing": 0, "rows": 10, "shared": 0, "explained": 10, "off_s": 900}},
    "experiment": "checkout", "since": None, "until": None, "arrive_within_s": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (["--expected", "weekdays", "--at", "06:00", "--timezone", "Europe/Berlin"],
         {"every": "weekdays", "at": "06:00", "timezone": "Europe/Berlin"}),
        (["--expected", "monthly", "--on", "3"], {"every": "monthly", "on": 3}),
        (["--expected", "weekly", "--on", "friday"], {"every": "weekly", "on": "friday"}),
        (["--expected", "15m"], {"every_s": 900}),
        (["--expected", "0 6 * * 1-5", "--timezone", "UTC"], {"cron": "0 6 * * 1-5", "timezone": "UTC"}),
    ],
)  # fmt: skip
def test_a_metric_is_made_with_how_often_its_data_comes(
    run: Run, answers: dict[str, httpx.Response], asked: Asked, said: list[str], expected: object,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    answers["/api/metrics"] = httpx.Response(201, json=METRIC | {"warnings": ["visits: 400 days late."]})

    assert run("metrics", "create", "visits", "--late-by", "2h", *said) == 0
    body = json.loads(asked[-1].content)
    assert (body["expected"], body["freshness_target_s"], body["name"]) == (expected, 7_200, "Visits")
    told = capsys.readouterr()
    assert told.out == "visits comes weekdays at 06:00 Europe/Berlin.\n"
    assert "400 days late" in told.err


def test_a_metric_is_not_made_without_saying_how_often_its_data_comes(
    run: Run, asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("metrics", "create", "visits") == 2
    assert "--expected hourly, daily, weekdays" in capsys.readouterr().err
    assert run("metrics", "create", "visits", "--expected", "often") == 2
    assert asked == []


def test_the_schedule_that_rows_show_is_taken_in_one_step(
    run: Run, answers: dict[str, httpx.Response], asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    answers["/api/metrics/visits/schedule"] = httpx.Response(200, json=SHOWN)
    schedules = [{"since": "2026-11-24T06:00:00Z", "words": "weekdays at 06:10 Europe/Berlin"}]
    answers["/api/metrics/visits"] = httpx.Response(200, json=METRIC | {"schedules": schedules})

    assert run("metrics", "schedule", "visits") == 0
    told = capsys.readouterr().out
    assert "weekdays at about 06:10 Europe/Berlin" in told
    assert "every 15 minutes" in told
    assert told.rstrip().endswith("To take it: decisioning metrics schedule visits --take")
    assert [request.method for request in asked] == ["GET"]

    assert run("metrics", "schedule", "visits", "--take") == 0
    assert (asked[-1].method, json.loads(asked[-1].content)) == ("PATCH", {"expected": SHOWN["found"]["expected"]})  # type: ignore[index]
    assert "visits comes weekdays at 06:10 Europe/Berlin from 2026-11-24T06:00:00Z on." in capsys.readouterr().out
    assert run("metrics", "schedule", "visits", "--take", "--since", "2026-11-01T00:00:00Z") == 0
    assert json.loads(asked[-1].content)["expected_from"] == "2026-11-01T00:00:00Z"


@pytest.mark.parametrize(
    ("state", "code"), [("as_configured", 0), ("irregular", 1), ("mixed", 1), ("not_enough_rows", 1)]
)
def test_nothing_is_taken_where_rows_show_nothing_else(
    run: Run, answers: dict[str, httpx.Response], asked: Asked, state: str, code: int
) -> None:
    answers["/api/metrics/visits/schedule"] = httpx.Response(200, json=SHOWN | {"state": state, "found": None})

    assert run("metrics", "schedule", "visits") == 0
    assert run("metrics", "schedule", "visits", "--take") == code
    assert run("metrics", "schedule", "visits", "--since", "2026-11-01T00:00:00Z") == 2
    assert {request.method for request in asked} == {"GET"}


def test_a_rationale_is_printed_as_it_is_and_json_is_the_answer_itself(
    run: Run, answers: dict[str, httpx.Response], capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"recommendation": PROPOSAL, "decision": None}
    answers["/api/experiments/x/decision"] = httpx.Response(200, json=told)

    assert run("decision", "show", "x") == 0
    assert "  It wins [95%]." in capsys.readouterr().out
    assert run("decision", "show", "x", "--json") == 0
    assert json.loads(capsys.readouterr().out) == told


def test_an_answer_that_rows_have_overtaken_says_what_would_be_advised_now(
    run: Run, answers: dict[str, httpx.Response], capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"action": "accept", "override_to": None, "by": "ann", "at": "2026-11-24T06:00:00Z",
             "would_now": {"action": "hold", "code": "collecting"}}  # fmt: skip
    told = {"recommendation": PROPOSAL, "decision": given}
    answers["/api/experiments/x/decision"] = httpx.Response(200, json=told)

    run("decision", "show", "x")

    assert "Decided on older data: the gates would now say hold (collecting)." in capsys.readouterr().out


def test_freshness_says_when_data_came_when_it_is_due_and_how_long_it_takes(
    run: Run, answers: dict[str, httpx.Response], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = {
        name: f"2026-11-24T0{n}:00:00Z"
        for n, name in enumerate(("data_watermark", "last_refresh_at", "due_at", "stale_at"))
    }
    tracked = {
        "experiment": "x",
        "metric": "vrps",
        "state": "late",
        "source": "orders",
        "telemetry_p95_s": 5400.4,
        "last_run": None,
    }
    silent = tracked | {"telemetry_p95_s": None} | dict.fromkeys(at)
    answers["/api/freshness"] = httpx.Response(200, json={"results": [tracked | at, silent], "next": None})
    monkeypatch.setenv("COLUMNS", "300")

    assert run("freshness") == 0
    head, line, _ = capsys.readouterr().out.splitlines()
    assert all(name in head for name in ("newest", "due", "stale at", "p95", "last refresh"))
    assert all(text in line for text in (*at.values(), "5,400 s"))


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


def test_alarms_are_listed_with_who_snoozed_them_and_answered(
    run: Run, answers: dict[str, httpx.Response], asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    snoozed = {"until": "2026-11-26T06:00:00Z", "by": "ada", "reason": "known [to us]"}
    alarm = {"id": 12, "type": "freshness.breached", "subject": "source nightly", "experiment": "x", "began_at": "2026-11-24T06:00:00Z",
             "data": {"experiments_late": 40}, "snoozed": snoozed, "acknowledged": None}  # fmt: skip
    answers["/api/alarms"] = httpx.Response(200, json={"results": [alarm], "next": None})
    answers["/api/alarms/12/snooze"] = httpx.Response(200, json=alarm)
    answers["/api/alarms/12/acknowledgement"] = httpx.Response(200, json=alarm | {"acknowledged": {"by": "ada"}})

    assert run("alarms", "list") == 0
    assert "snoozed until 2026-11-26T06:00:00Z by ada: known [to us]" in capsys.readouterr().out
    assert run("alarms", "snooze", "12", "--until", "2026-11-26T06:00:00Z", "--reason", "known") == 0
    assert json.loads(asked[-1].content) == {"until": "2026-11-26T06:00:00Z", "reason": "known"}
    assert run("alarms", "snooze", "12", "--reason", "known") == 2
    assert run("alarms", "acknowledge", "12") == 0
    answers["/api/alarms/12/snooze"] = httpx.Response(204)
    answers["/api/alarms/12"] = httpx.Response(200, json=alarm | {"snoozed": None})
    assert run("alarms", "wake", "12") == 0
    assert (asked[-2].method, asked[-2].url.path) == ("DELETE", "/api/alarms/12/snooze")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("vrps,a,2026-11-24T06:00:00Z,nan,3", "line 3: value is 'nan', no number"),
        ("vrps,a,2026-11-24T06:00:00Z,1e999,3", "line 3: value is '1e999', no number"),
        ("vrps,a,2026-11-24T06:00:00Z,1_0,3", "line 3: value is '1_0', no number"),
        ("vrps,a,2026-11-24T06:00:00Z,1,many", "line 3: n is 'many', no number"),
        ("vrps,a,2026-11-24T06:00:00Z,1,1.5", "line 3: n is '1.5', no whole number"),
        ("vrps,a,2026-11-24T06:00:00Z,1", "line 3 has 4 cells, the header has 5 names"),
        ("vrps,a,2026-11-24T06:00:00Z,1,3,4", "line 3 has 6 cells, the header has 5 names"),
        ('vrps,"a"b,2026-11-24T06:00:00Z,1,3', "line 3 is no CSV"),
        ("vrps,\udcff,2026-11-24T06:00:00Z,1,3", "line 3 is no UTF-8"),
    ],
)
def test_a_bad_line_is_told_by_its_number(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, why: str
) -> None:
    text = f"metric,variant,ts,value,n\n,,,,\n{line}\n"
    (tmp_path / "a.csv").write_bytes(text.encode("utf-8", "surrogateescape"))

    assert run("kpis", "push", str(tmp_path / "a.csv"), "-e", "x") == 2
    said = capsys.readouterr().err
    assert why in said
    assert "Traceback" not in said


def test_a_file_that_lacks_a_column_or_has_one_twice_says_so(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text, why in (
        ("metric;ts;value\n", "line 1 must name the columns; there is no metric, ts, value"),
        ("metric,ts,value,Value\n", "line 1 names value twice"),
    ):
        (tmp_path / "a.csv").write_text(text)
        assert run("kpis", "push", str(tmp_path / "a.csv"), "-e", "x") == 2
        assert why in capsys.readouterr().err


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_json_line_with_a_number_that_json_has_not_is_told_by_its_number(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    (tmp_path / "a.jsonl").write_text('{"metric": "m", "value": 1}\n{"metric": "m", "value": %s}\n' % number)  # noqa: UP031

    assert run("kpis", "push", str(tmp_path / "a.jsonl"), "-e", "x") == 2
    assert "line 2 is no JSON" in capsys.readouterr().err


def test_counts_go_out_whole_however_they_are_written_and_a_ratio_with_its_denominator(
    run: Run, answers: dict[str, httpx.Response], asked: Asked, tmp_path: Path
) -> None:
    answers["/api/experiments/x/kpis"] = httpx.Response(200, json={"accepted": 1, "changed": 0, "duplicates": 0})
    (tmp_path / "a.csv").write_text(
        "Metric , ts,value,n,window_s,revision,denominator_value,covariance\n"
        "m,2026-11-24T06:00:00Z,1,1800.0,9e2,9007199254740993,2.5,\nm,2026-11-24T07:00:00Z,1,,,,,\n"
    )

    assert run("kpis", "push", str(tmp_path / "a.csv"), "-e", "x") == 0
    first, second = json.loads(asked[0].content)["rows"]
    assert [repr(first[name]) for name in ("n", "window_s", "revision")] == ["1800", "900", "9007199254740993"]
    assert first["denominator"] == {"value": 2.5}
    assert second == {"metric": "m", "ts": "2026-11-24T07:00:00Z", "value": 1.0}


@pytest.mark.parametrize("atomic", [True, False])
def test_a_row_that_the_portal_refuses_is_told_by_its_line(
    run: Run,
    answers: dict[str, httpx.Response],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    atomic: bool,
) -> None:
    bad = {"pointer": "/rows/1/value", "code": "out_of_range", "detail": "value is 1e+200."}
    answers["/api/experiments/x/kpis"] = (
        httpx.Response(422, json={"code": "invalid_rows", "detail": "Row 1: value is 1e+200.", "errors": [bad]})
        if atomic
        else httpx.Response(207, json={"accepted": 2, "changed": 0, "duplicates": 0, "errors": [{"index": 1, **bad}]})
    )
    (tmp_path / "a.csv").write_text('metric,variant,ts,value\n\nm,"a\nb",t,1\nm,a,t,1e200\nm,a,t,3\nm,a,t,4\n')

    said = ["kpis", "push", str(tmp_path / "a.csv"), "-e", "x", "--skip", "1"]
    assert run(*said, "--atomic" if atomic else "--no-atomic") == 1
    assert "line 6: value is 1e+200." in capsys.readouterr().err


def test_creating_prints_the_key(
    run: Run, answers: dict[str, httpx.Response], asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers["/api/experiments"] = httpx.Response(201, json={"key": "pay-later"})
    (tmp_path / "plan.json").write_text('{"name": "Pay later"}')

    assert run("experiments", "create", str(tmp_path / "plan.json")) == 0
    assert json.loads(asked[0].content) == {"name": "Pay later"}
    assert capsys.readouterr().out == "pay-later\n"


def test_creating_a_plan_that_cannot_end_says_so_beside_the_key(
    run: Run, answers: dict[str, httpx.Response], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planning = [{"warning": None}, {"warning": "vrps may take up to 90 days [28 are allowed]."}]
    answers["/api/experiments"] = httpx.Response(201, json={"key": "pay-later", "planning": planning})
    (tmp_path / "plan.json").write_text('{"name": "Pay later"}')

    assert run("experiments", "create", str(tmp_path / "plan.json")) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("pay-later\n", "vrps may take up to 90 days [28 are allowed].\n")


def test_what_a_plan_or_a_policy_is_warned_of_is_said_beside_it(
    run: Run, answers: dict[str, httpx.Response], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers["/api/experiments"] = httpx.Response(201, json={"key": "pay-later", "warnings": ["kept: 60%."]})
    version = {"version": 1, "body": {"gates": []}, "activated_at": "x", "warnings": ["guards: 60%."]}
    answers["/api/policies"] = httpx.Response(201, json={"versions": [version]})
    answers["/api/policies/wide/versions"] = httpx.Response(201, json=version)
    (tmp_path / "plan.json").write_text("{}")

    for command, warning in (
        (["experiments", "create"], "kept: 60%.\n"),
        (["policy", "lint"], "guards: 60%.\n"),
        (["policy", "add", "wide"], "guards: 60%.\n"),
    ):
        assert run(*command, str(tmp_path / "plan.json")) == 0
        assert capsys.readouterr().err == warning


# Waiting and answering ------------------------------------------------------------------------------------------------


def test_waiting_ends_with_the_hold_outlives_an_outage_and_stops_when_the_time_is_over() -> None:
    time_ = [0.0]

    def sleep(seconds: float) -> None:
        time_[0] += seconds

    looks: Iterator[str] = iter(["hold", "", "hold", "scale"])

    def look() -> str:
        found = next(looks, "hold")
        if not found:
            raise Unreachable("away")
        return found

    def wait(seconds: float) -> str:
        return terminal.wait_for(look, lambda found: found != "hold", seconds, clock=lambda: time_[0], sleep=sleep)

    assert wait(60) == "scale"
    assert time_[0] < 10
    time_[0] = 0.0
    assert wait(60) == "hold"
    assert time_[0] == 60


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"action": "accept", "override_to": None}, 0),
        ({"action": "override", "override_to": "delete"}, 12),
        ({"action": "override", "override_to": "hold"}, 10),
        ({"action": "override", "override_to": "stop"}, 11),
    ],
)
def test_what_people_answered_wins_over_what_was_proposed(
    run: Run, answers: dict[str, httpx.Response], given: dict[str, Any], code: int
) -> None:
    told = {
        "recommendation": PROPOSAL | {"state": "answered"},
        "decision": given | {"by": "ann", "at": "2026-11-24T06:00:00Z"},
    }
    answers["/api/experiments/x/decision"] = httpx.Response(200, json=told)

    assert run("decision", "show", "x") == code
    assert run("decision", "show", "x", "--answered") == code


def test_a_pipeline_that_waits_for_people_holds_at_what_is_only_proposed(
    run: Run, answers: dict[str, httpx.Response]
) -> None:
    answers["/api/experiments/x/decision"] = httpx.Response(200, json={"recommendation": PROPOSAL, "decision": None})

    assert run("decision", "show", "x", "--answered") == 10


def test_an_answer_names_its_evidence_or_says_yes_to_what_is_proposed_now(
    run: Run, answers: dict[str, httpx.Response], asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"experiment": "x", "variants": [], "recommendation": PROPOSAL, "status": "scaled", "by": "ann"}
    answers["/api/experiments/x/decision"] = httpx.Response(200, json=told)

    assert run("decision", "accept", "x") == 2
    assert "--digest" in capsys.readouterr().err
    assert run("decision", "accept", "x", "--yes") == 0
    assert run("decision", "override", "x", "hold", "--reason", "Sale", "--digest", "sha256:2") == 0
    sent = [json.loads(request.content) for request in asked if request.method == "POST"]
    assert sent == [
        {"evidence_digest": "sha256:1", "action": "accept"},
        {"evidence_digest": "sha256:2", "action": "override", "override_to": "hold", "reason": "Sale"},
    ]
    assert run("decision", "override", "x", "hold") == 2


# Pushing --------------------------------------------------------------------------------------------------------------


def test_a_push_that_breaks_says_where_and_goes_on_from_there(
    run: Run, asked: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "ROWS_A_BATCH", 2)
    taken = httpx.Response(200, json={"accepted": 2, "changed": 0, "duplicates": 0})
    gone = httpx.Response(503, json={"code": "database_unavailable", "detail": "Try again."})
    file = tmp_path / "a b.csv"
    file.write_text("metric,ts,value\n" + "".join(f"m,2026-11-24T06:00:0{n}Z,{n}\n" for n in range(5)))

    turns = iter([taken, gone, taken, taken])

    def portal(*_known: str) -> Portal:
        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(request)
            return next(turns)

        return Portal("http://portal.test", "k", patience_s=0, transport=httpx.MockTransport(answer))

    monkeypatch.setattr(options, "Portal", portal)

    assert run("kpis", "push", str(file), "-e", "x") == 1
    said = capsys.readouterr().err
    assert f"2 rows are in. To go on from there: decisioning kpis push '{file}' -e x --skip 2\n" in said
    assert "Try again. (database_unavailable, 503)" in said
    assert run("kpis", "push", str(file), "-e", "x", "--skip", "2") == 0
    values = [[row["value"] for row in json.loads(request.content)["rows"]] for request in asked]
    assert values == [[0, 1], [2, 3], [2, 3], [4]]


def test_a_bad_line_far_down_is_named_and_what_came_before_it_is_in(
    run: Run,
    answers: dict[str, httpx.Response],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(client, "ROWS_A_BATCH", 1)
    answers["/api/experiments/x/kpis"] = httpx.Response(200, json={"accepted": 1, "changed": 0, "duplicates": 0})
    (tmp_path / "a.jsonl").write_text('{"metric": "m"}\n\n[1]\n')

    assert run("kpis", "push", str(tmp_path / "a.jsonl"), "-e", "x") == 2
    said = capsys.readouterr().err
    assert "line 3 is no JSON object" in said
    assert "1 rows are in." in said


# Errors, help, credentials --------------------------------------------------------------------------------------------


def test_a_refusal_lists_every_pointer_and_is_json_for_programs(
    run: Run, answers: dict[str, httpx.Response], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = [
        {"pointer": "/body/gates/up", "code": "unknown_metric", "detail": "No vrps."},
        {"pointer": "/body", "code": "alpha_range", "detail": "alpha is 0.7."},
    ]
    answers["/api/policies"] = httpx.Response(422, json={"code": "invalid", "detail": "Two.", "errors": errors})
    (tmp_path / "p.json").write_text('{"gates": []}')

    assert run("policy", "lint", str(tmp_path / "p.json")) == 1
    assert capsys.readouterr().err == "Two. (invalid, 422)\n  /body/gates/up: No vrps.\n  /body: alpha is 0.7.\n"
    assert run("policy", "lint", str(tmp_path / "p.json"), "--json") == 1
    assert json.loads(capsys.readouterr().err) == {
        "status": 422,
        "code": "invalid",
        "detail": "Two.",
        "errors": errors,
    }


def test_colours_are_for_screens_and_not_for_those_who_want_none(
    run: Run, answers: dict[str, httpx.Response], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers["/api/experiments/x/decision"] = httpx.Response(200, json={"recommendation": PROPOSAL, "decision": None})

    run("decision", "show", "x")
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    run("decision", "show", "x")
    assert "\x1b[1;32mscale" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    run("decision", "show", "x")
    assert "32m" not in capsys.readouterr().out


def test_the_shell_completes_keys_and_says_nothing_when_it_cannot_ask(
    run: Run, answers: dict[str, httpx.Response], asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [{"key": "checkout"}, {"key": "faster-checkout"}]
    answers["/api/experiments"] = httpx.Response(200, json={"results": found, "next": None})

    assert options.some_keys("che") == ["checkout"]
    assert asked[0].url.params["search"] == "che"
    answers["/api/experiments"] = httpx.Response(401, json={"code": "not_authenticated", "detail": "No."})
    assert options.some_keys("che") == []
    monkeypatch.setattr(credentials, "find", lambda: (_ for _ in ()).throw(credentials.Unknown("none")))
    assert options.some_keys("che") == []


def commands(of: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in of.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_teaches_with_an_example_that_is_right_and_has_json(
    path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("plan.json", "rows.csv", "careful.json"):
        (tmp_path / name).touch()
    command = COMMANDS[path]
    prefix, _, example = command.epilog.partition(" ")
    words = shlex.split(example.partition(" && ")[0].partition(" | ")[0])

    assert (prefix, tuple(words[1 : 1 + len(path)])) == ("Example:", path)
    context = command.make_context(path[-1], words[1 + len(path) :])  # raises for what it does not take
    context.close()
    options = {option for parameter in command.params for option in parameter.opts}
    assert "--json" in options or path in {("login",), ("mcp",)}
    assert command.help


def test_a_login_is_tried_kept_for_the_user_alone_and_the_environment_wins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Run, answers: dict[str, httpx.Response]
) -> None:
    for name in ("DECISIONING_URL", "DECISIONING_API_KEY", "DECISIONING_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(credentials.Unknown, match="decisioning login URL"):
        credentials.find()

    answers["/api/experiments"] = httpx.Response(401, json={"code": "not_authenticated", "detail": "No."})
    assert run("login", "http://portal.test", "--key", "dk_bad") == 1
    assert not credentials.kept_at().exists()
    answers["/api/experiments"] = httpx.Response(200, json={"results": [], "next": None})
    assert run("login", "http://portal.test/", "--key", "dk_good") == 0
    assert credentials.kept_at().stat().st_mode & 0o777 == 0o600
    assert credentials.find() == ("http://portal.test", "dk_good")

    monkeypatch.setenv("DECISIONING_URL", "http://elsewhere.test")
    with pytest.raises(credentials.Unknown, match=r"no key for http://elsewhere\.test"):
        credentials.find()  # a kept key goes to no other address
    monkeypatch.setenv("DECISIONING_API_KEY", "dk_other")
    assert credentials.find() == ("http://elsewhere.test", "dk_other")


def test_the_news_of_two_looks_are_the_events_that_webhooks_tell() -> None:
    def row(**said: Any) -> dict[str, Any]:
        told = {"action": "hold", "code": "open", "variant": None, "state": "open", "proposed_at": None}
        return {
            "name": "X",
            "hypothesis": "Y",
            "owner": "ann",
            "status": "running",
            "as_of": "2026-11-24T06:00:00Z",
            "freshness": {"state": "fresh", "data_watermark": None},
            "gates": [{"gate": "errors_guard", "kind": "guard", "variant": "treatment", "verdict": "pass"}],
            "recommendation": told | {"evidence_digest": None} | said.pop("recommendation", {}),
        } | said

    def kinds(before: dict[str, Any] | None, after: dict[str, Any]) -> list[str]:
        return [e["type"] for e in news.news({"x": before} if before else {}, {"x": after})]

    proposed = {"action": "scale", "state": "proposed", "proposed_at": "2026-11-24T06:00:00Z"}
    failing = [{"gate": "errors_guard", "kind": "guard", "variant": "treatment", "verdict": "fail"}]
    assert kinds(row(), row(as_of="2026-11-24T06:05:00Z")) == []
    assert kinds(None, row()) == ["experiment.changed"]
    assert kinds(row(), row(recommendation=proposed)) == ["decision.proposed"]
    assert kinds(
        row(recommendation=proposed), row(recommendation=proposed | {"state": "answered"}, status="scaled")
    ) == [
        "experiment.changed",
        "decision.answered",
    ]
    assert kinds(row(), row(freshness={"state": "stale", "data_watermark": None})) == ["freshness.breached"]
    assert kinds(row(freshness={"state": "stale", "data_watermark": None}), row()) == ["freshness.recovered"]
    assert kinds(row(), row(gates=failing)) == ["guard.failed"]


def lines_for_us(file: str) -> list[str]:
    """Every call of `decisioning` in the code blocks of a page, and in its text."""
    text = (PROJECT / file).read_text()
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL))
    calls = re.findall(r"(?:^|run: )(decisioning [a-z].*)$", blocks, flags=re.MULTILINE)
    spoken = re.findall(r"`(?:[^`]*\| )?(decisioning [a-z][^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [call.partition(" && ")[0].partition(" <<")[0] for call in calls + spoken]


@pytest.mark.parametrize(("file", "at_least"), [("README.md", 8), ("docs/quick-starts.md", 3)])
def test_what_the_pages_tell_to_type_is_right(
    file: str, at_least: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").touch()
    found = lines_for_us(file)

    assert len(found) >= at_least
    for line in found:
        words = shlex.split(line)[1:]
        path = max((path for path in COMMANDS if tuple(words[: len(path)]) == path), key=len, default=())
        if words != ["--install-completion"]:
            assert path, line
            COMMANDS[path].make_context(path[-1], words[len(path) :]).close()
