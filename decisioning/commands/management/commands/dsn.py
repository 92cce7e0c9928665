"""Print a URL for psql and other tools."""

import os
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from decisioning.embedded import Home, Postgres


class Command(BaseCommand):
    help = 'Print the database URL of a role. Example: psql "$(uv run manage.py dsn --role owner)"'
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--role", choices=["owner", "web", "worker", "superuser"], default="worker")

    def handle(self, *_args: Any, **options: Any) -> None:
        role: str = options["role"]
        url: str | None
        if role != "superuser":
            url = settings.ROLE_URLS[role]
        elif (home := Home()).read("superuser.secret"):
            url = Postgres(home).dsn(role)
        else:
            url = os.environ.get("DATABASE_SUPERUSER_URL")
        if not url:
            raise CommandError(f"The {role} login of this installation is not known here.")
        self.stdout.write(url)
