"""`decisioning metrics`: what is measured, how often it comes, and the schedule its rows show."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import typer

from decisioning.agents.client import Json, place
from decisioning.agents.options import Team, open_portal, warn
from decisioning.agents.terminal import USAGE, AsJson, end, print_json, print_table, say, seconds, tell
from decisioning.literals import rfc3339

metrics = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="What is measured, and how often it comes.")

WORDS = ("hourly", "daily", "weekdays", "weekly", "monthly")
Key = Annotated[str, typer.Argument(help="The metric's key.", metavar="METRIC")]


@metrics.command("list", epilog="Example: decisioning metrics list --search revenue")
def list_(
    *,
    search: Annotated[str | None, typer.Option(help="A part of key, name or definition.")] = None,
    retired: Annotated[bool, typer.Option("--retired", help="Those that were retired.")] = False,
    as_json: AsJson = False,
) -> None:
    """What is registered, how often each comes, and by how many started experiments it is used."""
    with open_portal() as portal:
        found = list(portal.pages("/api/metrics", limit=200, search=search, retired="true" if retired else None))
    if as_json:
        print_json(found)
        return
    rows = [
        (m["key"], m["name"], m["kind"], m["direction"], m["expected_in_words"], m["team"], _used(m), m["replaced_by"])
        for m in found
    ]
    print_table(("metric", "name", "kind", "better", "comes", "team", "used by", "replaced by"), rows)


def _used(metric: Json) -> int:
    return len(metric["used_by"]["experiments"]) + int(metric["used_by"]["others"])


@metrics.command("change", epilog="Example: decisioning metrics change old_share --retire --replaced-by paid_share")
def change(
    key: Key,
    *,
    name: Annotated[str | None, typer.Option(help="As people call it.")] = None,
    unit: Annotated[str | None, typer.Option(help="Such as EUR.")] = None,
    definition: Annotated[str | None, typer.Option(help="What counts, in words.")] = None,
    direction: Annotated[
        Literal["increase", "decrease"] | None, typer.Option(help="Which way is better; not while it is used.")
    ] = None,
    least: Annotated[float | None, typer.Option("--min", help="Rows below are refused.", show_default=False)] = None,
    most: Annotated[float | None, typer.Option("--max", help="Rows above are refused.", show_default=False)] = None,
    capped_at: Annotated[
        float | None, typer.Option(help="Values of units were capped at it.", show_default=False)
    ] = None,
    retire: Annotated[
        bool | None, typer.Option("--retire/--no-retire", help="No new plan is judged by it; or it is taken back.")
    ] = None,
    replaced_by: Annotated[str | None, typer.Option(help="Key of the metric that replaces it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change a metric of your team. What it means (kind, direction, temporality, what counts) stays while started experiments are judged by it.

    --min and --max are given together: what is left out has no end.
    """
    given: Json = {"name": name, "unit": unit, "definition": definition, "direction": direction}
    given |= {"capped_at": capped_at, "replaced_by": replaced_by}
    said = {word: value for word, value in given.items() if value is not None}
    if least is not None or most is not None:
        said["bounds"] = {"min": least, "max": most}
    if retire is not None:
        said["retired_at"] = rfc3339(datetime.now(UTC)) if retire else None
    if not said:
        end("Say what to change, such as --name or --retire.", USAGE)
    with open_portal() as portal:
        told = portal.patch(place("metrics", key), said)
    retired = f" It was retired at {told['retired_at']}." if told["retired_at"] else ""
    tell(told, f"{key} is changed.{retired}", as_json=as_json)


@metrics.command(
    "create",
    epilog="Example: decisioning metrics create paid_share --kind proportion --expected weekdays --at 06:00 --timezone Europe/Berlin",
)
def create(
    key: Key,
    *,
    expected: Annotated[
        str,
        typer.Option(
            help="How often its data comes: hourly, daily, weekdays, weekly, monthly; a span such as 15m; or five fields of cron in quotes.",
            show_default=False,
        ),
    ] = "",
    at: Annotated[
        str | None, typer.Option(help="At which time of day, such as 06:00; of hourly the minute, :10.")
    ] = None,
    on: Annotated[str | None, typer.Option(help="Of weekly the weekday; of monthly the day, 1 to 28, or last.")] = None,
    timezone: Annotated[
        str | None, typer.Option(help="On whose clocks, such as Europe/Berlin; UTC when left out.")
    ] = None,
    late_by: Annotated[
        float | None,
        typer.Option(
            "--late-by", parser=seconds, metavar="TIME", help="How late a row may be: 15m, 6h.", show_default=False
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="As people call it.")] = None,
    kind: Annotated[Literal["mean", "proportion", "ratio", "gauge"], typer.Option(help="What a row says.")] = "mean",
    direction: Annotated[Literal["increase", "decrease"], typer.Option(help="Which way is better.")] = "increase",
    unit: Annotated[str | None, typer.Option(help="Such as EUR.")] = None,
    definition: Annotated[str | None, typer.Option(help="What counts, in words.")] = None,
    team: Team = None,
    as_json: AsJson = False,
) -> None:
    """Register a metric. How often its data comes has to be said: gates and alarms count by it.

    `decisioning metrics schedule METRIC` says later which schedule its rows show.
    """
    said = expected_of(expected, at=at, on=on, timezone=timezone)
    given: Json = {"key": key, "name": name or key.replace("_", " ").capitalize(), "kind": kind, "direction": direction}
    given |= {"expected": said, "unit": unit, "definition": definition, "team": team}
    if late_by is not None:
        given["freshness_target_s"] = round(late_by)
    with open_portal() as portal:
        told = portal.post("/api/metrics", {word: value for word, value in given.items() if value is not None})
    tell(told, f"{told['key']} comes {told['expected_in_words']}.", as_json=as_json)
    warn(told.get("warnings", []))


def expected_of(text: str, *, at: str | None, on: str | None, timezone: str | None) -> dict[str, Any]:
    """A schedule as the API takes it, of what somebody typed; what makes no sense of it is left for the portal to refuse.

    >>> expected_of("weekdays", at="06:00", on=None, timezone="Europe/Berlin")
    {'every': 'weekdays', 'at': '06:00', 'timezone': 'Europe/Berlin'}
    >>> expected_of("15m", at=None, on=None, timezone=None), expected_of("0 6 * * 1-5", at=None, on=None, timezone=None)
    ({'every_s': 900}, {'cron': '0 6 * * 1-5'})
    """
    clock: dict[str, Any] = {"at": at, "on": int(on) if on and on.isdigit() else on, "timezone": timezone}
    clock = {word: value for word, value in clock.items() if value is not None}
    if not text:
        end(
            "Say how often its data comes: --expected hourly, daily, weekdays, weekly or monthly (with --at and --timezone), a span such as "
            "15m, or five fields of cron in quotes.",
            USAGE,
        )
    if text in WORDS:
        return {"every": text, **clock}
    if " " in text.strip():
        return {"cron": text, **clock}
    return {"every_s": round(seconds(text)), **clock}


@metrics.command("schedule", epilog="Example: decisioning metrics schedule paid_share --take")
def schedule(
    key: Key,
    *,
    take: Annotated[bool, typer.Option("--take", help="Let what its rows show hold from now on.")] = False,
    since: Annotated[
        str | None,
        typer.Option(help="With --take: from this instant on, such as 2026-11-24T06:00:00Z, in place of now."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Which schedule a metric's rows show, how well it explains them, and what is configured.

    With --take the metric follows it from now on, or from --since; what came before is judged by the schedule of its time.
    """
    if since and not take:
        end("--since says from when on a schedule holds: give --take with it.", USAGE)
    with open_portal() as portal:
        told = portal.get(place("metrics", key, "schedule"))
        taken = None
        if take and told["state"] == "differs":
            change: Json = {"expected": told["found"]["expected"], **({"expected_from": since} if since else {})}
            taken = portal.patch(place("metrics", key), change)
    if as_json:
        print_json(taken or told)
    else:
        _print(told)
        if taken:
            holds = taken["schedules"][-1]["since"] if taken["schedules"] else None
            words = taken["schedules"][-1]["words"] if taken["schedules"] else taken["expected_in_words"]
            say("", f"{key} comes {words}" + (f" from {holds} on." if holds else "."))
        elif told["state"] == "differs":
            say("", f"To take it: decisioning metrics schedule {key} --take")
    if take and taken is None and told["state"] != "as_configured":
        end(f"There is nothing to take: {told['state'].replace('_', ' ')}.")


def _print(told: Json) -> None:
    rows = [
        (
            name,
            shown["words"],
            *((shown["fit"] or {}).get(word) for word in ("due", "missing", "rows", "explained", "off_s")),
        )
        for name in ("configured", "found")
        if (shown := told[name]) is not None
    ]
    say(told["detail"], "")
    print_table(("", "schedule", "due", "missing", "rows", "explained", "off by, s"), rows)
