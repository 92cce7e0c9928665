"""Bring recorded experiments in through the public API."""

import json
import os
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from decisioning.agents import history
from decisioning.agents.client import Portal, PortalError, Unreachable
from decisioning.commands.portal import own_portal, portal_as

_SHOWN_LINES = 20
_WIDTH = 180  # of a table that goes into a file


class Command(BaseCommand):
    help = (
        "Bring in recorded experiments from a CSV file, through the public API, and print what the gates recommend.\n\n"
        f"Wide, cumulative since the start: {','.join(history.WIDE)}\n"
        f"Long: {','.join(history.LONG)},n,variance\n\n"
        "The portal and the key come from DECISIONING_URL and DECISIONING_API_KEY, else from the running installation. "
        "Running it again changes nothing."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path)
        parser.add_argument("--policy", type=Path, help="A policy body (JSON) to judge by; saved as a team policy.")
        parser.add_argument("--plan", type=Path, help="JSON: metrics, target_kpis, weights, prefix, control, shift.")
        parser.add_argument("--team", help="Whose experiments they become; made when absent (default: the key's team).")
        parser.add_argument("--prefix", help="Put before each experiment's key (default: asos- for the wide format).")
        parser.add_argument("--json", action="store_true", help="Print the result as one line of JSON.")

    def handle(self, *_args: Any, **options: Any) -> None:
        console = Console(stderr=options["json"], highlight=False)
        if not console.is_terminal:
            console.width = _WIDTH
        try:
            lines = options["file"].read_text(encoding="utf-8").splitlines(keepends=True)
            given = json.loads(options["plan"].read_text()) if options["plan"] else None
            plan = history.plan_of(given, history.shape_of(lines[0] if lines else ""))
            if options["prefix"] is not None:
                plan = replace(plan, prefix=options["prefix"])
            recorded = history.read(lines, plan)
        except (OSError, ValueError) as problem:
            raise CommandError(str(problem)) from problem
        borrowed = options["team"] and not os.environ.get("DECISIONING_API_KEY")
        with portal_as(options["team"], rate="6000/m") if borrowed else own_portal() as portal:
            try:
                result = _bring_in(portal, recorded, plan, options, console)
            except (PortalError, Unreachable) as problem:
                raise CommandError(str(problem)) from problem
        if options["json"]:
            self.stdout.write(json.dumps(result))
        if result["failed"]:
            raise SystemExit(1)


def _bring_in(
    portal: Portal, recorded: history.History, plan: history.Plan, options: dict[str, Any], console: Console
) -> dict[str, Any]:
    policy = ""
    if options["policy"]:
        body = json.loads(options["policy"].read_text())
        policy = portal.ensure_policy(options["policy"].stem, body, team=options["team"])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        rows = progress.add_task("rows sent", total=recorded.samples)
        brought = list(
            history.bring_in(
                portal,
                recorded,
                plan,
                now=datetime.now(UTC).replace(microsecond=0),
                team=options["team"] or "",
                policy=policy,
                sent=lambda count: progress.advance(rows, count),
            )
        )
        here = [each for each in brought if not each.problem]
        judged = progress.add_task("judged", total=len(here))
        late = history.settle(portal, here, settled=lambda _key: progress.advance(judged))
    arms = [arm for each in here for arm in history.arms(portal, each.key)]
    bad = sorted([*recorded.bad, *(line for each in brought for line in each.refused)], key=lambda line: line.line)
    problems = {each.key: each.problem for each in brought if each.problem} | dict.fromkeys(late, "not judged in time")
    result = {
        "experiments": len(here),
        "arms": [asdict(arm) for arm in arms],
        "rows_accepted": sum(each.accepted for each in brought),
        "rows_duplicate": sum(each.duplicates for each in brought),
        "bad_lines": [asdict(line) for line in bad],
        "problems": problems,
        "warnings": {each.key: each.warnings for each in brought if each.warnings},
        "failed": bool(problems),
    }
    _print(console, arms, bad, result)
    return result


def _print(console: Console, arms: list[history.Arm], bad: list[history.BadLine], result: dict[str, Any]) -> None:
    table = Table(
        "experiment", "arm", "recommendation", "first proposed at", Column("reason", overflow="fold", ratio=1)
    )
    for arm in arms:
        state = "" if arm.state in ("proposed", "open") else f", {arm.state}"
        table.add_row(arm.experiment, arm.arm, f"{arm.action} {arm.code}{state}", _when(arm), arm.reason)
    console.print(table)
    if bad:
        console.print(f"\n{len(bad)} lines did not go in:")
        for line in bad[:_SHOWN_LINES]:
            console.print(f"  line {line.line}: {line.reason}", markup=False)
        if len(bad) > _SHOWN_LINES:
            console.print(f"  and {len(bad) - _SHOWN_LINES} more; --json lists all of them")
    for key, problem in result["problems"].items():
        console.print(f"{key}: {problem}", markup=False)
    for key, warnings in result["warnings"].items():
        console.print(f"{key}: {' '.join(warnings)}", markup=False)
    counts = {action: sum(arm.action == action for arm in arms) for action in ("scale", "delete", "review", "hold")}
    told = ", ".join(f"{count} {action}" for action, count in counts.items())
    console.print(
        f"\n{result['experiments']} experiments, {len(arms)} arms: {told}. {result['rows_accepted']} rows went in, "
        f"{result['rows_duplicate']} were there already, {len(bad)} lines refused."
        f"{' Failed: ' + ', '.join(result['problems']) if result['problems'] else ''}",
    )


def _when(arm: history.Arm) -> str:
    """As of when it was proposed first, in the history's own time."""
    if arm.action == "hold" or not arm.first_stable_at:
        return "not yet"
    return f"{datetime.fromisoformat(arm.first_stable_at):%Y-%m-%d %H:%MZ}"
