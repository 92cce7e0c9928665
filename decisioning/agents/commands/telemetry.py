"""Rows in, and how fresh they are: `decisioning kpis`, `freshness`, `refresh`, `lineage`."""

import os
import re
import shlex
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from decisioning.agents.client import Json, Portal, PortalError, Receipt, Unreachable, place
from decisioning.agents.options import Key, Team, open_portal, some_keys
from decisioning.agents.rows import Unreadable, rows_of
from decisioning.agents.terminal import (
    ERROR,
    USAGE,
    AsJson,
    Wait,
    err,
    print_json,
    print_table,
    say,
    tell,
    wait_for,
)

kpis = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What is measured.")
top = typer.Typer()


@kpis.command("push", epilog="Example: decisioning kpis push rows.csv -e checkout")
def push_kpis(
    file: Annotated[typer.FileBinaryRead, typer.Argument(help="CSV with a header, or JSON lines; - for stdin.")],
    experiment: Annotated[str, typer.Option("--experiment", "-e", help="The experiment's key or number.")],
    *,
    atomic: Annotated[bool, typer.Option(help="All rows of a batch of 10,000 or none of it.")] = True,
    skip: Annotated[int, typer.Option(min=0, help="Leave out so many rows: where an earlier push stopped.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Send rows: metric, variant, ts, value and, where there are units, n and one spread: variance, stddev or standard_error; or sum
    with sum_squares in place of value and spread.

    Sending again is harmless: what is there already is counted and changes nothing. When it stops half way it says
    where, and how to go on from there.
    """
    sent, receipt, lines = skip, Receipt(), array("Q")

    def count(rows: int) -> None:
        nonlocal sent
        sent += rows

    def rows() -> Iterator[Json]:
        for line, row in islice(rows_of(progress), skip, None):
            lines.append(line)
            yield row

    with (
        _says_where_it_stopped(file.name, experiment, lambda: sent),
        open_portal() as portal,
        _progress(file) as progress,
    ):
        try:
            receipt = portal.push(experiment, rows(), atomic=atomic, sent=count)
        except PortalError as refusal:
            for error in refusal.errors:
                if found := re.match(r"/rows/(\d+)", str(error.get("pointer"))):
                    error["line"] = lines[sent - skip + int(found[1])]
            raise
    told: Json = {"accepted": receipt.accepted, "changed": receipt.changed, "duplicates": receipt.duplicates}
    told["refused"] = [
        {"row": skip + index + 1, "line": lines[index], "code": code, "detail": detail}
        for index, (code, detail) in sorted(receipt.refused.items())
    ]
    told |= {"ignored": list(receipt.ignored)} if receipt.ignored else {}
    if as_json:
        print_json(told)
    else:
        for bad in told["refused"]:
            err().print(f"line {bad['line']}: {bad['detail']} ({bad['code']})", markup=False)
        if receipt.ignored:
            err().print(f"ignored: {', '.join(receipt.ignored)} mean nothing here", markup=False)
        say(f"{receipt.accepted} new, {receipt.changed} changed, {receipt.duplicates} there already")
    if receipt.refused:
        raise typer.Exit(ERROR)


@contextmanager
def _says_where_it_stopped(name: str, experiment: str, sent: Any) -> Iterator[None]:
    """Batches go in one after the other; what ends it half way says how many rows are in, and how to go on."""
    try:
        yield
    except (PortalError, Unreachable, Unreadable, KeyboardInterrupt) as problem:
        unreadable = isinstance(problem, Unreadable)
        if unreadable:
            err().print(f"{name}: {problem}", markup=False)
        if sent():
            source = "-" if name == "<stdin>" else shlex.quote(name)
            command = f"decisioning kpis push {source} -e {shlex.quote(experiment)} --skip {sent()}"
            err().print(f"{sent():,} rows are in. To go on from there: {command}", markup=False)
        if unreadable:
            raise SystemExit(USAGE) from problem
        if isinstance(problem, KeyboardInterrupt):
            raise SystemExit(130) from problem
        raise


@contextmanager
def _progress(file: Any) -> Iterator[Any]:
    """The file's lines, with a bar on stderr where somebody looks and the end is known."""
    console = err()
    if not console.is_terminal or not Path(file.name).is_file():
        yield file
        return
    from rich.progress import wrap_file

    with wrap_file(file, os.fstat(file.fileno()).st_size, console=console, description="Sending") as lines:
        yield lines


@top.command(epilog="Example: decisioning freshness --state late,stale")
def freshness(
    experiment: Annotated[
        str | None, typer.Argument(help="Only this experiment's.", metavar="EXPERIMENT", autocompletion=some_keys)
    ] = None,
    *,
    state: Annotated[str | None, typer.Option(help="fresh, due, late, stale, unknown; several with commas")] = None,
    metric: Annotated[str | None, typer.Option(help="Only this metric.")] = None,
    team: Team = None,
    as_json: AsJson = False,
) -> None:
    """How fresh every KPI is that is being judged, and what its last refresh said."""
    asked = {"experiment": experiment, "state": state, "metric": metric, "team": team}
    with open_portal() as portal:
        found = list(portal.pages("/api/freshness", limit=200, **asked))
    if as_json:
        print_json(found)
        return
    rows = [
        (
            f["state"],
            f["experiment"],
            f["metric"],
            f["data_watermark"] or "no rows",
            f["due_at"],
            f["stale_at"],
            None if f["telemetry_p95_s"] is None else f"{f['telemetry_p95_s']:,.0f} s",
            f["last_refresh_at"],
            f["source"],
            (f["last_run"] or {}).get("error") or (f["last_run"] or {}).get("status"),
        )
        for f in found
    ]
    print_table(
        ("data", "experiment", "metric", "newest", "due", "stale at", "p95", "last refresh", "source", "last run"), rows
    )


@top.command(epilog="Example: decisioning refresh orders --wait 10m")
def refresh(
    source: Annotated[str, typer.Argument(help="The source's key.")],
    *,
    wait: Wait = 0.0,
    since: Annotated[str, typer.Option(help="Read again from this time, such as 2026-11-24T06:00:00Z.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what a run would do; keep nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pull a source's rows now. With --wait the exit code says whether the run brought rows; refused ones are told."""
    again: dict[str, Any] = {"since": since} if since else {}
    with open_portal() as portal:
        if dry_run:
            told = portal.post(place("sources", source, "refresh"), dry_run="true", **again)
            tell(
                told,
                f"{told['since']} to {told['until']}: {told['accepted']} new, {told['changed']} changed, "
                f"{told['duplicates']} there already, {told['refused']} refused, "
                f"{told['ignored']} of experiments that are not here",
                *told["problems"],
                as_json=as_json,
            )
            return
        told = portal.post(place("sources", source, "refresh"), **again)
        run = wait_for(lambda: _run_of(portal, told), _over, wait)
    if as_json:
        print_json(run)
    else:
        rows = "" if run.get("rows") is None else f", {run['rows']} rows"
        say(f"{source}: {run['status']}{rows} (run {run['id']})", *filter(None, [run.get("error")]))
    if _over(run) and run["status"] not in ("succeeded", "partial"):
        raise typer.Exit(ERROR)


def _run_of(portal: Portal, told: Json) -> Json:
    """The run as the refresh log has it; it is there from the moment it is asked for."""
    runs = (run for run in portal.pages("/api/refresh-log", limit=200) if run["id"] == told["run"])
    return next(runs, {"id": told["run"], "source": told["source"], "status": told["status"]})


def _over(run: Json) -> bool:
    return run["status"] in ("succeeded", "partial", "failed", "aborted")


@top.command(epilog="Example: decisioning lineage checkout")
def lineage(key: Key, *, as_json: AsJson = False) -> None:
    """Where an experiment's recommendation comes from: jobs, sources, metrics, gates, policy, evidence."""
    with open_portal() as portal:
        document = portal.experiment(key)
        tracked = {f["metric"]: f for f in portal.pages("/api/freshness", limit=200, experiment=document["key"])}
        sources = {s["key"]: s for s in portal.pages("/api/sources", limit=200, team=document["team"])}
    told = _lineage(document, tracked, sources)
    if as_json:
        print_json(told)
        return
    rows = [
        (
            (k["source"] or {}).get("lineage_job") or "",
            (k["source"] or {}).get("key") or "pushed",
            k["metric"],
            k["role"],
            k["state"],
            k["data_watermark"] or "no rows",
            (k["last_run"] or {}).get("status"),
        )
        for k in told["kpis"]
    ]
    print_table(("job", "source", "metric", "role", "data", "newest", "last run"), rows)
    found = told["recommendation"]
    policy_ = found["policy"] or {"name": "none", "version": 0}
    say(f"gates {', '.join(told['gates']) or 'none yet'}", f"policy {policy_['name']} {policy_['version']}")
    say(f"{found['action']} {found['code']}, evidence {found['evidence_digest'] or 'none yet'}")


def _lineage(document: Json, tracked: dict[str, Json], sources: dict[str, Json]) -> Json:
    kpis_ = []
    for kpi in document["kpis"]:
        beside = tracked.get(kpi["metric"], {})
        source = sources.get(beside.get("source") or "")
        kpis_.append({
            "metric": kpi["metric"],
            "role": kpi["role"],
            "state": kpi["freshness"]["state"],
            "data_watermark": kpi["freshness"]["data_watermark"],
            "source": source and {name: source[name] for name in ("key", "kind", "lineage_job")},
            "last_run": beside.get("last_run"),
        })  # fmt: skip
    told = {name: document["recommendation"][name] for name in ("action", "code", "state", "policy", "evidence_digest")}
    gates_ = sorted({gate["gate"] for gate in document["gates"]})
    head = {"experiment": document["key"], "as_of": document["as_of"]}
    return {**head, "kpis": kpis_, "gates": gates_, "recommendation": told}
