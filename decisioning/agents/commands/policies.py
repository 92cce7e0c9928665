"""`decisioning policy`: by which rules it is judged."""

import secrets
from typing import Annotated

import typer

from decisioning.agents.client import Json, Portal, PortalError, place
from decisioning.agents.options import Team, json_of, open_portal, warn
from decisioning.agents.terminal import (
    ERROR,
    AsJson,
    Wait,
    print_json,
    say,
    tell,
    wait_for,
)

policy = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="By which rules it is judged.")


Name = Annotated[str, typer.Argument(help="The policy's name.", metavar="POLICY")]
Version = Annotated[int | None, typer.Argument(help="Its newest version when left out.", metavar="VERSION")]
Body = Annotated[typer.FileText, typer.Argument(help="The policy's body as JSON; - for stdin.", metavar="FILE")]


@policy.command("lint", epilog="Example: decisioning policy lint careful.json")
def lint(
    file: Body,
    *,
    version_of: Annotated[str | None, typer.Option("--for", help="As the next version of this policy.")] = None,
    team: Team = None,
    as_json: AsJson = False,
) -> None:
    """Say everything that is wrong with a policy, gate by gate; nothing is kept."""
    body = json_of(file)
    with open_portal() as portal:
        if version_of:
            told = portal.post(
                place("policies", version_of, "versions"), {"body": body}, dry_run="true", **_named(team)
            )
        else:
            asked = {"name": f"lint-{secrets.token_hex(4)}", "body": body, **_named(team)}
            told = portal.post("/api/policies", asked, dry_run="true")["versions"][0]
    gates_ = told["body"]["gates"]
    tell({"valid": True, "gates": len(gates_)}, f"Nothing is wrong: {len(gates_)} gates.", as_json=as_json)
    warn(told.get("warnings", []))


@policy.command("add", epilog="Example: decisioning policy add careful careful.json")
def add(name: Name, file: Body, *, team: Team = None, as_json: AsJson = False) -> None:
    """Keep a policy, or the next version of one that is there. A later version waits for a backtest and for another person."""
    body = json_of(file)
    with open_portal() as portal:
        try:
            told = portal.post(place("policies", name, "versions"), {"body": body}, **_named(team))
        except PortalError as refusal:
            if refusal.status != 404:
                raise
            told = portal.post("/api/policies", {"name": name, "body": body, **_named(team)})["versions"][0]
    judges = "judges from now on" if told["activated_at"] else f"waits: decisioning policy backtest {name}"
    tell(told, f"{name} {told['version']} {judges}", as_json=as_json)
    warn(told.get("warnings", []))


@policy.command("backtest", epilog="Example: decisioning policy backtest careful --wait 10m")
def backtest(
    name: Name, version: Version = None, *, team: Team = None, wait: Wait = 600.0, as_json: AsJson = False
) -> None:
    """Hold a version against what is live, over the team's recorded experiments: what would have been decided, and when."""
    with open_portal() as portal:
        number = _number(portal, name, version, team)
        where = place("policies", name, "versions", number, "backtest")
        portal.post(where, **_named(team))
        found = wait_for(lambda: portal.get(where, team=team), lambda found: found["state"] != "queued", wait)
    if as_json:
        print_json(found)
    elif found["state"] == "finished":
        say(f"{name} {number}: {_outcome(found)}", f"To let it judge: decisioning policy activate {name} {number}")
    else:
        say(f"{name} {number}: {found['state']}", *filter(None, [found["error"]]))
    if found["state"] == "failed":
        raise typer.Exit(ERROR)


@policy.command("activate", epilog="Example: decisioning policy activate careful 2")
def activate(name: Name, version: Version = None, *, team: Team = None, as_json: AsJson = False) -> None:
    """Let a version judge. It needs a finished backtest, and somebody other than its author."""
    with open_portal() as portal:
        number = _number(portal, name, version, team)
        told = portal.post(place("policies", name, "versions", number, "activate"), **_named(team))
    tell(told, f"{name} {number} judges since {told['activated_at']}.", as_json=as_json)


def _number(portal: Portal, name: str, version: int | None, team: str | None) -> int:
    return version or int(portal.get(place("policies", name), team=team)["versions"][0]["version"])


def _named(team: str | None) -> Json:
    return {"team": team} if team else {}


def _outcome(found: Json) -> str:
    agreement = "" if found["agreement"] is None else f", agrees with people in {found['agreement']:.0%}"
    days = "" if found["days_saved"] is None else f", {found['days_saved']:+.1f} days saved"
    of = f"{len(found['experiments'])} experiments"
    return f"{of}: {found['flips']} flips, {found['gained']} gained, {found['lost']} lost{days}{agreement}"
