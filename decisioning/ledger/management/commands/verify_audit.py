"""Recompute the audit's hash chain."""

import sys
from typing import Any

from django.core.management.base import BaseCommand

from decisioning.ledger import seals


class Command(BaseCommand):
    help = (
        "Recompute the audit's chain of seals and compare it with the heads kept outside the database. The last line says `sound: ...` "
        "(exit 0) or `broken: ...` and names the first bad entry (exit 1)."
    )

    def handle(self, *_args: Any, **_options: Any) -> None:
        found = seals.verify()
        file = seals.anchor_file()
        anchor = seals.read_anchor(file)
        self.stdout.write(f"Heads noted outside the database: {len(anchor.heads)}, in {file}")
        if not anchor.heads:
            self.stdout.write("Without one a tail that was cut off together with its seals is not found.")
        if anchor.torn:
            self.stdout.write(f"Lines of it that say nothing, stepped over: {', '.join(map(str, anchor.torn))}")
        self.stdout.write(str(found))
        if not found.sound:
            sys.exit(1)
