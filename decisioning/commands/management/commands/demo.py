"""The demo team: laid out, fed, taken away."""

import os
import signal
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connection
from psycopg import sql
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from decisioning.access.scopes import Scope
from decisioning.agents import demo
from decisioning.agents.client import Portal, PortalError, Unreachable
from decisioning.commands.portal import NoSuchTeam, portal_as

_INSTALLS = (Scope.READ, Scope.WRITE, Scope.TELEMETRY, Scope.REVIEW)
_FEEDS = (Scope.READ, Scope.TELEMETRY, Scope.LINEAGE)
_EVERY_S = 60.0
_AGAIN_S = 5.0


class Command(BaseCommand):
    help = (
        "The demo team: a shop's experiments in every state of the board, with four weeks of history. "
        "--install lays it out (again: finishes what is missing), --feed keeps its running experiments alive until it "
        "is stopped, --remove takes the whole team away."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("--install", action="store_true", help="Lay the demo out, through the public API.")
        what.add_argument("--feed", action="store_true", help="Post new buckets every minute.")
        what.add_argument("--remove", action="store_true", help="Delete the demo team and everything it has.")
        parser.add_argument("--yes", action="store_true", help="With --remove: do not ask.")
        parser.add_argument("--every", type=float, default=_EVERY_S, help="With --feed: seconds between two rounds.")

    def handle(self, *_args: Any, **options: Any) -> None:
        if options["remove"]:
            self._remove(ask=not options["yes"])
            return
        try:
            if options["feed"]:
                _feed(options["every"])
            else:
                self._install()
        except (PortalError, Unreachable) as problem:
            raise CommandError(str(problem)) from problem

    def _install(self) -> None:
        now = datetime.now(UTC)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with (
            portal_as(demo.TEAM, name="Demo shop", scopes=_INSTALLS, rate="6000/m") as portal,
            Progress(*columns, console=Console(file=sys.stdout)) as progress,
        ):
            rows = progress.add_task("demo rows", total=demo.rows_to_come(now))
            written = demo.install(portal, now=now, told=lambda _story, count: progress.advance(rows, count))
        self.stdout.write(f"The demo team has {len(demo.STORIES)} experiments; {written} rows are new.")

    def _remove(self, *, ask: bool) -> None:
        with psycopg.connect(_owner_url()) as database:
            team = database.execute("SELECT id FROM metadata.teams WHERE key = %s", [demo.TEAM]).fetchone()
            if team is None:
                self.stdout.write("There is no demo team.")
                return
            count = database.execute(
                "SELECT (SELECT count(*) FROM metadata.experiments WHERE team_id = %(team)s), "
                "(SELECT count(*) FROM metrics.experiment_kpis WHERE team_id = %(team)s)",
                {"team": team[0]},
            ).fetchone()
            experiments, rows = count or (0, 0)
            told = f"the demo team, its {experiments} experiments and {rows} KPI rows, policies and keys"
            if ask and input(f"This removes {told}. It cannot be undone. Go on? [y/N] ").strip().lower() != "y":
                self.stdout.write("Nothing was removed.")
                return
            _delete_team(database, team[0])
        self.stdout.write(f"Removed {told}. Audit entries stay.")


def _feed(every_s: float) -> None:
    """Rounds until SIGTERM, Ctrl-C, or the team is gone. One that fails is tried again: the next fills the gap."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # At once: nothing is half done, since a batch is all or nothing, and the key, known to us alone, expires.
        signal.signal(number, lambda *_: os._exit(0))
    with suppress(NoSuchTeam):
        while True:
            try:
                with portal_as(demo.TEAM, scopes=_FEEDS, hours=13, patience_s=0, make=False) as portal:
                    _rounds(portal, every_s, until=datetime.now(UTC) + timedelta(hours=12))
            except (PortalError, Unreachable, DatabaseError) as problem:
                sys.stderr.write(f"{datetime.now(UTC):%H:%M:%SZ} feed waits: {problem}\n")
                connection.close()
                time.sleep(_AGAIN_S)


def _rounds(portal: Portal, every_s: float, *, until: datetime) -> None:
    """Rounds with one key, for less than the key lives; each leaves its run in the refresh log."""
    connection.close()  # the key is made: what follows is HTTP
    while (now := datetime.now(UTC)) < until:
        rows = demo.feed(portal, now=now)
        if rows:
            portal.report_run(demo.JOB, started_at=now, finished_at=datetime.now(UTC), rows=rows)
        time.sleep(every_s)


def _owner_url() -> str:
    url = str(settings.ROLE_URLS["owner"])
    if not url:
        raise CommandError("Removing needs the owner's login: set DATABASE_OWNER_URL.")
    return url


def _delete_team(database: psycopg.Connection, team: int) -> None:
    """Every row of the team, whichever table has it, in the caller's transaction; only the audit keeps what it knows.

    Foreign keys wait for the end of the transaction, so that only two orders matter: KPI rows before the experiments that
    their trigger looks up, and the notes that this trigger writes after the rows.
    """
    database.execute("SELECT access.bind('job', NULL, 'demo --remove', '{}', false, '')")
    database.execute("SET CONSTRAINTS ALL DEFERRED")
    # No tick may write about them meanwhile: it locks cursors for that, and skips those that are locked. One that is at it
    # may end it, so the experiments' keys are left to it.
    database.execute("SELECT FROM metadata.experiments WHERE team_id = %s ORDER BY id FOR NO KEY UPDATE", [team])
    database.execute("DELETE FROM metadata.cursors WHERE team_id = %s", [team])
    found = database.execute(
        "SELECT c.table_schema, c.table_name FROM information_schema.columns c JOIN pg_class r "
        "ON r.oid = format('%I.%I', c.table_schema, c.table_name)::regclass AND NOT r.relispartition "
        "WHERE c.column_name = 'team_id' AND r.relkind IN ('r', 'p') AND c.table_schema IN ('metadata', 'metrics', 'audit') "
        "AND (c.table_schema, c.table_name) NOT IN (('audit', 'entries'), ('metadata', 'metrics')) "
        "ORDER BY c.table_name = 'experiment_kpis' DESC, c.table_name = 'kpi_changes'"
    ).fetchall()
    for schema, table in found:
        database.execute(sql.SQL("DELETE FROM {} WHERE team_id = %s").format(sql.Identifier(schema, table)), [team])
    database.execute(
        "DELETE FROM metadata.metrics m WHERE team_id = %s "
        "AND NOT EXISTS (SELECT FROM metadata.target_kpis k WHERE k.metric_id = m.id)",
        [team],
    )
    database.execute("UPDATE metadata.metrics SET team_id = NULL WHERE team_id = %s", [team])
    database.execute("DELETE FROM metadata.teams WHERE id = %s", [team])
