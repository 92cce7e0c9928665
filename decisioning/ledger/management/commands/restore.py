"""Restore a backup into an empty database and prove it."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import psycopg
from django.core.management.base import BaseCommand, CommandParser

from decisioning.embedded import Home, NotStarted, Postgres, start
from decisioning.ledger import archive


class Command(BaseCommand):
    help = (
        "Fill an empty database from the folder that `backup` wrote, and compare every table, the audit's seals and all evidence.\n"
        "Without --url a new home gets an embedded server: `restore FOLDER --home NEW`, then `up --home NEW`.\n"
        "The last line says `restored: ...` (exit 0) or `not restored: ...` (exit 1)."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("folder", type=Path)
        parser.add_argument("--home", help="The new home (default: DECISIONING_HOME or .data).")
        parser.add_argument(
            "--url", help="An empty database of your own, by the owner's or a superuser's login; after docker/roles.sh."
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        folder: Path = options["folder"]
        try:
            if options["url"]:
                made = archive.restore(folder, options["url"], binaries=None, say=self.stdout.write)
                where = archive.without_password(options["url"])
            else:
                home = Home(options["home"])
                made, where = self._into(home, folder), str(home.path)
        except (archive.NotProved, NotStarted, psycopg.Error, OSError) as problem:
            self.stdout.write(f"not restored: {problem}")
            sys.exit(1)
        rows = sum(table["rows"] for table in made["tables"].values())
        self.stdout.write(f"restored: {rows} rows of {len(made['tables'])} tables into {where}, all as backed up")

    def _into(self, home: Home, folder: Path) -> dict[str, Any]:
        home.make()
        if not home.claim():
            raise archive.NotProved(f"An installation runs in {home.path}. Stop it, or name another --home.")
        postgres = Postgres(home)
        postgres.prepare()
        process = start(postgres, home.logs / "postgres.log")
        try:
            postgres.bootstrap()
            made = archive.restore(folder, postgres.dsn("superuser"), binaries=postgres.bin, say=self.stdout.write)
            if (folder / archive.HEADS).exists():
                shutil.copyfile(folder / archive.HEADS, home.path / archive.HEADS)
                os.chmod(home.path / archive.HEADS, 0o600)
            return made
        finally:
            process.send_signal(postgres.stop_signal)
            process.wait(60)
