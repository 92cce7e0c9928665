"""What happens on the board, and what the portal keeps of its promises: `decisioning events`, `slo`."""

import json
import time
from typing import Annotated

import typer

from decisioning.agents.client import Json, Portal, Unreachable
from decisioning.agents.news import news
from decisioning.agents.options import open_portal, some_keys
from decisioning.agents.terminal import (
    AsJson,
    err,
    print_json,
    print_line,
    print_table,
    say,
    seconds,
)

events = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What happens on the board.")
top = typer.Typer()


@top.command(epilog="Example: decisioning slo")
def slo(*, as_json: AsJson = False) -> None:
    """What the portal promises, what it keeps, and what is left of the budgets."""
    with open_portal() as portal:
        found = portal.get("/api/slo")
    if as_json:
        print_json(found)
        return
    rows = []
    for name, promise in found.items():
        if isinstance(promise, dict) and "holds" in promise:
            measured, target = _measured(promise)
            holds = {True: "yes", False: "no", None: "nothing to judge"}[promise["holds"]]
            left = "" if promise["budget_left"] is None else f"{promise['budget_left']:.0%}"
            rows.append((name.replace("_", " "), measured, target, holds, left))
    say(f"As of {found['as_of']}, over {found['window_days']} days")
    print_table(("promise", "measured", "target", "kept", "budget left"), rows)
    days = found["days_to_decide"]
    if days["counted"]:
        say(
            f"{days['median']:.1f} days by median from the first look that could be read to a proposal; {days['waiting']} wait for one."
        )
    answers = found["answers"]
    say(f"{answers['open']} proposals wait for an answer, {answers['overdue']} for longer than they should.")


def _measured(promise: Json) -> tuple[str, str]:
    if "p95_s" in promise:
        return "" if promise["p95_s"] is None else f"p95 {promise['p95_s']:.0f} s", f"{promise['target_s']} s"
    return "" if promise["share"] is None else f"{promise['share']:.1%}", f"{promise['target']:.1%}"


@events.command("tail", epilog="Example: decisioning events tail --json | jq .type")
def tail(
    experiment: Annotated[
        str | None, typer.Argument(help="Only this experiment.", metavar="EXPERIMENT", autocompletion=some_keys)
    ] = None,
    *,
    every: Annotated[float, typer.Option(parser=seconds, metavar="TIME", help="How often to look.")] = 5.0,
    for_: Annotated[float | None, typer.Option("--for", parser=seconds, metavar="TIME", help="End after this.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what changes from now on: proposals, answers, data that goes stale or comes back, guards that fail.

    It looks at the board again and again; what comes and goes between two looks is not seen. Webhooks miss nothing.
    """
    until = time.monotonic() + for_ if for_ is not None else float("inf")
    with open_portal() as portal:
        before = _board(portal, experiment)
        while time.monotonic() < until:
            time.sleep(max(0.0, min(every, until - time.monotonic())))
            try:
                after = _board(portal, experiment)
            except Unreachable as problem:
                err().print(f"{problem}. Looking again.", markup=False)
                continue
            for event in news(before, after):
                print_line(event) if as_json else say(_sentence(event))
            before = after


def _board(portal: Portal, experiment: str | None) -> dict[str, Json]:
    rows = [portal.experiment(experiment)] if experiment else portal.experiments()
    return {row["key"]: row for row in rows}


def _sentence(event: Json) -> str:
    rest = {name: value for name, value in event.items() if name not in ("type", "experiment", "as_of")}
    words = " ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in rest.items())
    return f"{event['as_of']} {event['type']} {event['experiment']} {words}"
