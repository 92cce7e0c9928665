"""What every command shares: what it prints and where, durations, waiting, and how it ends."""

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from decisioning.agents.client import Json, PortalError, Unreachable

EXIT_CODES = {"scale": 0, "hold": 10, "review": 11, "delete": 12}
ERROR, USAGE = 1, 2
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SLOWEST_S = 30.0
_TONES = {
    "scale": "green", "pass": "green", "fresh": "green", "succeeded": "green",
    "review": "yellow", "partial": "yellow", "due": "yellow", "late": "yellow", "inconclusive": "yellow",
    "delete": "red", "fail": "red", "stale": "red", "invalid": "red", "failed": "red",
}  # fmt: skip

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def seconds(text: str | float) -> float:
    """A duration in seconds; a default comes as a number already.

    >>> seconds("24h"), seconds("90s"), seconds("0.5m")
    (86400.0, 90.0, 30.0)
    """
    if not isinstance(text, str):
        return text
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no duration. Write 90s, 15m, 24h or 7d.")
    return float(found[1]) * _UNITS[found[2]]


Wait = Annotated[
    float,
    typer.Option(
        "--wait", parser=seconds, metavar="TIME", show_default=False, help="Wait, at most so long: 90s, 15m, 24h."
    ),
]


def wait_for[T](
    look: Callable[[], T],
    done: Callable[[T], bool],
    wait_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Look until it is done or the time is over; the last look. A portal that is away meanwhile is waited for as well."""
    until, pace = clock() + wait_s, 0.5
    while True:
        try:
            found = look()
            if done(found) or clock() >= until:
                return found
        except Unreachable:
            if clock() >= until:
                raise
        sleep(max(0.0, min(pace, until - clock())))
        pace = min(pace * 1.3, _SLOWEST_S)


def acts_on(found: Json, *, answered: bool = False) -> str:
    """The word a script branches on: what people answered, else what is proposed, else hold.

    found: what GET .../decision says. answered: a proposal that nobody has answered counts as hold.
    """
    told, given = found["recommendation"], found["decision"]
    if told["state"] == "answered" and given is not None:
        to = given["override_to"] if given["action"] == "override" else told["action"]
        return "review" if to == "stop" else str(to)  # stopped without a word for or against it: nothing to deploy
    if answered or told["state"] == "suspended":  # a suspended proposal rests on data that has died
        return "hold"
    return str(told["action"])


def out() -> Console:
    """What was asked for."""
    return _console(stderr=False)


def err() -> Console:
    """What else there is to say."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:  # nobody's screen ends here, so nothing is folded
        console = Console(stderr=stderr, highlight=False, width=1_000, soft_wrap=True)
    return console


def say(*lines: str) -> None:
    """Lines as they are, for people."""
    for line in lines:
        out().print(line, markup=False)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def tell(value: Any, *lines: str, as_json: bool) -> None:
    """A value for programs, or lines for people."""
    if as_json:
        print_json(value)
    else:
        say(*lines)


def print_line(value: Any) -> None:
    """One JSON value a line, at once: for what goes on."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(*names, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    out().print(table)


def _cell(value: object) -> Any:
    text = "" if value is None else str(value)
    tone = _TONES.get(text.partition(" ")[0])
    escaped = text.replace("[", r"\[")
    return f"[{tone}]{escaped}[/{tone}]" if tone else escaped


def print_recommendation(told: Json) -> None:
    """The recommendation with its reasons and the evidence it rests on."""
    state = "" if told["state"] == "open" else f" ({told['state']})"
    of = f" of {told['variant']}" if told.get("variant") else ""
    out().print(f"{told['action']}{of} {told['code']}{state}", style=f"bold {_TONES.get(told['action'], '')}")
    say(*(f"  {line}" for line in told["rationale"]))
    say(*(f"  {line}" for line in told["blockers"] if line not in told["rationale"]))
    if told["evidence_digest"]:
        say(f"  evidence {told['evidence_digest']}")


def print_gates(found: list[Json]) -> None:
    rows = []
    for gate in found:
        reading = gate["reading"] or {}
        told = ""
        if isinstance(estimate := reading.get("estimate"), int | float):
            told = f"{estimate:+.4g}"
            if isinstance(reading.get("lower"), int | float) and isinstance(reading.get("upper"), int | float):
                told += f" ({reading['lower']:+.4g} to {reading['upper']:+.4g})"
        rows.append((gate["gate"], gate["variant"], gate["verdict"], told, gate.get("reason", "")))
    print_table(("gate", "variant", "verdict", "reading, up is good", "reason"), rows)


def refused(refusal: PortalError, *, as_json: bool) -> NoReturn:
    """End with code 1: what the portal refused, where, and what to do."""
    if as_json:
        told = {"status": refusal.status, "code": refusal.code, "detail": refusal.detail, "errors": refusal.errors}
        sys.stderr.write(json.dumps(told, ensure_ascii=False) + "\n")
        raise SystemExit(ERROR)
    lines = [f"{refusal.detail} ({refusal.code}, {refusal.status})"]
    if len(refusal.errors) > 1 or any("line" in error for error in refusal.errors):
        lines += [f"  {_place(e)}: {e.get('detail') or e.get('code', '')}" for e in refusal.errors[:20]]
    if len(refusal.errors) > 20:
        lines.append(f"  and {len(refusal.errors) - 20} more; --json shows all")
    if refusal.status == 401:
        lines.append("Log in with `decisioning login URL`, or set DECISIONING_API_KEY.")
    end("\n".join(lines))


def _place(error: Json) -> str:
    """Where it stands: in which line of a file that was sent, else in the body."""
    return f"line {error['line']}" if "line" in error else str(error.get("pointer", ""))


def end(message: str, code: int = ERROR) -> NoReturn:
    """Say it on stderr and end."""
    err().print(message, markup=False)
    raise SystemExit(code)
