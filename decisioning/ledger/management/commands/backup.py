"""Back the database up, with the means to prove a restore."""

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from django.core.management.base import BaseCommand, CommandParser

from decisioning.embedded import Home, Postgres
from decisioning.ledger import archive, seals


class Command(BaseCommand):
    help = (
        "Write a dump and what proves it into a new folder. On your own server DATABASE_BACKUP_URL names the login decisioning_backup.\n"
        "The last line says `backed up: ...` (exit 0) or `not backed up: ...` (exit 1)."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "folder",
            nargs="?",
            type=Path,
            help="Where to; by default a folder named by the time in the home's backups.",
        )

        parser.add_argument(
            "--encrypt",
            metavar="COMMAND",
            default=os.environ.get("DECISIONING_BACKUP_ENCRYPT"),
            help="Have a program encrypt each file, from stdin to stdout, such as 'age --recipient age1...' or 'gpg --encrypt --recipient ops' "
            "(default: DECISIONING_BACKUP_ENCRYPT).",
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        home, now = Home(), datetime.now(UTC)
        folder: Path = options["folder"] or home.path / "backups" / f"{now:%Y%m%dT%H%M%SZ}"
        url, binaries = os.environ.get("DATABASE_BACKUP_URL"), None
        if url is None and home.read("backup.secret"):
            postgres = Postgres(home)
            url, binaries = postgres.dsn("backup"), postgres.bin
        if url is None:
            self.stdout.write("not backed up: set DATABASE_BACKUP_URL to the login decisioning_backup.")
            sys.exit(1)
        try:
            made = archive.back_up(url, folder, heads=seals.anchor_file(), binaries=binaries, say=self.stdout.write)
            if options["encrypt"]:
                archive.seal_up(folder, options["encrypt"], say=self.stdout.write)
        except (archive.NotProved, psycopg.Error, OSError) as problem:
            self.stdout.write(f"not backed up: {problem}")
            sys.exit(1)
        rows = sum(table["rows"] for table in made["tables"].values())
        self.stdout.write(f"backed up: {rows} rows of {len(made['tables'])} tables in {folder}")
