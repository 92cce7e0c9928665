"""What is wrong and was told, and answering it: `decisioning alarms`."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from decisioning.agents.client import Json, place
from decisioning.agents.options import Team, open_portal
from decisioning.agents.terminal import USAGE, AsJson, end, print_json, print_table, seconds, tell
from decisioning.literals import rfc3339

alarms = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What is wrong, and answering it.")
Number = Annotated[int, typer.Argument(help="The alarm's number, from `alarms list` or a message.", metavar="ALARM")]


@alarms.command("list", epilog="Example: decisioning alarms list --type freshness.breached")
def list_(
    *,
    type_: Annotated[str | None, typer.Option("--type", help="Only of this type, such as freshness.breached.")] = None,
    team: Team = None,
    as_json: AsJson = False,
) -> None:
    """What is wrong now and was told: late data, failing guards, overdue answers, broken promises."""
    with open_portal() as portal:
        found = list(portal.pages("/api/alarms", limit=200, type=type_, team=team))
    if as_json:
        print_json(found)
        return
    rows = [(a["id"], a["type"], a["subject"], a["began_at"], _waits(a), _answered(a)) for a in found]
    print_table(("alarm", "type", "about", "since", "experiments", "answered"), rows)


def _waits(alarm: Json) -> str:
    return str(alarm["data"].get("experiments_late") or alarm["experiment"] or "")


def _answered(alarm: Json) -> str:
    """
    >>> _answered({"snoozed": {"until": "2026-11-24T06:00:00Z", "by": "ada", "reason": "known"}, "acknowledged": None})
    'snoozed until 2026-11-24T06:00:00Z by ada: known'
    """
    snoozed, acknowledged = alarm["snoozed"], alarm["acknowledged"]
    said = [f"snoozed until {snoozed['until']} by {snoozed['by']}: {snoozed['reason']}"] if snoozed else []
    return "; ".join([*said, *([f"{acknowledged['by']} deals with it"] if acknowledged else [])])


@alarms.command(epilog="Example: decisioning alarms snooze 12 --for 4h --reason 'the vendor mends it'")
def snooze(
    alarm: Number,
    *,
    reason: Annotated[str, typer.Option(help="Why nobody needs to be told meanwhile.")],
    for_: Annotated[float | None, typer.Option("--for", parser=seconds, metavar="TIME", help="Such as 4h.")] = None,
    until: Annotated[str | None, typer.Option(help="Or an instant, such as 2026-11-24T06:00:00Z.")] = None,
    as_json: AsJson = False,
) -> None:
    """Have nothing told of an alarm until then; what is so then is told."""
    if (for_ is None) == (until is None):
        end("Say either --for 4h or --until 2026-11-24T06:00:00Z.", USAGE)
    at = until or rfc3339(datetime.now(UTC) + timedelta(seconds=for_ or 0), timespec="seconds")
    with open_portal() as portal:
        told = portal.post(place("alarms", alarm, "snooze"), {"until": at, "reason": reason})
    tell(told, f"Nothing is told of alarm {alarm} until {told['snoozed']['until']}.", as_json=as_json)


@alarms.command(epilog="Example: decisioning alarms wake 12")
def wake(alarm: Number, *, as_json: AsJson = False) -> None:
    """Let an alarm that is snoozed be told again."""
    with open_portal() as portal:
        portal.delete(place("alarms", alarm, "snooze"))
        told = portal.get(place("alarms", alarm))
    tell(told, f"Alarm {alarm} is snoozed no longer.", as_json=as_json)


@alarms.command(epilog="Example: decisioning alarms acknowledge 12")
def acknowledge(
    alarm: Number,
    *,
    undo: Annotated[bool, typer.Option("--undo", help="Nobody deals with it any more.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say that you deal with an alarm: only its end is told from now on."""
    where = place("alarms", alarm, "acknowledgement")
    with open_portal() as portal:
        if undo:
            portal.delete(where)
        told = portal.get(place("alarms", alarm)) if undo else portal.post(where)
    said = "Nobody" if told["acknowledged"] is None else told["acknowledged"]["by"]
    tell(told, f"{said} deals with alarm {alarm}.", as_json=as_json)
