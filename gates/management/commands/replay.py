"""Recompute recommendations from their stored evidence and compare byte for byte."""

import zlib
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from decisioning.access.principal import bind_job
from gates import evidence
from gates.models import Evidence, Recommendation


class Command(BaseCommand):
    help = (
        "Recompute an evaluation from its evidence alone: the same inputs must give the same bytes.\n"
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
            checked, different = 0, 0
            for piece in kept.iterator(chunk_size=50):
                checked += 1
                body = zlib.decompress(piece.body)
                if evidence.digest(body) != piece.digest or evidence.replay(body) != body:
                    different += 1
                    self.stdout.write(f"{piece.digest} of experiment {piece.experiment_id}: replay gives other bytes.")
        if not checked and not options["all"]:
            raise CommandError(f"No evidence is kept for {options['id']!r}.")
        if different:
            raise CommandError(f"{checked} replayed, {different} differ.")
        self.stdout.write(f"{checked} replayed, all the same bytes.")


def _digest(asked: str) -> str:
    if asked.isdigit():
        return Recommendation.objects.filter(pk=int(asked)).values_list("evidence_digest", flat=True).first() or ""
    return asked
