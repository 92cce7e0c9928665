"""Recompute what the tick keeps and report any difference."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from decisioning.access.principal import bind_job
from experiments.models import Experiment
from gates.evaluation import differences


class Command(BaseCommand):
    help = "Fold every experiment anew from its rows and compare with the stored state; exit 1 when anything differs."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--experiment", help="Key of one experiment; without it, all that have started.")

    def handle(self, *_args: Any, **options: Any) -> None:
        experiments = Experiment.objects.exclude(status=Experiment.Status.DRAFT).order_by("id")
        if options["experiment"]:
            experiments = experiments.filter(key=options["experiment"])
        found: list[str] = []
        with transaction.atomic():
            bind_job("rebuild")
            checked = 0
            for experiment in experiments.iterator():
                found += differences(experiment)
                checked += 1
        if options["experiment"] and not checked:
            raise CommandError(f"There is no started experiment {options['experiment']!r}.")
        for line in found:
            self.stdout.write(line)
        if found:
            raise CommandError(f"{checked} experiments folded anew, {len(found)} differences.")
        self.stdout.write(f"{checked} experiments folded anew, no difference.")
