"""`manage.py verify_hours`: whether every hour sum is what its rows give."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from decisioning.access.principal import bind_job
from telemetry import hours

_SHOWN = 20


class Command(BaseCommand):
    """Exit 0 when nothing differs, else 1; the result is on the last line."""

    help = "Compare metrics.kpi_hours with the rows it sums, after bringing it up to date."

    def handle(self, *_args: Any, **_options: Any) -> None:
        with transaction.atomic():
            bind_job("verify_hours")
            while hours.rebuild_changed().changes:
                pass
            found = hours.differences()
        for experiment, metric, variant, hour in found[:_SHOWN]:
            self.stdout.write(f"experiment {experiment}, {metric}/{variant}, hour {hour:%Y-%m-%d %H:%MZ}")
        if found:
            raise CommandError(f"{len(found)} hours differ from their rows.")
        self.stdout.write("No hour differs from its rows.")
