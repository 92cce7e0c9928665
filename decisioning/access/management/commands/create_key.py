"""Make an API key from the terminal."""

from datetime import UTC, datetime, timedelta
from typing import Any

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from decisioning.access.keys import KeyRefused, create_key
from decisioning.access.models import Team, valid_key
from decisioning.access.principal import bind_job
from decisioning.access.scopes import Scope


class Command(BaseCommand):
    help = (
        "Make an API key for a team (made when absent) and print it, alone, on the last line. It is shown this once.\n"
        "Example: manage.py create_key --team growth --scopes experiments:read,telemetry:write"
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--team", required=True, help="The team's key.")
        parser.add_argument("--scopes", required=True, help=f"Comma-separated, from: {', '.join(Scope)}.")
        parser.add_argument(
            "--agent", action="store_true", help="For an AI agent: may create and push, can never decide."
        )
        parser.add_argument("--rate", default="", help='Requests per window, such as "40/m"; default 600/m.')
        parser.add_argument(
            "--owner",
            help="User name of whose key it is: it holds what his role in the team holds, and ends with it. Without one it is nobody's.",
        )
        parser.add_argument("--days", type=int, help="Days until it expires; without it, it does not.")

    def handle(self, *_args: Any, **options: Any) -> None:
        now = datetime.now(UTC)
        with transaction.atomic():
            bind_job("create_key")
            valid_key(options["team"])
            team, made = Team.objects.get_or_create(
                key=options["team"], defaults={"name": options["team"].replace("-", " ").title(), "created_at": now}
            )
            if made:
                self.stdout.write(f"Made team {team.key}.")
            try:
                _, secret = create_key(
                    team,
                    owner=self._person(options["owner"]),
                    scopes=[s.strip() for s in options["scopes"].split(",") if s.strip()],
                    agent=options["agent"],
                    rate=options["rate"],
                    expires_at=now + timedelta(days=options["days"]) if options["days"] else None,
                    now=now,
                )
            except KeyRefused as refusal:
                raise CommandError(str(refusal)) from refusal
        self.stdout.write(secret)

    @staticmethod
    def _person(name: str | None) -> User | None:
        person = User.objects.filter(username=name).first()
        if name and person is None:
            raise CommandError(f"There is no user {name}.")
        return person
