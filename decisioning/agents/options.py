"""What commands of the terminal take alike, and the portal they ask."""

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from decisioning.agents import credentials
from decisioning.agents.client import Portal, PortalError, Unreachable
from decisioning.agents.terminal import (
    USAGE,
    end,
    err,
)


def open_portal() -> Portal:
    return Portal(*known())


def known() -> credentials.Known:
    try:
        return credentials.find()
    except credentials.Unknown as problem:
        end(str(problem), USAGE)


def some_keys(begun: str) -> list[str]:
    """For the shell's completion; whatever goes wrong there, nothing is proposed."""
    try:
        with Portal(*credentials.find(), patience_s=0, timeout_s=2) as portal:
            return [row["key"] for row in portal.experiments(search=begun) if row["key"].startswith(begun)]
    except (credentials.Unknown, PortalError, Unreachable):
        return []


Key = Annotated[
    str, typer.Argument(help="The experiment's key or number.", metavar="EXPERIMENT", autocompletion=some_keys)
]
Reason = Annotated[str, typer.Option(help="Why; it stays in the audit.")]
Team = Annotated[str | None, typer.Option(help="The team's key, where the name alone does not tell.")]
Digest = Annotated[str | None, typer.Option(help="The evidence you saw: sha256:... as `decision show` prints it.")]
Variant = Annotated[str | None, typer.Option(help="The variant whose proposal is meant, where there are several.")]
Yes = Annotated[bool, typer.Option("--yes", help="Answer what is proposed now without asking back.")]


def warn(lines: Iterable[str | None]) -> None:
    """On stderr, what was taken and yet needs a second look."""
    for line in filter(None, lines):
        err().print(line, markup=False)


def json_of(file: Any) -> Any:
    try:
        return json.load(file)
    except ValueError as problem:
        end(f"{file.name} is no JSON: {problem}", USAGE)
