"""`decisioning gates` and `decisioning decision`: what the gates recommend and what people answer."""

import sys
from typing import Annotated

import typer

from decisioning.agents.client import Json, place
from decisioning.agents.options import Digest, Key, Variant, Yes, open_portal
from decisioning.agents.terminal import (
    EXIT_CODES,
    USAGE,
    AsJson,
    Wait,
    acts_on,
    end,
    print_gates,
    print_json,
    print_recommendation,
    say,
    tell,
    wait_for,
)

decision = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="What the gates recommend and what people answer."
)
top = typer.Typer()


@top.command(epilog="Example: decisioning gates checkout")
def gates(key: Key, *, as_json: AsJson = False) -> None:
    """What each gate says, on which reading and why."""
    with open_portal() as portal:
        found = portal.get(place("experiments", key, "gates"))
    if as_json:
        print_json(found)
        return
    print_gates(found["results"])


@decision.command("show", epilog="Example: decisioning decision show checkout --wait 24h && ./deploy.sh")
def show_decision(
    key: Key,
    *,
    wait: Wait = 0.0,
    answered: Annotated[bool, typer.Option("--answered", help="Until a person answers, it is a hold.")] = False,
    as_json: AsJson = False,
) -> None:
    """The recommendation, by exit code too: scale 0, hold 10, review 11, delete 12; an error is 1.

    What people answered wins over what was proposed. --wait waits for as long as it is a hold.
    """
    with open_portal() as portal:
        found = wait_for(lambda: portal.decision(key), lambda found: acts_on(found, answered=answered) != "hold", wait)
    if as_json:
        print_json(found)
    else:
        print_recommendation(found["recommendation"])
        if given := found["decision"]:
            to = f" to {given['override_to']}" if given["override_to"] else ""
            say(f"Answered: {given['action']}{to} by {given['by']} at {given['at']}")
            if now := given.get("would_now"):
                say(f"Decided on older data: the gates would now say {now['action']} ({now['code']}).")
    raise typer.Exit(EXIT_CODES[acts_on(found, answered=answered)])


@decision.command("accept", epilog="Example: decisioning decision accept checkout --digest sha256:0f3a...")
def accept(
    key: Key, *, digest: Digest = None, variant: Variant = None, yes: Yes = False, as_json: AsJson = False
) -> None:
    """Accept what is proposed, naming the evidence you saw; a newer proposal in between is refused."""
    _answer(key, digest, variant, {"action": "accept"}, yes=yes, as_json=as_json)


@decision.command(
    "override", epilog='Example: decisioning decision override checkout hold --reason "Campaign next week" --yes'
)
def override(
    key: Key,
    to: Annotated[str, typer.Argument(help="scale, delete, stop or hold")],
    *,
    reason: Annotated[str, typer.Option(help="Why the evidence does not settle it. It is required.")],
    digest: Digest = None,
    variant: Variant = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Decide otherwise than proposed, and say why."""
    said = {"action": "override", "override_to": to, "reason": reason}
    _answer(key, digest, variant, said, yes=yes, as_json=as_json)


def _answer(
    key: str, digest: str | None, variant: str | None, said: dict[str, str], *, yes: bool, as_json: bool
) -> None:
    with open_portal() as portal:
        if digest is None:
            digest = _seen(portal.decision(key), variant, said, yes=yes)
        given = portal.answer(key, digest, **said)
    tell(given, f"{given['experiment']} is {given['status']}, by {given['by']}.", as_json=as_json)


def _seen(found: Json, variant: str | None, said: dict[str, str], *, yes: bool) -> str:
    """The digest of the proposal that is shown here and now, once a person or --yes has said that it is meant."""
    told = found["recommendation"]
    if variant is not None:
        named = {each["variant"]: each for each in found["variants"]}
        if variant not in named:
            end(f"{found['experiment']} has no variant {variant!r} to answer for: {', '.join(named)}.", USAGE)
        told = named[variant]
    if not told["evidence_digest"]:
        end("Nothing was judged yet, so there is nothing to answer.")
    if not yes:
        if not sys.stdin.isatty():
            end("Say which evidence you saw with --digest, or --yes for whatever is proposed now.", USAGE)
        print_recommendation(told)
        typer.confirm(f"{said['action']} {said.get('override_to', told['action'])}?", abort=True)
    return str(told["evidence_digest"])
