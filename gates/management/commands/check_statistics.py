"""Our formulas against published cases, in a file anybody can write."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandError, CommandParser

from gates.engine.statistics.reference import ANSWERS, Difference, check


class Command(BaseCommand):
    help = (
        "Compute every case of a file with the formulas the gates use, and print the difference from what the file expects. The file is a JSON list "
        f"of {{id, kind, inputs, expected, tolerance}}; kinds: {', '.join(sorted(ANSWERS))}. Exits 1 when a difference is beyond its tolerance or a "
        "case cannot be read. Needs no running installation."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, metavar="FILE", help="Such as cases.json.")

    def handle(self, *_args: Any, **options: Any) -> None:
        found: list[Difference] = []
        unread = 0
        for case in _cases(options["file"]):
            try:
                differences = check(case)
            except (KeyError, TypeError, ValueError, ArithmeticError) as error:
                unread += 1
                named = case.get("id", "?") if isinstance(case, dict) else "?"
                self.stdout.write(f"{named:<24} not computed: {_said(error)}")
                continue
            found += differences
            for d in differences:
                verdict = "ok" if d.within else f"BEYOND {d.tolerance:g}"
                self.stdout.write(
                    f"{d.case:<24} {d.name:<16} expected {d.expected:<22.15g} ours {d.ours:<22.15g} "
                    f"difference {d.ours - d.expected:+.2e}  {verdict}"
                )
        beyond = sum(not d.within for d in found)
        told = f"{len(found)} numbers compared, {beyond} beyond their tolerance, {unread} cases not computed."
        if beyond or unread or not found:
            raise CommandError(told)
        self.stdout.write(told)


def _cases(path: Path) -> Iterator[Any]:
    try:
        cases = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise CommandError(f"{path} is no JSON: {error}.") from error
    if not isinstance(cases, list):
        raise CommandError(f"{path} must hold a JSON list of cases.")
    yield from cases


def _said(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
