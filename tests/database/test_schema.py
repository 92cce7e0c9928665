"""What upgrades rest on: code leaves a newer database alone, and no migration takes away what the version before uses."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.apps import apps
from django.db import connection, migrations
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.models import NOT_PROVIDED

from decisioning.database import schema
from tests.access.logins import psql
from tests.conftest import as_role

BEFORE_THE_RULE = {"telemetry.0004_runs_name_no_experiment"}
"""Migrations from before nothing was taken away in the version that stops using it."""


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("role", ["web", "worker", "owner"])
def test_code_leaves_a_database_alone_that_a_later_version_has_migrated(role: str) -> None:
    with _migrated_by_a_later_version(), psql(role) as db:
        with pytest.raises(schema.NewerDatabase, match=r"newer than this code, which does not know gates.0099_future"):
            schema.Refusal().check(db)
        assert db.closed
    with psql(role) as db:
        refusal = schema.Refusal()
        refusal.check(db)
        assert not db.closed
        with _migrated_by_a_later_version():
            refusal.check(db)  # a process that runs goes on beside an upgrade


@contextmanager
def _migrated_by_a_later_version() -> Iterator[None]:
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO django_migrations (app, name, applied) VALUES ('gates', '0099_future', now()), ('auth', '0099_theirs', now())"
        )
    try:
        yield
    finally:
        with as_role("owner"), connection.cursor() as cursor:
            cursor.execute("DELETE FROM django_migrations WHERE name LIKE '0099%%'")


@pytest.mark.django_db
def test_a_database_without_a_schema_is_not_newer() -> None:
    with psql("superuser", dbname="postgres") as db:
        schema.Refusal().check(db)
        assert not db.closed


def test_every_app_of_ours_with_migrations_is_looked_at() -> None:
    ours = {
        config.label: config.name
        for config in apps.get_app_configs()
        if config.name.split(".")[0] in {"decisioning", "experiments", "gates", "telemetry"}
    }
    loader = MigrationLoader(None)
    assert {label: ours[label] for label, _ in loader.disk_migrations if label in ours} == schema.APPS
    assert all(name in schema._names(app) for app, name in loader.disk_migrations if app in schema.APPS)


TAKES_AWAY = (migrations.RemoveField, migrations.DeleteModel, migrations.RenameField, migrations.RenameModel)


def _takes_away(operation: Operation) -> str:
    """What an operation does that the version before could not live with."""
    if isinstance(operation, TAKES_AWAY):
        return type(operation).__name__
    if (
        isinstance(operation, migrations.AddField)
        and not operation.field.null
        and operation.field.db_default is NOT_PROVIDED
    ):
        return f"{operation.name} is required, and has no default in the database"
    if isinstance(operation, migrations.RunSQL):
        text = re.sub(
            r"\$(\w*)\$.*?\$\1\$", "", str(operation.sql), flags=re.DOTALL
        ).upper()  # not what functions will do
        return next(
            (
                word
                for word in (
                    "DROP COLUMN",
                    "DROP TABLE",
                    "DROP FUNCTION",
                    "DROP VIEW",
                    "RENAME COLUMN",
                    "RENAME TO",
                    "SET NOT NULL",
                )
                if word in text
            ),
            "",
        )
    return ""


def test_no_migration_takes_away_what_the_version_before_uses() -> None:
    found = {}
    for (app, name), migration in MigrationLoader(None).disk_migrations.items():
        if app in schema.APPS:
            new = {made.name.lower() for made in migration.operations if isinstance(made, migrations.CreateModel)}
            of_before = [done for done in migration.operations if getattr(done, "model_name", "") not in new]
            if said := [word for operation in of_before if (word := _takes_away(operation))]:
                found[f"{app}.{name}"] = said
    assert {name: said for name, said in found.items() if name not in BEFORE_THE_RULE} == {}
