"""A backup proves itself: what is restored is compared with what was there, down to the last row."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import connection
from psycopg import sql

from decisioning.access import restored
from decisioning.access.models import Team
from decisioning.embedded import Home, Postgres
from decisioning.ledger import archive
from tests.conftest import as_role

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif("DATABASE_SUPERUSER_URL" not in os.environ, reason="an own server of this test run is needed"),
]


@pytest.fixture
def postgres() -> Postgres:
    return Postgres(Home(os.environ["DECISIONING_HOME"]))


@pytest.fixture
def empty(postgres: Postgres) -> Iterator[str]:
    """The URL of a database that was just made."""
    name = sql.Identifier("restored")
    with psycopg.connect(postgres.dsn("superuser", "postgres"), autocommit=True) as admin:
        admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        admin.execute(sql.SQL("CREATE DATABASE {} OWNER decisioning_owner").format(name))
        yield postgres.dsn("superuser", "restored")
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def _sealed(admin: "psycopg.Connection[Any]") -> list[Any]:
    """The heads of what can be sealed; another test's transaction in the same cluster may make us wait."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = admin.execute("SELECT n, encode(digest, 'hex') FROM audit.seal() WHERE n IS NOT NULL").fetchall()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError("Not sealed within 30 s.")


def test_a_restored_database_is_the_one_that_was_backed_up_and_a_changed_row_is_found(
    postgres: Postgres, empty: str, tmp_path: Path
) -> None:
    here = str(connection.settings_dict["NAME"])
    with as_role("owner"):
        for number in range(20):
            Team.objects.create(key=f"team-{number}", name="Ü 'quoted'", created_at=datetime.now(UTC))
    with psycopg.connect(postgres.dsn("superuser", here), autocommit=True) as admin:
        sealed = _sealed(admin)
    heads = tmp_path / "audit-head.jsonl"
    heads.write_text("".join(json.dumps({"n": n, "digest": digest}) + "\n" for n, digest in sealed))
    said: list[str] = []
    folder = tmp_path / "backup"

    made = archive.back_up(postgres.dsn("backup", here), folder, heads=heads, binaries=postgres.bin, say=said.append)
    archive.restore(folder, empty, binaries=postgres.bin, say=said.append)

    assert made["tables"]["metadata.teams"]["rows"] == 20
    assert made["seal"]["n"] == sealed[-1][0]
    assert any(line.startswith("pg_restore ") for line in said), "it says how far it is"
    with psycopg.connect(empty) as there:
        assert there.execute("SELECT name FROM metadata.teams LIMIT 1").fetchall() == [("Ü 'quoted'",)]
        there.execute("UPDATE metadata.teams SET name = 'x' WHERE key = 'team-7'")
    with pytest.raises(archive.NotProved, match=r"metadata\.teams: "):
        archive.verify(folder, empty, manifest=made, say=said.append)
    with pytest.raises(archive.NotProved, match="not empty"):
        archive.restore(folder, empty, binaries=postgres.bin, say=said.append)


def test_a_login_under_row_security_backs_nothing_up(postgres: Postgres, tmp_path: Path) -> None:
    here = str(connection.settings_dict["NAME"])
    with pytest.raises(archive.NotProved, match="decisioning_backup"):
        archive.back_up(
            postgres.dsn("worker", here), tmp_path / "backup", heads=tmp_path / "none", binaries=postgres.bin, say=print
        )


def test_a_dump_that_was_changed_on_the_way_is_not_restored(postgres: Postgres, empty: str, tmp_path: Path) -> None:
    here, folder = str(connection.settings_dict["NAME"]), tmp_path / "backup"
    archive.back_up(postgres.dsn("backup", here), folder, heads=tmp_path / "none", binaries=postgres.bin, say=print)
    with (folder / archive.DUMP).open("ab") as dump:
        dump.write(b"x")
    with pytest.raises(archive.NotProved, match="SHA-256"):
        archive.restore(folder, empty, binaries=postgres.bin, say=print)


@pytest.mark.parametrize("mark", ["as it is now", "from before there was one"])
def test_what_is_restored_is_a_copy_unless_it_takes_the_place_of_what_was_backed_up(
    postgres: Postgres, empty: str, tmp_path: Path, mark: str
) -> None:
    here, folder = str(connection.settings_dict["NAME"]), tmp_path / "backup"
    archive.back_up(postgres.dsn("backup", here), folder, heads=tmp_path / "none", binaries=postgres.bin, say=print)
    archive.restore(folder, empty, binaries=postgres.bin, say=print, live=True)
    with psycopg.connect(empty) as there:
        assert there.execute("SELECT count(*) FROM access.restored").fetchone() == (0,)
        if mark != "as it is now":
            there.execute("DROP TABLE access.restored CASCADE")
            assert not restored.go_live(there)
        for _ in range(2):  # a copy of a copy
            restored.mark(there)
            there.commit()
        assert there.execute(
            "SELECT count(*) FROM access.restored WHERE at > now() - interval '1 minute'"
        ).fetchone() == (1,)
        owner = "SELECT relowner::regrole::text FROM pg_class WHERE oid = 'access.restored'::regclass"
        assert there.execute(owner).fetchone() == ("decisioning_owner",), "or no migration could go on from there"
        if mark == "as it is now":
            assert there.execute("SELECT FROM audit.entries WHERE actor_name = 'restore'").rowcount > 0
        assert restored.go_live(there)
        assert not restored.go_live(there)


def test_a_mark_is_set_by_the_restore_itself(postgres: Postgres, empty: str, tmp_path: Path) -> None:
    here, folder = str(connection.settings_dict["NAME"]), tmp_path / "backup"
    archive.back_up(postgres.dsn("backup", here), folder, heads=tmp_path / "none", binaries=postgres.bin, say=print)
    archive.restore(folder, empty, binaries=postgres.bin, say=print)
    with psycopg.connect(empty) as there:
        assert there.execute("SELECT count(*) FROM access.restored").fetchone() == (1,)


@pytest.fixture
def gpg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A keyring with one key; the command that opens what was sealed for it."""
    ring = tmp_path / "ring"
    ring.mkdir(mode=0o700)
    monkeypatch.setenv("GNUPGHOME", str(ring))
    if shutil.which("gpg") is None:
        pytest.skip("gpg is not here")
    make = [
        "gpg",
        "--batch",
        "--quiet",
        "--passphrase",
        "",
        "--quick-generate-key",
        "ops@example.org",
        "default",
        "default",
        "never",
    ]
    subprocess.run(make, check=True, capture_output=True)
    return "gpg --batch --quiet --decrypt"


def test_a_backup_is_encrypted_by_a_program_of_the_operators_and_opened_by_another(
    postgres: Postgres, empty: str, tmp_path: Path, gpg: str
) -> None:
    here, folder = str(connection.settings_dict["NAME"]), tmp_path / "backup"
    archive.back_up(postgres.dsn("backup", here), folder, heads=tmp_path / "none", binaries=postgres.bin, say=print)
    plain = (folder / archive.DUMP).read_bytes()
    archive.seal_up(folder, "gpg --batch --quiet --trust-model always --encrypt --recipient ops@example.org", say=print)

    assert {file.name for file in folder.iterdir()} == {"database.dump.encrypted", "manifest.json.encrypted"}
    assert not any(plain[:200] in file.read_bytes() for file in folder.iterdir())
    assert archive.is_sealed_up(folder)
    with pytest.raises(archive.NotProved, match="is no backup"):
        archive.restore(folder, empty, binaries=postgres.bin, say=print)
    with archive.opened(folder, gpg, say=print) as readable:
        assert readable.stat().st_mode & 0o077 == 0
        assert (readable / archive.DUMP).read_bytes() == plain
        archive.restore(readable, empty, binaries=postgres.bin, say=print)
    assert not readable.exists(), "nothing plain is left behind"


def test_a_program_that_fails_leaves_the_backup_as_it_was(tmp_path: Path) -> None:
    (tmp_path / archive.MANIFEST).write_text("{}")
    for command in ("false", "no-such-program --encrypt", "true"):
        with pytest.raises(archive.NotProved):
            archive.seal_up(tmp_path, command, say=print)
    assert {file.name for file in tmp_path.iterdir()} == {archive.MANIFEST}


def test_an_encrypted_backup_is_not_restored_without_the_command_that_opens_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"{archive.MANIFEST}.encrypted").write_text("x")
    with pytest.raises(SystemExit):
        call_command("restore", str(tmp_path), "--home", str(tmp_path / "home"))
    assert "It is encrypted" in capsys.readouterr().out
