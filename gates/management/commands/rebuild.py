"""Recompute what the tick keeps and report any difference; say beforehand what mended rules will change."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import InterfaceError, OperationalError, connection, transaction
from psycopg import sql

from decisioning.access.principal import bind_job
from experiments.models import Experiment
from gates.consistency import Change, change, differences, to_be_mended
from gates.engine.compiled import REVISION
from gates.management.commands._progress import shown
from gates.suspension import cause_of


class Command(BaseCommand):
    help = (
        "Fold every experiment anew from its rows and compare with the stored state; exit 1 when anything differs or one cannot be judged.\n"
        "With --changes instead: what the rules of this version will make of experiments that earlier rules judged, one line for each that "
        "changes. It writes nothing and reads the database of the version before as well, so run it before that is upgraded; exit 1 only when "
        "one could not be computed.\n"
        "Example: manage.py rebuild   or   manage.py rebuild --changes --json > changes.json"
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--experiment", help="Key of one experiment; without it, all that have started.")
        parser.add_argument("--changes", action="store_true", help="List what the rules of this version will change.")
        parser.add_argument("--json", action="store_true", help="With --changes: one JSON document for a program.")

    def handle(self, *_args: Any, **options: Any) -> None:
        if options["json"] and not options["changes"]:
            raise CommandError("--json goes with --changes.")
        if options["changes"]:
            self._changes(options["experiment"], as_json=options["json"])
        else:
            self._differences(options["experiment"])

    def _differences(self, key: str | None) -> None:
        with transaction.atomic():
            bind_job("rebuild")
            started = _named(Experiment.objects.exclude(status=Experiment.Status.DRAFT).order_by("id"), key)
            found = [line for experiment in shown(started, of="experiments") for line in _compared(experiment)]
            earlier = _named(
                Experiment.objects.filter(pk__in=[e.pk for e in started]).exclude(cursor__rules=REVISION), None
            )
        for line in found:
            self.stdout.write(line)
        told = f"{len(started)} experiments folded anew"
        if earlier:
            told += f" ({len(earlier)} of them judged by earlier rules and not compared)"
        if found:
            raise CommandError(f"{told}, {len(found)} differences.")
        self.stdout.write(f"{told}, no difference.")

    def _changes(self, key: str | None, *, as_json: bool) -> None:
        with transaction.atomic():
            bind_job("rebuild")
            _stand_in_for_what_is_not_migrated()
            earlier = _named(to_be_mended(), key, needed=False)
            changes: list[Change] = []
            failed: list[str] = []
            for experiment in shown(earlier, of="experiments"):
                try:
                    with transaction.atomic():
                        found = change(experiment)
                except (OperationalError, InterfaceError):
                    raise
                except Exception as error:  # whatever stops it, the next one is computed
                    failed.append(f"{experiment.key}: {cause_of(experiment.pk, error).reason}")
                else:
                    changes += [found] if found else []
            transaction.set_rollback(True)
        told = f"{len(earlier)} experiments that earlier rules judged, {len(changes)} change under rules of revision {REVISION}."
        if as_json:
            document = {
                "rules": REVISION,
                "experiments": len(earlier),
                "changes": [asdict(c) for c in changes],
                "failed": failed,
            }
            self.stdout.write(json.dumps(document, indent=2))
        else:
            for line in [*map(_line, changes), *failed, told]:
                self.stdout.write(line)
        if failed:
            raise CommandError(f"{len(failed)} could not be computed.")


def _named(experiments: Any, key: str | None, *, needed: bool = True) -> Sequence[Experiment]:
    found = list(experiments.filter(key=key) if key else experiments)
    if key and not found and needed:
        raise CommandError(f"There is no started experiment {key!r}.")
    return found


def _compared(experiment: Experiment) -> list[str]:
    """Its differences; of one that cannot be folded, why."""
    try:
        with transaction.atomic():
            return differences(experiment)
    except (OperationalError, InterfaceError):
        raise
    except Exception as error:  # whatever stops it, the next one is compared
        return [f"{experiment.key}: {cause_of(experiment.pk, error).reason}"]


def _line(c: Change) -> str:
    """`checkout: scale wins (proposed) -> hold collecting (open)`, and what becomes of proposals, on one line."""
    parts = [
        f"{was['variant'] + ' ' if was['variant'] else ''}{_said(was)} -> {_said(now)}"
        for was, now in zip(c.before, c.after, strict=True)
    ]
    parts += [f"no longer proposed: {_proposal(p)}" for p in c.superseded]
    parts += [f"newly proposed: {_proposal(p)}" for p in c.proposed]
    return f"{c.experiment}: {'; '.join(parts)}"


def _said(told: dict[str, Any]) -> str:
    return f"{told['action']} {told['code']} ({told['state']})"


def _proposal(p: dict[str, Any]) -> str:
    variant = f" {p['variant']}" if p["variant"] else ""
    return f"{p['action']}{variant} {p['code']} of {p['slot']}"


def _stand_in_for_what_is_not_migrated() -> None:
    """Columns that this version knows and the database does not have yet read as their defaults, in this transaction alone.

    PostgreSQL looks for a table among a session's temporary ones first, so a temporary view stands before it.
    """
    with connection.cursor() as cursor:
        for model in apps.get_models():
            table = model._meta.db_table
            cursor.execute(
                "SELECT c.oid::regclass::text, array_agg(a.attname) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
                "WHERE c.oid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped GROUP BY c.oid",
                [connection.ops.quote_name(table)],
            )
            there = cursor.fetchone()
            absent = [f for f in model._meta.concrete_fields if there and f.column not in there[1]]
            if there is None or not absent:
                continue
            columns = sql.SQL(", ").join(_as_its_default(column) for column in absent)
            view = sql.SQL("CREATE TEMP VIEW {} AS SELECT t.*, {} FROM {} t")
            cursor.execute(view.format(sql.Identifier(table), columns, sql.SQL(there[0])))
        cursor.execute("SET TRANSACTION READ ONLY")


def _as_its_default(column: Any) -> sql.Composable:
    value = column.get_db_prep_save(column.get_default(), connection) if column.has_default() else None
    kind, name = sql.SQL(column.db_type(connection)), sql.Identifier(column.column)
    return sql.SQL("{}::{} AS {}").format(sql.Literal(value), kind, name)
