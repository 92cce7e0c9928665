"""A database of somebody else's in the cluster of the tests, and what an operator does so that a team may read it."""

import os
from datetime import UTC, datetime
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from decisioning.access.models import Team
from telemetry.models import SourcePlace
from tests.conftest import as_role

_NAME = f"warehouse_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
_PASSWORD = "not a secret: loopback, for one run of the tests"


def warehouse() -> str:
    """The URL of its own login, which owns it and knows nothing of the portal. Made at the first call."""
    superuser = os.environ["DATABASE_SUPERUSER_URL"]
    with psycopg.connect(f"{superuser.rpartition('/')[0]}/postgres", autocommit=True) as db:
        name = sql.Identifier(_NAME)
        if not db.execute("SELECT FROM pg_roles WHERE rolname = %s", [_NAME]).rowcount:
            db.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(_PASSWORD)))
            db.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, name))
    server = urlsplit(superuser)
    return f"postgresql://{_NAME}:{_PASSWORD.replace(' ', '%20').replace(':', '%3A')}@{server.hostname}:{server.port}/{_NAME}"


def bind(team: Team, *, variable: str = "", folder: str = "") -> None:
    """What the operator says a team's sources may read."""
    kind = SourcePlace.Kind.VARIABLE if variable else SourcePlace.Kind.FOLDER
    with as_role("owner"):
        SourcePlace.objects.get_or_create(
            team=team, kind=kind, name=variable or folder, defaults={"created_at": datetime.now(UTC)}
        )
