"""Does this installation find the truth about its own traffic?"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from rich.console import Console

from decisioning.agents import selfcheck
from decisioning.agents.client import PortalError, Unreachable
from decisioning.commands.portal import portal_as


class Command(BaseCommand):
    help = (
        "Run three experiments on live traffic that this command drives, with truth known and latency and size measured: "
        "the same against itself, a treatment that is truly smaller, one that is truly larger. The gates must find "
        "nothing worth it for the first, scale the second and delete the third. At most three minutes."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--team", default="selfcheck", help="Whose experiments they are; made when absent.")
        parser.add_argument("--within", type=float, default=150.0, help="Seconds until it gives up.")
        parser.add_argument("--json", action="store_true", help="Print the result as one line of JSON.")

    def handle(self, *_args: Any, **options: Any) -> None:
        console = Console(stderr=options["json"], soft_wrap=True, highlight=False)
        began = datetime.now(UTC)
        console.print("Three experiments on live traffic; each request is put in an arm by a hash of its id.")

        def told(outcomes: Sequence[selfcheck.Outcome], seconds: float) -> None:
            shown = (f"{o.trial.name} {o.action}/{o.code} ({sum(o.requests.values())} requests)" for o in outcomes)
            console.print(f"{seconds:5.0f} s  {', '.join(shown)}", markup=False)

        try:
            with portal_as(options["team"], rate="60000/m", hours=1) as portal:
                outcomes = selfcheck.run(
                    portal,
                    team=options["team"],
                    suffix=f"{began:%m%d-%H%M%S}",
                    clock=lambda: datetime.now(UTC),
                    within_s=options["within"],
                    told=told,
                )
        except (PortalError, Unreachable) as problem:
            raise CommandError(str(problem)) from problem
        for outcome in outcomes:
            _print(console, outcome)
        right = sum(outcome.right for outcome in outcomes)
        seconds = (datetime.now(UTC) - began).total_seconds()
        console.print(
            f"\n{'Passed' if right == len(outcomes) else 'Failed'}: {right} of {len(outcomes)} as they must be, "
            f"in {seconds:.0f} s."
        )
        if options["json"]:
            told_json = [asdict(o) | {"trial": o.trial.name, "right": o.right} for o in outcomes]
            self.stdout.write(json.dumps({"passed": right == len(outcomes), "seconds": seconds, "trials": told_json}))
        if right < len(outcomes):
            raise SystemExit(1)


def _print(console: Console, outcome: selfcheck.Outcome) -> None:
    must = " or ".join(f"{action} {code}".strip() for action, code in outcome.trial.right)
    said = f"{outcome.action} {outcome.code}"
    console.print(f"\n{outcome.trial.title} ({outcome.key})", style="bold")
    console.print(f"  {'right' if outcome.right else 'WRONG'}: {said} after {outcome.after_s:.0f} s; must be {must}")
    console.print(f"  measured: {selfcheck.spread(outcome)}", markup=False)
    for line in [*outcome.rationale, *outcome.blockers]:
        console.print(f"  gates: {line}", markup=False)
    console.print(f"  evidence: {outcome.digest}")
