"""Who is deleted goes by name and mail from every table; what he did stays under a pseudonym, and the audit's chain stays whole."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command

from decisioning.ledger import erasure, seals
from tests.access.logins import Psql, bound, psql
from tests.conftest import log_in_as
from tests.ledger.test_seals import seal_all

pytestmark = pytest.mark.django_db(transaction=True)

MAIL = "Ada.Lovelace@Example.org"


@pytest.fixture(autouse=True)
def _as_worker(transactional_db: None, tmp_path: Path, settings: Any) -> Iterator[None]:
    settings.ANCHOR = tmp_path / "audit-head.jsonl"
    with psql("owner") as db:
        db.execute("TRUNCATE audit.entries RESTART IDENTITY")
    log_in_as("worker")
    yield
    log_in_as("web")


def ada_works(db: Psql, *, who: int, name: str = "ada") -> int:
    """She makes a team called like herself, an experiment that is hers, invites somebody, and is told of."""
    with db.transaction():
        bound(db, teams=[], admin=True)
        db.execute(
            "SELECT set_config('app.actor_kind', 'user', true), set_config('app.actor_id', %s, true), set_config('app.actor_name', %s, true)",
            [str(who), name],
        )
        ((team,),) = db.execute(
            "INSERT INTO metadata.teams (key, name, created_at, answer_within_h, second_person) VALUES ('ada', 'ada', now(), 24, true) RETURNING id"
        )
        for key, owner in (("hers", MAIL), ("checkout", "somebody@example.org")):
            db.execute(
                "INSERT INTO metadata.experiments (key, name, hypothesis, owner, team_id, status, created_at) "
                "VALUES (%s, %s, %s, %s, %s, 'draft', now())",
                [key, key, f"Ask {MAIL.lower()}, not xada.lovelace@example.org.", owner, team],
            )
        ((experiment,),) = db.execute("SELECT id FROM metadata.experiments WHERE key = 'hers'").fetchall()
        ((metric,),) = db.execute(
            "INSERT INTO metadata.metrics (key, name, kind, unit, direction, temporality, counts_assignment, freshness_target_s, expected_every_s, definition, team_id, created_at) "
            "VALUES ('m', 'm', 'mean', '', 'increase', 'delta', false, 60, 60, '', %s, now()) RETURNING id",
            [team],
        ).fetchall()
        db.execute(
            "INSERT INTO metadata.target_kpis (experiment_id, team_id, metric_id, role, position, trusted) VALUES (%s, %s, %s, 'goal', 0, %s)",
            [experiment, team, metric, f'[{{"reason": "by ada", "by": "{MAIL}"}}, {{"reason": "", "by": "bob"}}]'],
        )
        db.execute(
            "INSERT INTO metadata.invitations (team_id, role, digest, email, created_at, created_by, expires_at, used_by) "
            "VALUES (%s, 'viewer', '\\x01', %s, now(), 'Ada Lovelace', now(), 'ada')",
            [team, MAIL],
        )
        db.execute(
            "INSERT INTO audit.outbox (team_id, type, data, created_at) VALUES (%s, 'x', %s, now())",
            [team, f'{{"experiment": "ada", "decision": {{"by": "{MAIL}"}}}}'],
        )
    return int(team)


def ada(**said: str) -> User:
    log_in_as("owner")
    made = User.objects.create_user(
        said.get("username", "ada"), MAIL, "a long enough one", first_name="Ada", last_name="Lovelace"
    )
    log_in_as("worker")
    return made


def deleted(pk: int) -> None:
    with psql("owner") as db:
        db.execute("DELETE FROM public.auth_user WHERE id = %s", [pk])


def erased_within_30_s() -> int:
    """Another test's transaction in the same cluster may make us wait."""
    until = time.monotonic() + 30
    while not (done := erasure.erase_due()) and time.monotonic() < until:
        time.sleep(0.2)
    return done


def everything(db: Psql) -> dict[str, list[str]]:
    """Every row of every table of the portal's as text."""
    tables = [
        name
        for (name,) in db.execute(
            "SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname IN ('public', 'metadata', 'metrics', 'audit', 'access')"
        ).fetchall()
    ]
    return {t: [row for (row,) in db.execute(f"SELECT to_jsonb(t)::text FROM {t} t").fetchall()] for t in tables}  # noqa: S608


def test_no_row_of_any_table_holds_the_name_or_mail_of_who_was_deleted_and_the_chain_is_whole() -> None:
    her = ada()
    with psql("owner") as db:
        ada_works(db, who=her.pk)
    assert seal_all() >= 1
    with psql("owner") as db:
        held = everything(db)
        (before,) = db.execute("SELECT count(*) FROM audit.entries").fetchone() or (0,)
    assert {t for t, rows in held.items() if MAIL.lower() in str(rows).lower()} >= {
        "metadata.experiments", "metadata.invitations", "audit.entries", "audit.outbox", "public.auth_user",
    }  # fmt: skip

    deleted(her.pk)
    assert erased_within_30_s() == 1

    called = erasure.pseudonym(her.pk)
    with psql("owner") as db:
        held = everything(db)
        assert {
            t for t, rows in held.items() if "lovelace@" in str(rows).lower().replace("xada.lovelace@", "")
        } == set()
        assert db.execute("SELECT owner, hypothesis FROM metadata.experiments WHERE key = 'hers'").fetchone() == (
            called, f"Ask {called}, not xada.lovelace@example.org.",
        )  # fmt: skip
        assert db.execute("SELECT trusted FROM metadata.target_kpis").fetchone() == (
            [{"reason": "by ada", "by": called}, {"reason": "", "by": "bob"}],
        )
        assert db.execute("SELECT email, created_by, used_by FROM metadata.invitations").fetchone() == (called,) * 3
        assert db.execute("SELECT data FROM audit.outbox").fetchone() == (
            {"experiment": "ada", "decision": {"by": called}},
        ), "where no person stands a name is a word"
        assert db.execute("SELECT key, name FROM metadata.teams").fetchone() == ("ada", "ada")
        actors = {name for (name,) in db.execute("SELECT actor_name FROM audit.entries WHERE actor_id = %s", [her.pk])}
        assert actors == {called}
        people = [
            e
            for (e,) in db.execute(
                "SELECT to_jsonb(e)::text FROM audit.entries e WHERE object_pk = %s AND content_type_id = audit.content_type('auth.user')",
                [str(her.pk)],
            )
        ]
        assert people
        assert '"ada"' not in str(people).lower()
        assert "lovelace" not in str(people).lower()
        (after,) = db.execute("SELECT count(*) FROM audit.entries").fetchone() or (0,)
    assert after == before + 2, "the deletion, the erasure, and nothing of what the erasure itself changed"

    found = seals.verify()
    assert found.sound, found.problem
    assert found.erased > 3
    seal_all()
    assert seals.verify().sound
    assert erasure.erase_due() == 0


def test_every_column_that_names_a_person_is_one_that_is_erased() -> None:
    """A new one has to be put into `audit.erase`, by a migration."""
    with psql("owner") as db:
        named = {
            (f"{schema}.{table}", column)
            for schema, table, column in db.execute(
                "SELECT table_schema, table_name, column_name FROM information_schema.columns "
                "WHERE table_schema IN ('metadata', 'metrics', 'access', 'audit', 'public') AND data_type IN ('text', 'character varying') "
                "AND column_name ~ '(^|_)(by|owner|author|email|username|first_name|last_name|actor_name|who)$' "
                "AND table_name NOT IN ('auditlog_logentry', 'auth_user')"
            ).fetchall()
        }
        ((erases,),) = db.execute("SELECT pg_get_functiondef('audit.erase'::regproc)").fetchall()
    assert len(named) > 10
    left = {
        (table, column)
        for table, column in named
        if f"('{table}', '{column}', true)" not in erases and f" {column}" not in erases.split("WITH found")[1]
    }
    assert left == {("public.login_attempts", "username"), ("audit.noted", "who")}, "which are deleted"


def test_an_erased_entry_that_is_edited_is_found_and_so_is_an_erasure_that_nobody_vouches_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    her = ada()
    with psql("owner") as db:
        ada_works(db, who=her.pk)
    seal_all()
    deleted(her.pk)
    assert erased_within_30_s()
    seal_all()
    call_command("verify_audit")
    assert "of 1 people who were deleted" in capsys.readouterr().out

    with psql("owner") as db:
        ((first,),) = db.execute("SELECT min(id) FROM audit.erased").fetchall()
        db.execute("UPDATE audit.entries SET actor_name = 'somebody else' WHERE id = %s", [first])
        assert seals.verify().problem.startswith(f"entry {first} was changed")
        # A forger who makes the hashes fit stands in the chain with that, or is missed there.
        db.execute(
            "UPDATE audit.erased SET after = (SELECT audit.hash(e) FROM audit.entries e WHERE e.id = %s) WHERE id = %s",
            [first, first],
        )
        assert (
            seals.verify().problem
            == f"no entry vouches for the erasure of person-{her.pk}: entries were changed by its name"
        )


def test_two_people_in_one_entry_are_erased_one_after_the_other() -> None:
    her = ada()
    log_in_as("owner")
    grace = User.objects.create_user("grace", "grace@example.org", "a long enough one")
    log_in_as("worker")
    with psql("owner") as db:
        ada_works(db, who=her.pk)
        db.execute("UPDATE metadata.experiments SET owner = 'grace@example.org' WHERE key = 'hers'")
    seal_all()
    for who in (her, grace):
        deleted(who.pk)
        assert erased_within_30_s() == 1
        found = seals.verify()
        assert found.sound, found.problem
    with psql("owner") as db:
        ((pair,),) = db.execute(
            "SELECT changes -> 'owner' FROM audit.entries WHERE changes -> 'owner' ->> 1 = %s", [f"person-{grace.pk}"]
        ).fetchall()
    assert pair == [f"person-{her.pk}", f"person-{grace.pk}"]


def test_a_name_that_somebody_else_has_by_now_stays_his() -> None:
    her = ada()
    with psql("owner") as db:
        ada_works(db, who=her.pk)
    deleted(her.pk)
    other = ada()
    assert erased_within_30_s() == 1
    other.refresh_from_db()
    assert (other.username, other.email.lower()) == ("ada", MAIL.lower())
    with psql("owner") as db:
        assert db.execute("SELECT DISTINCT actor_name FROM audit.entries WHERE actor_id = %s", [her.pk]).fetchall() == [
            (f"person-{her.pk}",)
        ]
    assert seals.verify().sound


def test_nobody_is_erased_who_may_still_be_writing() -> None:
    her = ada()
    with psql("web") as slow, slow.transaction():
        bound(slow, teams=[], admin=True)
        slow.execute(
            "INSERT INTO metadata.teams (key, name, created_at, answer_within_h, second_person) VALUES ('slow', 's', %s, 24, true)",
            [datetime.now(UTC)],
        )
        deleted(her.pk)
        assert erasure.erase_due() == 0
    assert erased_within_30_s() == 1
