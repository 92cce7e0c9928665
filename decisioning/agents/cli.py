"""`decisioning`: the portal from a terminal, for people and for pipelines that branch on the exit code."""

import csv
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from decisioning.agents.client import Json, Portal, PortalError, Unreachable

EXIT_CODES = {"scale": 0, "hold": 10, "review": 11, "delete": 12}
_ERROR, _USAGE = 1, 2

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Ask and feed a decision portal. Reads DECISIONING_URL and DECISIONING_API_KEY, else the credentials.json of the "
    "installation in DECISIONING_HOME or .data.",
)
experiments = typer.Typer(no_args_is_help=True, help="What is being tried.")
kpis = typer.Typer(no_args_is_help=True, help="What is measured.")
decision = typer.Typer(no_args_is_help=True, help="What the gates recommend.")
app.add_typer(experiments, name="experiments")
app.add_typer(kpis, name="kpis")
app.add_typer(decision, name="decision")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Key = Annotated[str, typer.Argument(help="The experiment's key or number.", metavar="EXPERIMENT")]


def main() -> None:
    """The entry point; refusals end with code 1 and say what to do."""
    try:
        app()
    except PortalError as refusal:
        _fail(str(refusal))
    except Unreachable as problem:
        _fail(f"{problem}. Is it running? DECISIONING_URL says where to look.")


@experiments.command("list")
def list_experiments(
    *,
    status: Annotated[str | None, typer.Option(help="running, paused, draft, scaled, deleted or stopped")] = None,
    team: Annotated[str | None, typer.Option(help="The team's key.")] = None,
    as_json: AsJson = False,
) -> None:
    """Every experiment the key may see, newest first."""
    with _portal() as portal:
        found = list(portal.experiments(status=status, team=team))
    if as_json:
        _print_json(found)
        return
    table = Table("experiment", "status", "recommendation", "data", "name")
    for row in found:
        told = row["recommendation"]
        table.add_row(
            row["key"], row["status"], f"{told['action']} {told['code']}", row["freshness"]["state"], row["name"]
        )
    _out().print(table)


@experiments.command("show")
def show_experiment(key: Key, *, as_json: AsJson = False) -> None:
    """One experiment: gates, newest values and the recommendation."""
    with _portal() as portal:
        document = portal.experiment(key)
    if as_json:
        _print_json(document)
        return
    out = _out()
    out.print(f"{document['name']} ({document['key']}), {document['status']}, data {document['freshness']['state']}")
    out.print(document["hypothesis"])
    table = Table("gate", "variant", "verdict", "reason")
    for gate in document["gates"]:
        table.add_row(gate["gate"], gate["variant"] or "", gate["verdict"], gate["reason"])
    out.print(table)
    _print_recommendation(out, document["recommendation"])


@experiments.command("create")
def create_experiment(
    file: Annotated[typer.FileText, typer.Argument(help="JSON as POST /api/experiments takes it; - for stdin.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Create an experiment from a JSON file; prints its key."""
    try:
        plan = json.load(file)
    except ValueError as problem:
        _fail(f"{file.name} is no JSON: {problem}", _USAGE)
    with _portal() as portal:
        document = portal.create_experiment(plan)
    if as_json:
        _print_json(document)
    else:
        _out().print(document["key"])


@kpis.command("push")
def push_kpis(
    file: Annotated[typer.FileText, typer.Argument(help="CSV with a header, or JSON lines; - for stdin.")],
    experiment: Annotated[str, typer.Option("--experiment", "-e", help="The experiment's key or number.")],
    *,
    atomic: Annotated[bool, typer.Option(help="All rows of a batch or none.")] = True,
    as_json: AsJson = False,
) -> None:
    """Send rows: metric, variant, ts, value and, where there are units, n and variance. Sending again is harmless."""
    try:
        rows = list(_rows(file.read().splitlines()))
    except ValueError as problem:
        _fail(f"{file.name}: {problem}", _USAGE)
    with _portal() as portal:
        receipt = portal.push(experiment, rows, atomic=atomic)
    told: Json = {"accepted": receipt.accepted, "changed": receipt.changed, "duplicates": receipt.duplicates}
    told["refused"] = [
        {"row": place + 1, "code": code, "detail": detail} for place, (code, detail) in sorted(receipt.refused.items())
    ]
    if as_json:
        _print_json(told)
    else:
        for refused in told["refused"]:
            _err().print(f"row {refused['row']}: {refused['detail']} ({refused['code']})", markup=False)
        _out().print(f"{receipt.accepted} new, {receipt.changed} changed, {receipt.duplicates} there already")
    if receipt.refused:
        raise typer.Exit(_ERROR)


@decision.command("show")
def show_decision(key: Key, *, as_json: AsJson = False) -> None:
    """The recommendation. Exit code: scale 0, hold 10, review 11, delete 12; an error is 1."""
    with _portal() as portal:
        found = portal.decision(key)
    recommendation = found["recommendation"]
    if as_json:
        _print_json(found)
    else:
        _print_recommendation(_out(), recommendation)
        if given := found["decision"]:
            _out().print(f"Answered: {given['action']} by {given['by']} at {given['at']}", markup=False)
    # A suspended proposal rests on data that has died: a pipeline must not act on it.
    acts = recommendation["action"] if recommendation["state"] != "suspended" else "hold"
    raise typer.Exit(EXIT_CODES[acts])


def _rows(lines: list[str]) -> Iterator[Json]:
    """Rows of a CSV with a header or of JSON lines. Raises ValueError that names the line."""
    if lines and lines[0].lstrip().startswith("{"):
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as problem:
                    raise ValueError(f"line {number} is no JSON: {problem}") from problem
        return
    reader = csv.DictReader(lines)
    for cells in reader:
        row: Json = {name: text.strip() for name, text in cells.items() if name and text and text.strip()}
        for name, kind in (("value", float), ("variance", float), ("n", int), ("window_s", int), ("revision", int)):
            if name in row:
                try:
                    row[name] = kind(row[name])
                except ValueError:
                    raise ValueError(f"line {reader.line_num}: {name} is {row[name]!r}, no number") from None
        yield row


def _portal() -> Portal:
    kept = Path(os.environ.get("DECISIONING_HOME", ".data")) / "credentials.json"
    known: dict[str, str] = json.loads(kept.read_text()) if kept.exists() else {}
    url, key = (
        os.environ.get("DECISIONING_URL", known.get("url")),
        os.environ.get("DECISIONING_API_KEY", known.get("api_key")),
    )
    if not url or not key:
        _fail("Set DECISIONING_URL and DECISIONING_API_KEY; `manage.py create_key` makes a key.", _USAGE)
    return Portal(url, key)


def _print_recommendation(out: Console, told: Json) -> None:
    state = "" if told["state"] == "open" else f" ({told['state']})"
    out.print(f"{told['action']} {told['code']}{state}", style="bold")
    for line in [*told["rationale"], *(each for each in told["blockers"] if each not in told["rationale"])]:
        out.print(f"  {line}", markup=False)
    if told["evidence_digest"]:
        out.print(f"  evidence {told['evidence_digest']}")


def _out() -> Console:
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def _err() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _fail(message: str, code: int = _ERROR) -> NoReturn:
    _err().print(message, markup=False)
    raise SystemExit(code)
