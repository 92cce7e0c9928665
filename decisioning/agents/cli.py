"""`decisioning`: the portal from a terminal, for people and for pipelines that branch on the exit code."""

import sys
from typing import Annotated

import typer

from decisioning.agents import credentials
from decisioning.agents.client import Portal, PortalError, Unreachable
from decisioning.agents.commands import alarms, decisions, experiments, metrics, policies, telemetry, watching
from decisioning.agents.options import known
from decisioning.agents.terminal import (
    USAGE,
    end,
    refused,
    say,
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Ask and feed a decision portal. Begin with `decisioning login URL`; in pipelines set DECISIONING_URL and "
    "DECISIONING_API_KEY, which win. Everywhere --json prints what programs read. Exit codes: 0 done, 1 refused or "
    "unreachable, 2 wrong usage; `decision show` says scale 0, hold 10, review 11, delete 12.",
    epilog="Example: decisioning decision show checkout --wait 24h && ./deploy.sh",
)


def main() -> None:
    """The entry point; refusals end with code 1 and say what to do."""
    try:
        app()
    except PortalError as refusal:
        refused(refusal, as_json="--json" in sys.argv)
    except Unreachable as problem:
        end(f"{problem}. Is it running? DECISIONING_URL says where to look.")


@app.command(epilog="Example: decisioning login https://decisions.example.org")
def login(
    url: Annotated[str, typer.Argument(help="The portal's address.")],
    *,
    key: Annotated[str, typer.Option(help="The key; asked for when left out, so that no shell keeps it.")] = "",
) -> None:
    """Keep an address and a key for the commands to come, readable by you alone.

    The key is tried first; a wrong one is not kept. DECISIONING_URL and DECISIONING_API_KEY win over what is kept.
    """
    if not url.startswith(("http://", "https://")):
        end(f"{url} is no address. Write it with https://.", USAGE)
    key = key or (typer.prompt("API key", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()).strip()
    with Portal(url, key, patience_s=0) as portal:
        portal.get("/api/experiments", limit=1)
    say(f"Logged in to {portal.url}. Kept in {credentials.keep(portal.url, key)}.")


@app.command("mcp", epilog="Example: decisioning mcp --http --port 8100")
def serve_agents(
    *,
    http: Annotated[bool, typer.Option("--http", help="Over HTTP at /mcp instead of stdin and stdout.")] = False,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8100,
    name: Annotated[
        list[str] | None, typer.Option(help="A name by which it may be called; needed beyond this machine. Repeatable.")
    ] = None,
) -> None:
    """Serve agents over the Model Context Protocol: they look, create, measure and backtest; they never decide.

    Give it an agent's key: `manage.py create_key --team T --scopes experiments:read,experiments:write,telemetry:write --agent`.
    Over HTTP callers may send a key of their own as Authorization: Bearer; the kept one is lent on this machine only.
    """
    from decisioning.agents import mcp_server

    url, key = known()
    if not http:
        mcp_server.serve(url, key)
        return
    if host not in mcp_server.LOOPBACK and not name:
        end(f"{host} is not this machine alone: say with --name by which names it may be called.", USAGE)
    mcp_server.serve_http(url, key, host=host, port=port, names=name or ())


app.add_typer(telemetry.top)
app.add_typer(watching.top)
app.add_typer(decisions.top)
app.add_typer(experiments.experiments, name="experiments")
app.add_typer(telemetry.kpis, name="kpis")
app.add_typer(metrics.metrics, name="metrics")
app.add_typer(decisions.decision, name="decision")
app.add_typer(policies.policy, name="policy")
app.add_typer(watching.events, name="events")
app.add_typer(alarms.alarms, name="alarms")
