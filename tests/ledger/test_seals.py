"""Nobody edits history unseen: whatever is done to sealed entries, verification names the first bad one."""

import json
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.core.management import call_command

from decisioning.ledger import seals
from tests.access.logins import Psql, bound, psql
from tests.conftest import log_in_as

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, settings: object) -> Path:
    """Where the anchor is."""
    settings.ANCHOR = tmp_path / "audit-head.jsonl"  # type: ignore[attr-defined]
    return tmp_path


@pytest.fixture(autouse=True)
def _as_worker(transactional_db: None) -> Iterator[None]:
    with psql("owner") as db:  # ids that others have drawn would need seals of their own, twenty thousand each
        db.execute("TRUNCATE audit.entries RESTART IDENTITY")
    log_in_as("worker")
    yield
    log_in_as("web")


@pytest.fixture
def entries(_as_worker: None) -> list[int]:
    """Nine entries in three seals."""
    for batch in range(3):
        write(3, prefix=f"team-{batch}-")
        assert seal_all() == 1
    assert seals.verify().sound
    with psql("owner") as db:
        return [row[0] for row in db.execute("SELECT id FROM audit.entries ORDER BY id")]


def write(count: int, *, prefix: str) -> None:
    with psql("web") as db, db.transaction():
        bound(db, teams=[], admin=True)
        for number in range(count):
            db.execute(
                "INSERT INTO metadata.teams (key, name, created_at, answer_within_h, second_person) VALUES (%s, 't', now(), 24, true)",
                [f"{prefix}{number}"],
            )


def seal_all() -> int:
    """Tick until nothing is left to seal; another test's transaction in the same cluster may make us wait."""
    made, deadline = 0, time.monotonic() + 30
    while time.monotonic() < deadline:
        made += seals.seal_closed()
        if seals.verify().waiting == 0:
            return made
    raise AssertionError("Not sealed within 30 s.")


@contextmanager
def tampering() -> Iterator[Psql]:
    """The owner, with nothing in his way."""
    with psql("owner") as db:
        yield db


def edit(db: Psql, pk: int) -> None:
    db.execute("UPDATE audit.entries SET actor_name = 'somebody else' WHERE id = %s", [pk])


def backdate(db: Psql, pk: int) -> None:
    db.execute("UPDATE audit.entries SET timestamp = timestamp - interval '1 microsecond' WHERE id = %s", [pk])


def delete(db: Psql, pk: int) -> None:
    db.execute("DELETE FROM audit.entries WHERE id = %s", [pk])


@pytest.mark.parametrize(("tamper", "how"), [(edit, "was changed"), (backdate, "was changed"), (delete, "is gone")])
def test_the_first_bad_entry_is_named(entries: list[int], tamper: Callable[[Psql, int], None], how: str) -> None:
    with tampering() as db:
        tamper(db, entries[7])
        tamper(db, entries[4])
    assert seals.verify().problem == f"entry {entries[4]} {how} (seal 2)"


def test_an_entry_slipped_in_later_is_named(entries: list[int]) -> None:
    with tampering() as db:
        db.execute("DELETE FROM audit.entries WHERE id = %s", [entries[4]])
        db.execute(
            "UPDATE audit.seals SET ids = array_remove(ids, %s), hashes = hashes[1:1] || hashes[3:3] WHERE n = 2",
            [entries[4]],
        )
        assert "seal 2 was changed" in seals.verify().problem
        db.execute("UPDATE audit.entries SET id = %s WHERE id = %s", [entries[4], entries[8]])
    assert seals.verify().problem == f"entry {entries[4]} was added after the sealing (seal 2)"


def test_a_tail_cut_together_with_its_seals_is_found_by_the_head_outside_the_database(entries: list[int]) -> None:
    with tampering() as db:
        db.execute("DELETE FROM audit.entries WHERE id >= %s", [entries[6]])
        db.execute("DELETE FROM audit.seals WHERE n = 3")
    assert seals.verify().problem == f"the tail is cut: entries from {entries[6]} on are gone with their seal 3"


def test_a_chain_written_anew_is_not_the_one_that_was_noted(entries: list[int]) -> None:
    with tampering() as db:
        edit(db, entries[4])
        for n in (2, 3):
            db.execute(
                """
                UPDATE audit.seals s SET hashes = h, digest = audit.digest((SELECT digest FROM audit.seals WHERE n = s.n - 1), from_id, to_id, h)
                FROM (SELECT array_agg(audit.hash(e) ORDER BY e.id) AS h FROM audit.entries e, audit.seals t
                      WHERE t.n = %(n)s AND e.id BETWEEN t.from_id AND t.to_id) AS fresh WHERE s.n = %(n)s""",
                {"n": n},
            )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(seals, "read_anchor", lambda _file: seals.Anchor({}, []))
            assert seals.verify().sound  # within the database the forgery is perfect
    assert f"entry {entries[3]} or a later one up to" in seals.verify().problem


def test_a_removed_seal_is_missed(entries: list[int]) -> None:
    with tampering() as db:
        db.execute("DELETE FROM audit.seals WHERE n = 2")
    assert seals.verify().problem.startswith("seal 2 is missing")


def test_eight_writers_at_once_verify_clean() -> None:
    began, enough = time.monotonic(), threading.Event()
    wrong: list[BaseException] = []

    def work(number: int) -> None:
        try:
            turn = 0
            while not enough.is_set():
                write(1 + turn % 3, prefix=f"w{number}-{turn}-")
                turn += 1
        except BaseException as error:
            wrong.append(error)

    writers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    made = 0
    while any(writer.is_alive() for writer in writers):
        made += seals.seal_closed()
        ran = time.monotonic() - began
        if (made > 3 and ran > 3) or ran > 30:
            enough.set()
    for writer in writers:
        writer.join()
    assert not wrong
    assert made > 3, "no seal was made while they wrote: nothing is shown"
    seal_all()
    found = seals.verify()
    assert found.sound, found.problem
    with psql("owner") as db:
        (entries,) = db.execute("SELECT count(*) FROM audit.entries").fetchone() or (0,)
    assert found.entries == entries > 50


def test_a_transaction_that_is_still_open_holds_the_seal_back() -> None:
    with psql("web") as slow, psql("web") as quick:
        with slow.transaction():
            bound(slow, teams=[], admin=True)
            slow.execute(
                "INSERT INTO metadata.teams (key, name, created_at, answer_within_h, second_person) VALUES ('slow', 's', now(), 24, true)"
            )
            with quick.transaction():
                bound(quick, teams=[], admin=True)
                quick.execute(
                    "INSERT INTO metadata.teams (key, name, created_at, answer_within_h, second_person) VALUES ('quick', 'q', now(), 24, true)"
                )
            assert [seals.seal_closed() for _ in range(3)] == [0, 0, 0]
        seal_all()
    assert seals.verify() == seals.Verified(1, 2, 0, "")


def test_a_large_backlog_is_sealed_in_several_ranges() -> None:
    write(25, prefix="many-")
    seals.seal_closed()
    with psql("worker") as db:
        sizes: list[int] = []
        deadline = time.monotonic() + 30
        while len(sizes) < 3 and time.monotonic() < deadline:
            sizes += [row[0] for row in db.execute("SELECT to_id - from_id + 1 FROM audit.seal(10)")]
    assert all(size <= 10 for size in sizes)
    seal_all()
    assert seals.verify().sound


@pytest.mark.usefixtures("entries")
def test_the_command_says_it_on_its_last_line_and_by_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("verify_audit")
    assert capsys.readouterr().out.splitlines()[-1] == "sound: 9 entries in 3 seals, 0 not yet sealed"
    with tampering() as db:
        db.execute("DELETE FROM audit.entries WHERE id = (SELECT max(id) FROM audit.entries)")
    with pytest.raises(SystemExit) as end:
        call_command("verify_audit")
    assert end.value.code == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("broken: entry ")
    assert seals.standing().problem.endswith("is gone (seal 3)")


@pytest.mark.usefixtures("entries")
def test_every_seal_is_noted_outside_the_database(home: Path) -> None:
    noted = [json.loads(line) for line in (home / "audit-head.jsonl").read_text().splitlines()]
    assert [head["n"] for head in noted] == [1, 2, 3]
    assert (home / "audit-head.jsonl").stat().st_mode & 0o077 == 0
    standing = seals.standing()
    assert (standing.sealed_to, standing.problem) == (noted[-1]["to_id"], "")


def test_an_anchor_that_was_torn_is_told_stepped_over_and_still_finds_a_cut_tail(
    home: Path, entries: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    file = home / "audit-head.jsonl"
    lines = file.read_bytes().splitlines()
    file.write_bytes(
        b"\n".join([lines[0], lines[1][:20], b"\xff\x00", b"[]", b'{"n": "x", "digest": 1}', lines[2], lines[0][:5]])
    )

    call_command("verify_audit")
    said = capsys.readouterr().out.splitlines()
    assert "Lines of it that say nothing, stepped over: 2, 3, 4, 5, 7" in said
    assert said[-1].startswith("sound: ")

    write(1, prefix="after-")
    assert seal_all() == 1
    assert json.loads(file.read_bytes().splitlines()[-1])["n"] == 4, "what comes after a torn line stands on its own"
    with tampering() as db:
        db.execute("DELETE FROM audit.entries WHERE id > %s", [entries[8]])
        db.execute("DELETE FROM audit.seals WHERE n = 4")
    assert seals.verify().problem == f"the tail is cut: entries from {entries[8] + 1} on are gone with their seal 4"


def test_a_disk_that_is_full_leaves_no_half_of_a_line_and_the_next_tick_notes_it(
    home: Path, entries: list[int]
) -> None:
    file = home / "audit-head.jsonl"
    before = file.read_bytes()
    write(1, prefix="full-")
    with _no_file_over(len(before) + 10):
        assert seal_all() == 1
    assert file.read_bytes() == before

    seals.seal_closed()

    assert json.loads(file.read_bytes().splitlines()[-1])["n"] == 4


@contextmanager
def _no_file_over(size: int) -> Iterator[None]:
    """No write of this process gets beyond so many bytes of a file, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    told = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, told)


def test_workers_with_one_anchor_and_workers_with_anchors_of_their_own_know_the_newest_seal(
    home: Path, entries: list[int], settings: object
) -> None:
    """A container that is made anew, or another worker's, has not sealed what is sealed already."""
    settings.ANCHOR = home / "another.jsonl"  # type: ignore[attr-defined]
    seals.seal_closed()
    assert seals.read_anchor(home / "another.jsonl").heads.keys() == {3}
    assert seals.verify().sound

    settings.ANCHOR = home / "audit-head.jsonl"  # type: ignore[attr-defined]
    write(1, prefix="one-")
    seal_all()
    settings.ANCHOR = home / "another.jsonl"  # type: ignore[attr-defined]
    seals.seal_closed()
    seals.seal_closed()
    assert seals.read_anchor(home / "another.jsonl").heads.keys() == {3, 4}

    with tampering() as db:
        db.execute("DELETE FROM audit.entries WHERE id > %s", [entries[8]])
        db.execute("DELETE FROM audit.seals WHERE n = 4")
    for file in ("another", "audit-head"):
        settings.ANCHOR = home / f"{file}.jsonl"  # type: ignore[attr-defined]
        assert seals.verify().problem.startswith("the tail is cut")
