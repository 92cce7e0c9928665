"""The test database is made and migrated by decisioning_owner; every test runs logged in as decisioning_web, as requests do.

In the test cluster alone, web may `SET ROLE` to owner and worker without inheriting their rights, so that a test can set the
scene across teams (`as_role("owner")`) or run a tick's code (`as_role("worker")`) on its own connection.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from django.conf import settings
from django.db import connection, transaction
from django.test import TransactionTestCase
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings

from decisioning.access.models import Team
from decisioning.settings import database
from tests.examples import LONG
from tests.stack import template

# How long an example takes says nothing on a busy machine; no test asserts a time.
hypothesis_settings.register_profile(
    "portal", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
# Run apart: `--hypothesis-profile=long`, from random seeds; a failure prints the blob that repeats it.
hypothesis_settings.register_profile(
    LONG,
    deadline=None,
    max_examples=2_000,
    derandomize=False,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
hypothesis_settings.load_profile("portal")

_KEPT = ["django_migrations", "django_content_type", "auth_permission", "policies", "policy_versions", "locks"]


def log_in_as(role: str) -> None:
    """From now on connections log in as this role, in every thread: Django hands the same settings to each."""
    connection.close()
    login = database(settings.ROLE_URLS[role])
    connection.settings_dict.update(USER=login["USER"], PASSWORD=login["PASSWORD"])


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings_parallel_suffix: None) -> None:
    log_in_as("owner")
    connection.settings_dict["TEST"]["TEMPLATE"] = template()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None) -> Iterator[None]:
    log_in_as("web")
    yield
    log_in_as("owner")  # who drops it


@contextmanager
def as_role(role: str) -> Iterator[None]:
    """Run as owner or worker on the test's own connection, inside a transaction."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('role')")
        (before,) = cursor.fetchone() or ("none",)
        cursor.execute(f"SET LOCAL ROLE decisioning_{role}")
        yield
        cursor.execute(f"SET LOCAL ROLE {before}")  # after an error the rollback does it


def _empty_every_table(_case: TransactionTestCase) -> None:
    """Django's own flush would run as web and miss unmanaged tables. Only what holds rows is emptied, which most tables do not: to
    truncate them all takes ten times as long. What ships with the portal stays."""
    connection.close()
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute(
            "SELECT format('%%I.%%I', schemaname, tablename), tablename FROM pg_tables "
            "WHERE tableowner = 'decisioning_owner' AND tablename <> ALL (%s)",
            [_KEPT],
        )
        tables = dict(cursor.fetchall())
        cursor.execute(" UNION ALL ".join(f"(SELECT '{table}' FROM {table} LIMIT 1)" for table in tables))  # noqa: S608
        filled = [table for (table,) in cursor.fetchall()]
        if "audit.entries" in filled:
            cursor.execute("TRUNCATE audit.entries")  # which nobody deletes from
        cursor.execute("SET LOCAL session_replication_role = replica")  # neither triggers nor foreign keys
        cursor.execute(
            ";".join(
                [f"DELETE FROM {table}" for table in filled]  # noqa: S608
                + [f"DELETE FROM {table} WHERE team_id IS NOT NULL" for table in ("policies", "policy_versions")]  # noqa: S608
            )
        )


@pytest.fixture(scope="session", autouse=True)
def _emptied_as_owner() -> Iterator[None]:
    settings.STATIC_ROOT.mkdir(parents=True, exist_ok=True)  # whitenoise warns when it is absent
    with pytest.MonkeyPatch.context() as patch:
        # What a process does once, tests would do for each client and person: list all static files, stretch a password.
        patch.setattr(settings, "WHITENOISE_AUTOREFRESH", True, raising=False)
        patch.setattr(settings, "PASSWORD_HASHERS", ["django.contrib.auth.hashers.MD5PasswordHasher"])
        patch.setattr(TransactionTestCase, "_fixture_teardown", _empty_every_table)
        yield


@pytest.fixture
def owner(db: None) -> Iterator[None]:
    with as_role("owner"):
        yield


@pytest.fixture
def now() -> datetime:
    return datetime(2026, 11, 24, 6, 17, tzinfo=UTC)


@pytest.fixture
def team(db: None, now: datetime) -> Team:
    with as_role("owner"):
        return Team.objects.create(key="growth", name="Growth", created_at=now)
