"""Recompute the audit's hash chain."""

import sys
from typing import Any

from django.core.management.base import BaseCommand

from decisioning.ledger import seals


class Command(BaseCommand):
    help = (
        "Recompute the audit's chain of seals and compare it with the heads kept in the home folder. The last line says `sound: ...` "
        "(exit 0) or `broken: ...` and names the first bad entry (exit 1)."
    )

    def handle(self, *_args: Any, **_options: Any) -> None:
        found = seals.verify()
        self.stdout.write(f"Heads noted outside the database: {seals.head_file()}")
        self.stdout.write(str(found))
        if not found.sound:
            sys.exit(1)
