"""One row, however it comes: over HTTP, as an event, in a file a person holds in hand, from a source, by a program, a terminal or an agent."""

import csv
import io
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from django.conf import LazySettings
from django.utils import timezone
from mcp.server.mcpserver.exceptions import ToolError

from decisioning.agents import cli, mcp_server, options
from decisioning.agents.client import Portal
from telemetry import ingest
from telemetry.columns import MOMENTS
from telemetry.csv_import import load
from telemetry.models import ExperimentKpi, RefreshRun
from telemetry.tasks import sources as tick
from tests.api.conftest import Caller
from tests.api.test_source_calls import Answering
from tests.api.warehouse import bind, warehouse
from tests.conftest import as_role

TOP = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
EXPERIMENT = "one-page-checkout"
AT = {"metric": "vrps", "variant": "control", "ts": (TOP - timedelta(hours=2)).isoformat()}
Row = Mapping[str, Any]
Send = Callable[[Caller, list[Row]], str]
"""Sends rows by one door; what it says of them."""


def said(response: Any) -> str:
    return str(response.content.decode())


def by_http(ops: Caller, rows: list[Row]) -> str:
    return said(ops.post(f"/api/experiments/{EXPERIMENT}/kpis?atomic=false", {"rows": rows}))


def by_event(ops: Caller, rows: list[Row]) -> str:
    batch = [
        {"specversion": "1.0", "id": str(number), "source": "/s", "type": "decisioning.metric.observed.v1", "data": {"experiment": EXPERIMENT, **row}}
        for number, row in enumerate(rows)
    ]  # fmt: skip
    return said(ops.post("/api/events?atomic=false", batch, Content_Type="application/cloudevents-batch+json"))


def by_event_of_many(ops: Caller, rows: list[Row]) -> str:
    one = {"specversion": "1.0", "id": "1", "source": "/s", "type": "decisioning.metric.observed_many.v1"}
    one["data"] = {"experiment": EXPERIMENT, "rows": rows}
    return said(ops.post("/api/events?atomic=false", one, Content_Type="application/cloudevents+json"))


def by_upload(ops: Caller, rows: list[Row]) -> str:
    with as_role("owner"):
        told = load(table(rows), team=ops.team, now=timezone.now(), keep=True)
    return f"{[(refused.line, refused.problem) for refused in told.refused]} ignored {list(told.ignored)}"


def by_file(ops: Caller, rows: list[Row], folder: Path) -> str:
    (folder / "kpis.csv").write_text(table(rows))
    return pulled(
        ops,
        {
            "key": "file",
            "kind": "file",
            "path": "kpis.csv",
            "query": "SELECT * FROM rows WHERE ts > :since AND ts <= :until",
        },
    )


def by_query(ops: Caller, rows: list[Row]) -> str:
    names, lines = flat(rows)
    cells = [[_sql(name, line.get(name)) for name in names] for line in lines]
    values = ", ".join(f"({', '.join(line)})" for line in cells)
    query = f"SELECT * FROM (VALUES {values}) AS t({', '.join(names)}) WHERE ts > :since AND ts <= :until"  # noqa: S608
    return pulled(ops, {"key": "warehouse", "kind": "sql", "url_env": "WAREHOUSE_URL", "query": query})


def _sql(name: str, value: object) -> str:
    if value is None:
        return "NULL" if name == "region" else "NULL::float8"
    return f"'{value}'::timestamptz" if name == "ts" else repr(value)


def by_address(ops: Caller, rows: list[Row], server: Answering) -> str:
    server.says([{"experiment": EXPERIMENT, **row} for row in rows])
    return pulled(ops, {"key": "address", "kind": "http", "url_env": "STATS_URL"})


def by_program(ops: Caller, rows: list[Row]) -> str:
    with portal(ops) as found:
        receipt = found.push(EXPERIMENT, rows, atomic=False)
    return f"{receipt.refused} ignored {receipt.ignored}"


def by_terminal(ops: Caller, rows: list[Row], patch: pytest.MonkeyPatch, folder: Path, said: Any) -> str:
    (folder / "rows.csv").write_text(table(rows))
    for asking in (cli, options):
        patch.setattr(asking, "Portal", lambda *_known, **_patience: portal(ops))
    patch.setenv("DECISIONING_URL", "http://portal.test")
    patch.setenv("DECISIONING_API_KEY", "k")
    patch.setattr(
        sys, "argv", ["decisioning", "kpis", "push", str(folder / "rows.csv"), "-e", EXPERIMENT, "--no-atomic"]
    )
    with pytest.raises(SystemExit):
        cli.main()
    return " ".join(said.readouterr())


def by_agent(ops: Caller, rows: list[Row]) -> str:
    """The tool itself, in this thread, whose transaction the test is in."""
    tools = mcp_server.Tools("http://portal.test", "k", transport(ops))
    try:
        told = tools.push_kpis(SimpleNamespace(headers={}), EXPERIMENT, [dict(row) for row in rows])
    except ToolError as refusal:
        return str(refusal)
    return str(getattr(told.content[0], "text", ""))


def transport(ops: Caller) -> httpx.MockTransport:
    """Requests of programs, into the whole middleware."""

    def answer(request: httpx.Request) -> httpx.Response:
        found = ops(request.method, request.url.raw_path.decode(), request.content or None)
        return httpx.Response(found.status_code, content=found.content, headers={"Content-Type": found["Content-Type"]})

    return httpx.MockTransport(answer)


def portal(ops: Caller) -> Portal:
    return Portal("http://portal.test", "k", transport=transport(ops), patience_s=0, sleep=lambda _: None)


def flat(rows: list[Row]) -> tuple[list[str], list[dict[str, Any]]]:
    """Rows as a table has them: names of its columns, and each row by them."""
    named = {inner: name for name, inner in MOMENTS.items()}
    lines = []
    for row in rows:
        below = {named.get(inner, f"denominator_{inner}"): value for inner, value in row.get("denominator", {}).items()}
        lines.append({"experiment": EXPERIMENT, **{n: v for n, v in row.items() if n != "denominator"}, **below})
    return list(dict.fromkeys(name for line in lines for name in line)), lines


def table(rows: list[Row]) -> str:
    names, lines = flat(rows)
    out = io.StringIO()
    writer = csv.DictWriter(out, names)
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def pulled(ops: Caller, source: dict[str, Any]) -> str:
    made = ops.post("/api/sources", {**source, "metrics": ["vrps"]})
    assert made.status_code == 201, made.content
    tried = ops.post(f"/api/sources/{source['key']}/refresh?dry_run=true").json()
    with as_role("worker"):
        tick()
        run = RefreshRun.objects.get()
    return f"{run.status}: {run.error} left out {tried['ignored_columns']}"


@pytest.fixture
def address() -> Iterator[Answering]:
    server = Answering()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


DOORS = ["http", "event", "event_of_many", "upload", "file", "query", "address", "program", "terminal", "agent"]


@pytest.fixture(params=DOORS)
def send(
    request: pytest.FixtureRequest, ops: Caller, monkeypatch: pytest.MonkeyPatch, settings: LazySettings, tmp_path: Path
) -> Callable[[list[Row]], str]:
    ops.experiment()
    assert ops.patch("/api/metrics/vrps", {"bounds": {"max": 100}}).status_code == 200
    monkeypatch.setattr(ingest, "_MEASURED_FOR_S", -1)  # at once, in place of five seconds later
    more: tuple[Any, ...] = ()
    match request.param:
        case "file":
            settings.SOURCES_DIR = tmp_path
            bind(ops.team, folder=".")
            more = (tmp_path,)
        case "query":
            monkeypatch.setenv("WAREHOUSE_URL", warehouse())
            bind(ops.team, variable="WAREHOUSE_URL")
        case "address":
            more = (request.getfixturevalue("address"),)
            monkeypatch.setenv("STATS_URL", more[0].url)
            settings.OUTBOUND_ALLOW = ["127.0.0.0/8"]
            bind(ops.team, variable="STATS_URL")
        case "terminal":
            more = (monkeypatch, tmp_path, request.getfixturevalue("capfd"))
    return lambda rows: globals()[f"by_{request.param}"](ops, rows, *more)


def stored() -> list[tuple[float, int | None, float | None]]:
    with as_role("worker"):
        kept = ExperimentKpi.objects.order_by("ts").values_list("value", "n", "variance")
        return [(value, n, variance if variance is None else round(variance, 9)) for value, n, variance in kept]


def hour(number: int) -> dict[str, str]:
    return AT | {"ts": (TOP - timedelta(hours=9 - number)).isoformat()}


def test_every_door_takes_a_spread_by_any_of_its_names_and_tells_what_it_ignores(
    send: Callable[[list[Row]], str],
) -> None:
    told = send(
        [
            hour(1) | {"value": 3.0, "n": 100, "variance": 4.0, "region": "eu"},
            hour(2) | {"value": 3.0, "n": 100, "stddev": 2.0},
            hour(3) | {"value": 3.0, "n": 100, "standard_error": 0.2},
            hour(4) | {"n": 4, "sum": 10.0, "sum_squares": 30.0},
        ]
    )
    assert stored() == [(3.0, 100, 4.0)] * 3 + [(2.5, 4, 1.666666667)], told
    assert "region" in told


def test_every_door_refuses_a_misnamed_spread_and_two_of_them_and_takes_the_rest(
    send: Callable[[list[Row]], str], request: pytest.FixtureRequest
) -> None:
    rows = [
        hour(1) | {"value": 1.0, "n": 10, "std": 2.0},
        hour(2) | {"value": 1.0, "n": 10, "variance": 4.0, "stddev": 2.0},
    ]
    told = send([*rows, hour(3) | {"value": 1.0, "n": 10, "variance": 4.0}])
    all_or_none = {"event_of_many", "agent"}
    assert stored() == ([] if request.node.callspec.params["send"] in all_or_none else [(1.0, 10, 4.0)]), told
    assert "send stddev" in told
    assert "variance and stddev are both there" in told


def test_every_door_refuses_a_value_outside_the_bounds_of_its_metric(
    send: Callable[[list[Row]], str], request: pytest.FixtureRequest
) -> None:
    told = send([hour(1) | {"value": 101.0}, hour(2) | {"value": 100.0}])
    all_or_none = {"event_of_many", "agent"}
    assert stored() == ([] if request.node.callspec.params["send"] in all_or_none else [(100.0, None, None)]), told
    assert "value is 101, must be at most 100" in told


def test_every_door_refuses_rows_that_contradict_each_other_by_their_places_and_takes_equal_ones_once(
    send: Callable[[list[Row]], str], request: pytest.FixtureRequest
) -> None:
    rows = [{"value": value, "n": n, "variance": 0.2} for value, n in ((0.3, 900), (0.1, 100), (0.2, 500))]
    told = send([*(AT | row for row in rows), *[hour(1) | {"value": 1.0, "n": 10, "variance": 4.0}] * 2])
    door = request.node.callspec.params["send"]
    assert stored() == ([] if door in {"event_of_many", "agent"} else [(1.0, 10, 4.0)]), told
    first, second = {
        "event": ("event 0", "event 1"), "event_of_many": ("ow 0 of event 0", "row 1 of event 0"), "upload": ("ine 2", "line 3"),
        "file": ("Line 2 of kpis.csv", "Line 3 of kpis.csv"), "query": ("Row 1 of the query", "Row 2 of the query"),
        "address": ("Row 1 of the answer", "Row 2 of the answer"),
    }.get(door, ("ow 0", "row 1"))  # fmt: skip
    assert (
        f"{first} and {second} have the same metric, variant and ts, and differ in value: 0.3 and 0.1"
        in told.replace("Event 0", "event 0")
    )
