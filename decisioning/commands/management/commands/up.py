"""`manage.py help up`. `manage.py` itself hands `up` to the supervisor before Django wants a database."""

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from decisioning import up


class Command(BaseCommand):
    help = up.__doc__ or ""
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        up.add_arguments(parser)

    def handle(self, *_args: Any, **_options: Any) -> None:
        sys.exit(up.main(sys.argv[2:]))
