"""`decisioning experiments`: what is being tried."""

from typing import Annotated

import typer

from decisioning.agents.client import Json
from decisioning.agents.options import Key, Reason, Team, json_of, open_portal, warn
from decisioning.agents.terminal import (
    AsJson,
    print_gates,
    print_json,
    print_recommendation,
    print_table,
    say,
    tell,
)

experiments = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What is being tried.")


@experiments.command("list", epilog="Example: decisioning experiments list --status running --recommendation scale")
def list_experiments(
    *,
    status: Annotated[str | None, typer.Option(help="draft, running, paused, scaled, deleted, stopped")] = None,
    recommendation: Annotated[str | None, typer.Option(help="scale, delete, review, hold")] = None,
    freshness: Annotated[str | None, typer.Option(help="fresh, due, late, stale, unknown")] = None,
    team: Team = None,
    owner: Annotated[str | None, typer.Option(help="Whose they are.")] = None,
    metric: Annotated[str | None, typer.Option(help="A metric they measure.")] = None,
    search: Annotated[str | None, typer.Option(help="Words in key, name, hypothesis or owner.")] = None,
    as_json: AsJson = False,
) -> None:
    """Every experiment the key may see, newest first. Filters take several words, separated by commas."""
    asked = {"status": status, "recommendation": recommendation, "freshness": freshness}
    asked |= {"team": team, "owner": owner, "metric": metric, "search": search}
    with open_portal() as portal:
        found = list(portal.experiments(**asked))
    if as_json:
        print_json(found)
        return
    rows = [
        (e["key"], e["status"], _short(e["recommendation"]), e["freshness"]["state"], e["owner"], e["name"])
        for e in found
    ]
    print_table(("experiment", "status", "recommendation", "data", "owner", "name"), rows)


@experiments.command("show", epilog="Example: decisioning experiments show checkout")
def show_experiment(key: Key, *, as_json: AsJson = False) -> None:
    """One experiment: what it measures, its gates and the recommendation."""
    with open_portal() as portal:
        document = portal.experiment(key)
    if as_json:
        print_json(document)
        return
    state = f"{document['status']}, data {document['freshness']['state']}, as of {document['as_of']}"
    say(f"{document['name']} ({document['key']}): {state}", document["hypothesis"], "")
    rows = [
        (k["metric"], k["role"], v["variant"], f"{v['value']:.6g}", v["n"], v["ts"])
        for k in document["kpis"]
        for v in k["values"]
    ]
    print_table(("metric", "role", "variant", "newest", "n", "at"), rows)
    say("")
    print_gates(document["gates"])
    say("")
    print_recommendation(document["recommendation"])


@experiments.command("create", epilog="Example: decisioning experiments create plan.json")
def create_experiment(
    file: Annotated[typer.FileText, typer.Argument(help="JSON as POST /api/experiments takes it; - for stdin.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Create an experiment from a JSON file; prints its key, and on stderr what its plan has to be warned of.

    The least it needs: {"name": "...", "hypothesis": "...", "target_kpis": ["metric"]}.
    """
    with open_portal() as portal:
        document = portal.create_experiment(json_of(file))
    tell(document, document["key"], as_json=as_json)
    warn(goal["warning"] for goal in document.get("planning", []))
    warn(document.get("warnings", []))


@experiments.command("start", epilog="Example: decisioning experiments start checkout")
def start(key: Key, *, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let a draft run, or go on after a pause."""
    _move(key, "running", reason, as_json=as_json)


@experiments.command("pause", epilog='Example: decisioning experiments pause checkout --reason "Payment outage"')
def pause(key: Key, *, reason: Reason = "", as_json: AsJson = False) -> None:
    """Judge nothing for now; rows are still taken."""
    _move(key, "paused", reason, as_json=as_json)


@experiments.command("stop", epilog='Example: decisioning experiments stop checkout --reason "Overtaken by events"')
def stop(key: Key, *, reason: Reason = "", as_json: AsJson = False) -> None:
    """End it without a decision. This cannot be taken back."""
    _move(key, "stopped", reason, as_json=as_json)


def _move(key: str, to: str, reason: str, *, as_json: bool) -> None:
    with open_portal() as portal:
        document = portal.transition(key, to, reason=reason)
    tell(document, f"{document['key']} is {document['status']}.", as_json=as_json)


def _short(told: Json) -> str:
    return f"{told['action']} {told['code']}" + ("" if told["state"] in ("open", "proposed") else f" ({told['state']})")
