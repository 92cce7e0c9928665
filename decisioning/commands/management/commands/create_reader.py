"""Make a database login for a person's SQL tool."""

import os
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connection
from psycopg.conninfo import make_conninfo

from decisioning.access.models import Team
from decisioning.access.readers import create_reader, drop_reader
from decisioning.embedded import Home


class Command(BaseCommand):
    help = (
        "Make a read-only database login that sees one team's rows, and print its URL, alone, on the last line. It is shown this once.\n"
        'Example: psql "$(manage.py create_reader --team growth | tail -1)"\n'
        "On a PostgreSQL of your own, DATABASE_SUPERUSER_URL names a login that may make roles."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("--team", help="The team's key.")
        what.add_argument("--drop", metavar="LOGIN", help="End a login made here, and its sessions.")

    def handle(self, *_args: Any, **options: Any) -> None:
        superuser = self._superuser()
        if options["drop"]:
            if not drop_reader(options["drop"], superuser=superuser):
                raise CommandError(f"There is no reader {options['drop']}.")
            self.stdout.write(f"Dropped {options['drop']}.")
            return
        team = Team.objects.filter(key=options["team"]).first()
        if team is None:
            raise CommandError(f"There is no team {options['team']}.")
        reader = create_reader(team, superuser=superuser)
        self.stdout.write(
            f"{reader.login} reads the rows of {team.key} and nothing else. Keep its URL; end it with --drop."
        )
        self.stdout.write(reader.dsn(*self._server()))

    @staticmethod
    def _server() -> tuple[str, str, str]:
        login = connection.settings_dict
        return login["HOST"], login["PORT"] or "5432", login["NAME"]

    def _superuser(self) -> str:
        host, port, name = self._server()
        if url := os.environ.get("DATABASE_SUPERUSER_URL"):
            return make_conninfo(url, dbname=name)
        if password := Home().read("superuser.secret"):
            return f"postgresql://postgres:{password}@{host}:{port}/{name}"
        raise CommandError("Set DATABASE_SUPERUSER_URL to a login that may make roles.")
