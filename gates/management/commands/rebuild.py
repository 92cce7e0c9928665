"""Recompute what the tick keeps and report any difference."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError, transaction

from decisioning.access.principal import bind_job
from experiments.models import Experiment
from gates.evaluation import differences
from gates.management.commands._progress import shown
from gates.suspension import cause_of


class Command(BaseCommand):
    help = "Fold every experiment anew from its rows and compare with the stored state; exit 1 when anything differs or one cannot be judged."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--experiment", help="Key of one experiment; without it, all that have started.")

    def handle(self, *_args: Any, **options: Any) -> None:
        with transaction.atomic():
            bind_job("rebuild")
            experiments = Experiment.objects.exclude(status=Experiment.Status.DRAFT).order_by("id")
            if options["experiment"]:
                experiments = experiments.filter(key=options["experiment"])
            started = list(experiments)
            if options["experiment"] and not started:
                raise CommandError(f"There is no started experiment {options['experiment']!r}.")
            found = [line for experiment in shown(started, of="experiments") for line in _compared(experiment)]
        for line in found:
            self.stdout.write(line)
        if found:
            raise CommandError(f"{len(started)} experiments folded anew, {len(found)} differences.")
        self.stdout.write(f"{len(started)} experiments folded anew, no difference.")


def _compared(experiment: Experiment) -> list[str]:
    """Its differences; of one that cannot be folded, why."""
    try:
        with transaction.atomic():
            return differences(experiment)
    except (OperationalError, InterfaceError):
        raise
    except Exception as error:  # whatever stops it, the next one is compared
        return [f"{experiment.key}: {cause_of(experiment.pk, error).reason}"]
