"""Say where the sources of a team may read."""

from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from decisioning.access.models import Team
from decisioning.access.principal import bind_job
from telemetry.models import SourcePlace


class Command(BaseCommand):
    help = (
        "Bind an environment variable with a database's URL, or a folder or file below DECISIONING_FILES, to a team: its sources may read "
        "there. The folder that has the team's key for a name is its own without.\n"
        "Example: manage.py bind_source --team growth --variable WAREHOUSE_URL"
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--team", required=True, help="The team's key.")
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("--variable", help="Name of the environment variable.")
        what.add_argument("--folder", help="Path below DECISIONING_FILES; . is all of it.")
        parser.add_argument(
            "--drop", action="store_true", help="Take it away: the team's sources there fail from their next run on."
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        kind = SourcePlace.Kind.VARIABLE if options["variable"] else SourcePlace.Kind.FOLDER
        name = options["variable"] or options["folder"]
        with transaction.atomic():
            bind_job("bind_source")
            team = Team.objects.filter(key=options["team"]).first()
            if team is None:
                raise CommandError(f"There is no team {options['team']}.")
            if options["drop"]:
                gone, _ = SourcePlace.objects.filter(team=team, kind=kind, name=name).delete()
                if not gone:
                    raise CommandError(f"{name} is not bound to {team.key}.")
            else:
                SourcePlace.objects.get_or_create(
                    team=team, kind=kind, name=name, defaults={"created_at": datetime.now(UTC)}
                )
        self.stdout.write(f"{name} is {'no longer ' if options['drop'] else ''}bound to {team.key}.")
