"""Logins for people's SQL tools: each reads one team's rows, by row security on its own name."""

import re
import secrets
from dataclasses import dataclass
from urllib.parse import quote

import psycopg
from psycopg import sql

from decisioning.access.models import Team

_PREFIX = "decisioning_reader_"


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
    reader = Reader(f"{_PREFIX}{team.key.replace('-', '_')[:30]}_{secrets.token_hex(3)}", secrets.token_urlsafe(24))
    with psycopg.connect(superuser) as db:
        verifier = db.pgconn.encrypt_password(
            reader.password.encode(), reader.login.encode(), b"scram-sha-256"
        ).decode()
        db.execute("SELECT access.bind('job', NULL, 'create_reader', '{}', false, '')")
        db.execute(
            sql.SQL(
                "CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS CONNECTION LIMIT 10 PASSWORD {} IN ROLE decisioning_reader"
            ).format(sql.Identifier(reader.login), sql.Literal(verifier))
        )
        for setting, value in (
            ("default_transaction_read_only", "on"),
            ("statement_timeout", "60s"),
            ("search_path", "metadata, metrics, audit, public"),
        ):
            db.execute(
                sql.SQL("ALTER ROLE {} SET {} TO {}").format(
                    sql.Identifier(reader.login),
                    sql.Identifier(setting),
                    sql.SQL(value) if setting == "search_path" else sql.Literal(value),
                )
            )
        db.execute("INSERT INTO access.readers (login, team_id) VALUES (%s, %s)", [reader.login, team.pk])
    return reader


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
        db.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(login)))
        db.commit()  # nobody logs in any more; now those who have
        db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usesysid = %s", role or [None])
    return True
