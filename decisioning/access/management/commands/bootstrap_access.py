"""Make the first person and the first key of an installation."""

import os
import time
from datetime import UTC, datetime
from typing import Any

from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import OperationalError, connection, transaction

from decisioning.access.keys import create_key, revoke
from decisioning.access.models import ApiKey, Membership, Team
from decisioning.access.principal import bind_job
from decisioning.access.scopes import Scope


class Command(BaseCommand):
    help = (
        "Make the admin user (password from DECISIONING_ADMIN_PASSWORD), a first team and an API key with every scope. "
        "Run by `manage.py up`; running it again changes nothing but the password. Prints the key alone on the last line when it made one."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--admin-user", default="admin")
        parser.add_argument("--team", default="main", help="Key of the first team (default: main).")
        parser.add_argument("--new-key", action="store_true", help="Revoke the key made here before and make another.")
        parser.add_argument(
            "--migrate", action="store_true", help="Bring the schema up to date first, in this process."
        )
        parser.add_argument(
            "--wait",
            type=float,
            default=0,
            metavar="SECONDS",
            help="How long the database may take to appear (default: 0).",
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        password = os.environ.get("DECISIONING_ADMIN_PASSWORD")
        if not password:
            raise CommandError("Set DECISIONING_ADMIN_PASSWORD to the admin's password.")
        _wait(options["wait"])
        if options["migrate"]:
            call_command("migrate", skip_checks=True, stdout=self.stderr)
        now = datetime.now(UTC)
        with transaction.atomic():
            bind_job("bootstrap_access")
            admin, _ = User.objects.get_or_create(
                username=options["admin_user"], defaults={"is_staff": True, "is_superuser": True}
            )
            if not (admin.password and admin.check_password(password)):
                admin.set_password(password)
                admin.save()
            team, _ = Team.objects.get_or_create(
                key=options["team"], defaults={"name": options["team"].title(), "created_at": now}
            )
            Membership.objects.get_or_create(team=team, user=admin, defaults={"role": Membership.Role.ADMIN})
            held = ApiKey.objects.filter(team=team, owner=admin, revoked_at__isnull=True, agent=False)
            if options["new_key"]:
                revoke(held, now=now)
            elif held.exists():
                return
            _, secret = create_key(team, scopes=list(Scope), owner=admin, now=now)
        self.stdout.write(secret)


def _wait(seconds: float) -> None:
    """Return when the database takes connections. Raises OperationalError when it does not in time."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return connection.ensure_connection()
        except OperationalError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)
