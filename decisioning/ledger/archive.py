"""Backups that prove themselves: a dump, and beside it what was in the database at the moment of the dump.

A folder holds `database.dump` (pg_dump's custom format), `manifest.json` (a count and a digest of every table, the head of the
audit's seals) and `audit-head.jsonl` as the home folder has it. Restoring compares the restored database with all of that.
"""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from decisioning.access import restored
from decisioning.ledger.seals import read_anchor

DUMP, MANIFEST, HEADS = "database.dump", "manifest.json", "audit-head.jsonl"
ENCRYPTED = ".encrypted"
type Say = Callable[[str], None]


class NotProved(Exception):
    """The backup was not made, or what was restored is not what was backed up. The message says what, and what to do."""


def back_up(url: str, folder: Path, *, heads: Path, binaries: Path | None, say: Say) -> dict[str, Any]:
    """Dump the database at `url` into a new folder and return its manifest. Raises NotProved.

    url: of a login that reads everything and bypasses row security, such as decisioning_backup.   heads: the home's audit-head.jsonl,
    which need not exist.   binaries: the folder of pg_dump, None for PATH.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=False)
    with psycopg.connect(url) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        if not connection.execute(
            "SELECT rolbypassrls OR rolsuper FROM pg_roles WHERE rolname = current_user"
        ).fetchall()[0][0]:
            raise NotProved(
                "This login does not see through row security, so its dump would be empty. Use decisioning_backup."
            )
        snapshot = str(connection.execute("SELECT pg_export_snapshot()").fetchall()[0][0])
        say("Counting every table")
        manifest = {
            "made_at": datetime.now(UTC).isoformat(),  # noqa: TID251 - a name for the backup, nothing is judged by it
            "server": connection.execute("SHOW server_version").fetchall()[0][0],
            **_facts(connection),
        }
        command = [
            "--format=custom",
            f"--snapshot={snapshot}",
            "--verbose",
            # Nothing of ours: a large object that somebody else has made would end the dump, and what roles.sh has taken from everybody in
            # the catalogue is the next server's own.
            "--no-large-objects",
            "--exclude-schema=pg_catalog",
            f"--file={folder / DUMP}",
            f"--dbname={without_password(url)}",
        ]
        _run(
            "pg_dump",
            command,
            url=url,
            binaries=binaries,
            say=say,
            word="dumping contents of table",
            of=len(manifest["tables"]),
        )
    if heads.exists():
        shutil.copyfile(heads, folder / HEADS)
    manifest["dump_sha256"] = _sha256(folder / DUMP)
    _write(folder / MANIFEST, json.dumps(manifest, indent=1))
    return manifest


def seal_up(folder: Path, command: str, *, say: Say) -> None:
    """Have a program of the operator's (age, gpg) encrypt every file of a backup; the plain ones go. Raises NotProved.

    command: as in a shell without one: it reads the plain file on stdin and writes the other on stdout.
    """
    for file in sorted(folder.iterdir()):
        say(f"Encrypting {file.name}")
        _through(command, file, file.with_name(file.name + ENCRYPTED))
        file.unlink()


@contextlib.contextmanager
def opened(folder: Path, command: str, *, say: Say) -> Iterator[Path]:
    """The plain files of a backup that was sealed up, in a private folder beside it that goes with the block. Raises NotProved."""
    if not command:
        raise NotProved("It is encrypted. Say with --decrypt by which command it is opened.")
    with tempfile.TemporaryDirectory(prefix=".opened-", dir=folder.parent) as made:
        for file in sorted(folder.glob(f"*{ENCRYPTED}")):
            say(f"Decrypting {file.name}")
            _through(command, file, Path(made) / file.name.removesuffix(ENCRYPTED))
        yield Path(made)


def is_sealed_up(folder: Path) -> bool:
    """Whether it was encrypted."""
    return (folder / f"{MANIFEST}{ENCRYPTED}").exists()


def _through(command: str, source: Path, target: Path) -> None:
    with source.open("rb") as plain, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as sealed:
        try:
            done = subprocess.run(shlex.split(command), stdin=plain, stdout=sealed, stderr=subprocess.PIPE, check=False)  # noqa: S603
        except (OSError, ValueError) as error:
            target.unlink()
            raise NotProved(f"{command.split(' ')[0]} could not be run: {error}") from error
    if done.returncode or not target.stat().st_size:
        target.unlink()
        said = done.stderr.decode(errors="replace").strip()[-300:]
        raise NotProved(f"{command.split(' ')[0]} ended with {done.returncode} on {source.name}: {said}")


def restore(folder: Path, url: str, *, binaries: Path | None, say: Say, live: bool = False) -> dict[str, Any]:
    """Fill the empty database at `url` from a backup, compare, and return the manifest. Raises NotProved.

    url: of a superuser or the owner. The roles have to be there; nothing is kept of a restore that fails.   live: it takes the place of
    the one that was backed up; else it is marked as a copy.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        raise NotProved(f"{folder} is no backup: it has no {MANIFEST}.") from None
    if _sha256(folder / DUMP) != manifest["dump_sha256"]:
        raise NotProved(f"{folder / DUMP} is not the file that was written: its SHA-256 differs.")
    with psycopg.connect(url) as connection:
        if list(_tables(connection)):
            raise NotProved(
                "The database is not empty. Restore into a new home, or into a database that was just made."
            )
    command = [
        "--exit-on-error",
        "--single-transaction",
        "--verbose",
        f"--dbname={without_password(url)}",
        str(folder / DUMP),
    ]
    _run(
        "pg_restore",
        command,
        url=url,
        binaries=binaries,
        say=say,
        word="processing data for table",
        of=len(manifest["tables"]),
    )
    with psycopg.connect(url) as connection:
        connection.execute("ANALYZE")
    verify(folder, url, manifest=manifest, say=say)
    with psycopg.connect(url) as connection:
        if live:
            restored.go_live(connection)
        else:
            restored.mark(connection)
    return manifest


def verify(folder: Path, url: str, *, manifest: dict[str, Any], say: Say) -> None:
    """Compare a database with a backup: counts and digests of tables, seals, evidence. Raises NotProved with every difference."""
    with psycopg.connect(url) as connection:
        say("Comparing every table with the manifest")
        found = _facts(connection)
        wrong = [
            f"{table}: {found['tables'].get(table)} instead of {told}"
            for table, told in manifest["tables"].items()
            if found["tables"].get(table) != told
        ]
        if found["seal"] != manifest["seal"]:
            wrong.append(f"the newest seal: {found['seal']} instead of {manifest['seal']}")
        say("Recomputing the audit's seals and the digests of all evidence")
        newest = (manifest["seal"] or {"n": 0})["n"]
        anchor = read_anchor(folder / HEADS)
        if anchor.torn:
            say(f"{folder / HEADS}: lines that say nothing, stepped over: {anchor.torn}")
        anchors = {n: digest for n, digest in anchor.heads.items() if n <= newest}
        (problem,) = connection.execute("SELECT problem FROM audit.verify(%s)", [json.dumps(anchors)]).fetchall()[0]
        wrong += [f"the audit: {problem}"] if problem else []
        wrong += [f"evidence {digest} is not what its digest says" for digest in _false_evidence(connection)]
        connection.rollback()  # what audit.verify noted; a restored database is as it was
    if wrong:
        raise NotProved("Not what was backed up: " + "; ".join(wrong))


def _facts(connection: psycopg.Connection[Any]) -> dict[str, Any]:
    """Of every table how many rows it has and a digest that does not depend on their order; the head of the seals."""
    connection.execute("SET LOCAL timezone = 'UTC'")
    tables = {}
    for schema, name in _tables(connection):
        table = sql.Identifier(schema, name)
        query = sql.SQL(
            "SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text FROM ONLY {} AS t"
        )
        count, digest = connection.execute(query.format(table)).fetchall()[0]
        tables[f"{schema}.{name}"] = {"rows": count, "digest": digest}
    seals = connection.execute(
        "SELECT n, to_id, encode(digest, 'hex') FROM audit.seals ORDER BY n DESC LIMIT 1"
    ).fetchall()
    return {"tables": tables, "seal": dict(zip(("n", "to_id", "digest"), seals[0], strict=True)) if seals else None}


def _tables(connection: psycopg.Connection[Any]) -> Iterator[tuple[str, str]]:
    yield from connection.execute(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1, 2"
    ).fetchall()


def _false_evidence(connection: psycopg.Connection[Any]) -> Iterator[str]:
    with connection.cursor("evidence") as cursor:
        cursor.execute("SELECT digest, body FROM metadata.evidence")
        for digest, body in cursor:
            if f"sha256:{hashlib.sha256(zlib.decompress(body)).hexdigest()}" != digest:
                yield digest


def _run(program: str, arguments: list[str], *, url: str, binaries: Path | None, say: Say, word: str, of: int) -> None:
    """A client program of PostgreSQL, with its progress said; the password goes by the environment. Raises NotProved."""
    login = {"PGPASSWORD": str(conninfo_to_dict(url).get("password", "")), "LC_MESSAGES": "C"}
    command = [str(binaries / program) if binaries else program, *arguments]
    last: list[str] = []
    done = 0
    try:
        process = subprocess.Popen(command, env=os.environ | login, stderr=subprocess.PIPE, text=True)  # noqa: S603
    except FileNotFoundError:
        raise NotProved(f"There is no {program} here. Install PostgreSQL 18's client programs.") from None
    with process:
        for line in process.stderr or ():
            last = [*last[-5:], line.strip()]
            if word in line:
                done += 1
                say(f"{program} {min(done, of)}/{of} {line.strip().rpartition(' ')[2].strip(chr(34))}")
    if process.returncode:
        raise NotProved(f"{program} failed: {' '.join(last)}")


def without_password(url: str) -> str:
    """A connection string to show, and to put on a command line."""
    return make_conninfo("", **{name: value for name, value in conninfo_to_dict(url).items() if name != "password"})


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _write(file: Path, text: str) -> None:
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text)
