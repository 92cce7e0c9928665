"""Logins for people's SQL tools: each reads one team's rows, by row security on its own name."""

import re
import secrets
from dataclasses import astuple, dataclass
from datetime import timedelta
from urllib.parse import quote

import psycopg
from django.db import connection
from psycopg import sql

from decisioning.access.models import Team
from decisioning.embedded import READERS

_PREFIX = "decisioning_reader_"


@dataclass(frozen=True)
class Limits:
    """How long a statement, a wait inside a transaction, a transaction and a session without work may take."""

    statement: timedelta = timedelta(seconds=60)
    waiting: timedelta = timedelta(seconds=60)
    transaction: timedelta = timedelta(minutes=5)
    idle: timedelta = timedelta(hours=1)


LIMITS = Limits()
"""The same as readers.sql gives each session to begin with."""


@dataclass(frozen=True)
class Reader:
    """A login and its password, which exists nowhere else."""

    login: str
    password: str

    def dsn(self, host: str, port: str, database: str) -> str:
        return f"postgresql://{self.login}:{quote(self.password, safe='')}@{host}:{port}/{database}"


def create_reader(team: Team, *, superuser: str) -> Reader:
    """Make a login that sees this team's rows and nothing else.

    superuser: the URL of a login that may make roles. The password is hashed here, so that no server log can hold it.
    """
    # A number, because every login may read the names of all.
    reader = Reader(f"{_PREFIX}{secrets.randbelow(9 * 10**9) + 10**9}", secrets.token_urlsafe(24))
    with psycopg.connect(superuser) as db:
        verifier = db.pgconn.encrypt_password(
            reader.password.encode(), reader.login.encode(), b"scram-sha-256"
        ).decode()
        db.execute("SELECT access.bind('job', NULL, 'create_reader', '{}', false, '')")
        db.execute(
            sql.SQL(
                "CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS PASSWORD {} IN ROLE decisioning_reader"
            ).format(sql.Identifier(reader.login), sql.Literal(verifier))
        )
        db.execute(READERS.read_bytes())  # its limits, and that no login of this kind can hurt others
        db.execute("INSERT INTO access.readers (login, team_id) VALUES (%s, %s)", [reader.login, team.pk])
    return reader


def end_beyond_limits(limits: Limits = LIMITS) -> list[tuple[str, str]]:
    """End sessions of readers that go beyond the limits, whatever they have set for themselves. Returns (login, which limit)."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM access.end_readers(%s, %s, %s, %s)", [*astuple(limits)])
        return list(cursor.fetchall())


def drop_reader(login: str, *, superuser: str) -> bool:
    """End the login and its sessions. False when there is no such reader."""
    if not re.fullmatch(rf"{_PREFIX}[a-z0-9_]+", login):
        return False
    with psycopg.connect(superuser) as db:
        db.execute("SELECT access.bind('job', NULL, 'create_reader', '{}', false, '')")
        found = db.execute("DELETE FROM access.readers WHERE login = %s RETURNING login", [login]).fetchone()
        if found is None:
            return False
        role = db.execute("SELECT oid FROM pg_roles WHERE rolname = %s", [login]).fetchone()
        if role is not None:
            db.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(login)))  # what it made keeps its name in use
        db.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(login)))
        db.commit()  # nobody logs in any more; now those who have
        db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usesysid = %s", role or [None])
    return True
