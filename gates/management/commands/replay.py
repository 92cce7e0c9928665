"""Recompute recommendations from their stored evidence and compare byte for byte."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from decisioning.access.principal import bind_job
from decisioning.literals import whole_number
from gates.engine import evidence
from gates.management.commands._progress import shown
from gates.models import Cursor, Evidence, Recommendation


class Command(BaseCommand):
    help = (
        "Recompute an evaluation from its evidence alone: the same inputs must give the same bytes. Names, and exits 1, for what does not, "
        "for what cannot be read or replayed, for a recommendation whose evidence is not kept, and for an experiment that cannot be judged now.\n"
        "Example: manage.py replay sha256:9f2c...   or   manage.py replay 17   or   manage.py replay --all"
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", nargs="?", help="An evidence digest, or the number of a recommendation.")
        parser.add_argument("--all", action="store_true", help="Every piece of evidence that is kept.")

    def handle(self, *_args: Any, **options: Any) -> None:
        if bool(options["id"]) == options["all"]:
            raise CommandError("Name one digest or recommendation, or say --all.")
        with transaction.atomic():
            bind_job("replay")
            kept = Evidence.objects.order_by("id")
            if not options["all"]:
                kept = kept.filter(digest=_digest(options["id"]))
            ids = list(kept.values_list("pk", flat=True))
            if not ids and not options["all"]:
                raise CommandError(f"No evidence is kept for {options['id']!r}.")
            wrong = [line for pk in shown(ids, of="evidence") if (line := _compared(Evidence.objects.get(pk=pk)))]
            beside = (_without_evidence() if options["all"] else []) + _unjudgeable(ids)
        for line in wrong + beside:
            self.stdout.write(line)
        also = f" {len(beside)} more to look at." if beside else ""
        if wrong:
            raise CommandError(f"{len(ids)} replayed, {len(wrong)} differ.{also}")
        if beside:
            raise CommandError(f"{len(ids)} replayed, all the same bytes.{also}")
        self.stdout.write(f"{len(ids)} replayed, all the same bytes.")


def _compared(piece: Evidence) -> str:
    """What is wrong with one piece; empty when it gives the same bytes."""
    try:
        body = piece.read()
        again = evidence.replay(body)
    except Exception as error:  # whatever stops it, the next one is replayed
        said = str(error) if isinstance(error, evidence.EvidenceRefused) else f"{type(error).__name__}: {error}"
        return f"{piece.digest} of experiment {piece.experiment_id}: not replayed: {said}"
    return "" if again == body else f"{piece.digest} of experiment {piece.experiment_id}: replay gives other bytes."


def _without_evidence() -> list[str]:
    named = Recommendation.objects.order_by("id").values_list("pk", "experiment_id", "evidence_digest")
    kept = set(Evidence.objects.values_list("experiment_id", "digest"))
    return [
        f"Recommendation {pk} of experiment {experiment} names {digest}, which is not kept."
        for pk, experiment, digest in named
        if (experiment, digest) not in kept
    ]


def _unjudgeable(evidence_ids: list[int]) -> list[str]:
    """Of the experiments whose evidence was asked for."""
    found = Cursor.objects.filter(unjudgeable__isnull=False, experiment__evidence__in=evidence_ids).distinct()
    return [f"{key}: {why}" for key, why in found.order_by("pk").values_list("experiment__key", "unjudgeable__reason")]


def _digest(asked: str) -> str:
    if (number := whole_number(asked)) is not None:
        return Recommendation.objects.filter(pk=number).values_list("evidence_digest", flat=True).first() or ""
    return asked
