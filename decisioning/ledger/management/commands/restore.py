"""Restore a backup into an empty database and prove it."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import psycopg
from django.core.management.base import BaseCommand, CommandParser

from decisioning.access import restored
from decisioning.embedded import Home, NotStarted, Postgres, start
from decisioning.ledger import archive


class Command(BaseCommand):
    help = (
        "Fill an empty database from the folder that `backup` wrote, and compare every table, the audit's seals and all evidence.\n"
        "Without --url a new home gets an embedded server: `restore FOLDER --home NEW`, then `up --home NEW`.\n"
        "What is restored is a copy: it tells nobody and takes no key made before, until `restore --live` is said where it runs.\n"
        "The last line says `restored: ...` or `live: ...` (exit 0), or `not restored: ...` (exit 1)."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("folder", type=Path, nargs="?")
        parser.add_argument(
            "--live",
            action="store_true",
            help="It takes the place of the one it was backed up from, which does not run any more.",
        )
        parser.add_argument(
            "--decrypt",
            metavar="COMMAND",
            default=os.environ.get("DECISIONING_BACKUP_DECRYPT"),
            help="By which an encrypted backup is opened, from stdin to stdout, such as 'age --decrypt --identity key.txt' or 'gpg --decrypt'.",
        )
        parser.add_argument("--home", help="The new home (default: DECISIONING_HOME or .data).")
        parser.add_argument(
            "--url", help="An empty database of your own, by the owner's or a superuser's login; after docker/roles.sh."
        )

    def handle(self, *_args: Any, **options: Any) -> None:
        folder: Path | None = options["folder"]
        try:
            if folder is None:
                self.stdout.write(self._live(options["url"], asked=options["live"]))
                return
            if archive.is_sealed_up(folder):
                with archive.opened(folder, options["decrypt"] or "", say=self.stdout.write) as plain:
                    made, where = self._restored(plain, options)
            else:
                made, where = self._restored(folder, options)
        except (archive.NotProved, NotStarted, psycopg.Error, OSError) as problem:
            self.stdout.write(f"not restored: {problem}")
            sys.exit(1)
        if not options["live"]:
            self.stdout.write(
                "It is a copy: it tells nobody and takes no key made before, until `manage.py restore --live` where it runs."
            )
        rows = sum(table["rows"] for table in made["tables"].values())
        self.stdout.write(f"restored: {rows} rows of {len(made['tables'])} tables into {where}, all as backed up")

    def _restored(self, folder: Path, options: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """The manifest, and where it was restored to."""
        url, live = options["url"], options["live"]
        if url:
            made = archive.restore(folder, url, binaries=None, say=self.stdout.write, live=live)
            return made, archive.without_password(url)
        home = Home(options["home"])
        return self._into(home, folder, live=live), str(home.path)

    def _live(self, url: str | None, *, asked: bool) -> str:
        """The copy that runs here is one no more. Raises NotProved."""
        url = url or os.environ.get("DATABASE_OWNER_URL")
        if not asked:
            raise archive.NotProved("Name the folder that `backup` wrote, or say --live where a restored copy runs.")
        if not url:
            raise archive.NotProved(
                "Nothing runs here. Start the copy, or name its database by the owner's login with --url."
            )
        with psycopg.connect(url) as db:
            changed = restored.go_live(db)
        return "live: it tells receivers and takes keys made before" if changed else "live: it was no copy"

    def _into(self, home: Home, folder: Path, *, live: bool) -> dict[str, Any]:
        home.make()
        if not home.claim():
            raise archive.NotProved(f"An installation runs in {home.path}. Stop it, or name another --home.")
        postgres = Postgres(home)
        postgres.prepare()
        process = start(postgres, home.logs / "postgres.log")
        try:
            postgres.bootstrap()
            made = archive.restore(
                folder, postgres.dsn("superuser"), binaries=postgres.bin, say=self.stdout.write, live=live
            )
            if (folder / archive.HEADS).exists():
                shutil.copyfile(folder / archive.HEADS, home.path / archive.HEADS)
                os.chmod(home.path / archive.HEADS, 0o600)
            return made
        finally:
            process.send_signal(postgres.stop_signal)
            process.wait(60)
