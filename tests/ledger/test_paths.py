"""Whatever the path of a change, it leaves exactly one entry per object, and somebody who did it."""

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection, transaction
from django.test import Client

from decisioning.access.keys import create_key
from decisioning.access.models import ApiKey, Membership, Team
from decisioning.access.principal import bind_job, bind_user
from decisioning.access.scopes import Scope
from experiments.models import Experiment, Metric, Variant
from tests.access.logins import psql
from tests.conftest import as_role

CREATE, UPDATE, DELETE = 0, 1, 2


class History:
    """The entries written since it was last asked."""

    def __init__(self) -> None:
        self.since = 0
        self.read()

    def read(self) -> list[tuple[Any, ...]]:
        with as_role("owner"), connection.cursor() as cursor:
            cursor.execute(
                """
                SELECT e.id, c.app_label || '.' || c.model, e.object_pk, e.action, e.actor_kind, e.actor_name, e.actor_id, e.cid, e.changes
                FROM audit.entries e JOIN django_content_type c ON c.id = e.content_type_id WHERE e.id > %s ORDER BY e.id""",
                [self.since],
            )
            found = cursor.fetchall()
        self.since = max((row[0] for row in found), default=self.since)
        return [row[1:] for row in found]

    def one_each(self, expected: dict[str, int], *, kind: str, name: str) -> list[tuple[Any, ...]]:
        """As many objects of each model as expected, one entry an object, all by this actor."""
        rows = self.read()
        assert Counter(row[0] for row in rows) == expected
        assert max(Counter((row[0], row[1], row[2]) for row in rows).values()) == 1
        assert {(row[3], row[4]) for row in rows} == {(kind, name)}
        return rows


@pytest.fixture
def boss(db: None) -> User:
    return User.objects.create_superuser("boss")


@pytest.fixture
def secret(team: Team, now: datetime) -> str:
    with as_role("owner"):
        Metric.objects.create(key="vrps", name="Value per session", created_at=now)
        return create_key(team, scopes=list(Scope), now=now)[1]


@pytest.fixture
def program(secret: str) -> Client:
    return Client(headers={"Authorization": f"Bearer {secret}", "X-Request-ID": "request-7"})


@pytest.fixture
def experiment(program: Client) -> Experiment:
    body = {"key": "checkout", "name": "One page", "hypothesis": "h", "target_kpis": ["vrps"], "start": False}
    assert program.post("/api/experiments", body, content_type="application/json").status_code == 201
    with as_role("owner"):
        return Experiment.objects.get(key="checkout")


@pytest.fixture
def history(boss: User, experiment: Experiment) -> History:
    return History()


def test_a_request_by_key(program: Client, history: History, experiment: Experiment, secret: str) -> None:
    name = secret[:11]
    program.patch("/api/experiments/checkout", {"name": "Two pages"}, content_type="application/json")
    (row,) = history.one_each({"experiments.experiment": 1}, kind="key", name=name)
    assert row[2] == UPDATE
    assert row[6] == "request-7"
    assert '"One page", "Two pages"' in row[7]
    body = {"key": "other", "name": "n", "hypothesis": "h", "target_kpis": ["vrps"]}
    program.post("/api/experiments", body, content_type="application/json")
    made = history.read()
    assert Counter(r[0] for r in made if r[0].startswith("experiments.")) == {
        "experiments.experiment": 1,
        "experiments.variant": 2,
        "experiments.targetkpi": 1,
    }
    assert {(r[3], r[4]) for r in made} == {("key", name)}
    assert max(Counter((r[0], r[1]) for r in made).values()) == 1
    program.post("/api/experiments/checkout/kpis", {"rows": []}, content_type="application/json")
    assert history.read() == [], "nothing changed, nothing is written"


def test_a_refused_request_leaves_no_change_only_the_note_of_the_refusal(
    history: History, team: Team, now: datetime
) -> None:
    with as_role("owner"):
        reader = create_key(team, scopes=[Scope.READ], now=now)[1]
    history.read()
    weak = Client(headers={"Authorization": f"Bearer {reader}"})
    answer = weak.patch("/api/experiments/checkout", {"name": "Mine"}, content_type="application/json")
    assert answer.status_code == 403
    (row,) = history.read()
    assert (row[0], row[2], row[3], row[4]) == ("access.refusal", 3, "key", reader[:11])


def test_a_form_and_an_action_of_the_admin(history: History, boss: User, team: Team, now: datetime) -> None:
    browser = Client()
    browser.force_login(boss)
    person = User.objects.create(username="ada")
    history.read()
    sent = browser.post("/admin/access/membership/add/", {"user": person.pk, "team": team.pk, "role": "viewer"})
    assert sent.status_code == 302, sent.content
    (row,) = history.one_each({"access.membership": 1}, kind="user", name="boss")
    assert (row[2], row[5]) == (CREATE, boss.pk)
    with as_role("owner"):
        keys = [create_key(team, scopes=[Scope.READ], now=now)[0].pk for _ in range(3)]
    history.read()
    browser.post("/admin/access/apikey/", {"action": "revoke", "_selected_action": keys, "confirmed": "1"})
    rows = history.one_each({"access.apikey": 3}, kind="user", name="boss")
    assert {row[2] for row in rows} == {UPDATE}
    browser.post(f"/admin/access/membership/{membership_of(person)}/delete/", {"post": "yes"})
    (row,) = history.one_each({"access.membership": 1}, kind="user", name="boss")
    assert row[2] == DELETE


def membership_of(person: User) -> int:
    with as_role("owner"):
        return Membership.objects.get(user=person).pk


def _bulk_create(team: Team, experiment: Experiment) -> int:
    arms = [Variant(experiment=experiment, team=team, key=f"arm-{n}", position=9 + n) for n in range(5)]
    return len(Variant.objects.bulk_create(arms))


def _bulk_update(team: Team, experiment: Experiment) -> int:
    arms = list(Variant.objects.filter(experiment=experiment))
    for arm in arms:
        arm.weight += 1
    return Variant.objects.bulk_update(arms, ["weight"])


def _update(team: Team, experiment: Experiment) -> int:
    return Variant.objects.filter(experiment=experiment).update(weight=7)


def _delete(team: Team, experiment: Experiment) -> int:
    return Variant.objects.filter(experiment=experiment).delete()[0]


def _raw(team: Team, experiment: Experiment) -> int:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE variants SET weight = weight * 2 WHERE experiment_id = %s", [experiment.pk])
        return int(cursor.rowcount)


@pytest.mark.parametrize("change", [_bulk_create, _bulk_update, _update, _delete, _raw])
def test_changes_of_many_rows_at_once(
    history: History, team: Team, experiment: Experiment, change: Callable[[Team, Experiment], int]
) -> None:
    with as_role("worker"):
        bind_job("some.job")
        number = change(team, experiment)
    assert number >= 2
    history.one_each({"experiments.variant": number}, kind="job", name="some.job")


def test_a_person_bound_by_hand_and_a_silent_column(history: History, boss: User, team: Team) -> None:
    with as_role("worker"):
        bind_user(boss.pk, "r-1")
        Team.objects.filter(pk=team.pk).update(name="Grown")
        ApiKey.objects.update(last_used_at="2026-11-24T00:00:00Z")  # would be an entry for every request
    (row,) = history.one_each({"access.team": 1}, kind="user", name="boss")
    assert row[6] == "r-1"


def test_a_command(history: History) -> None:
    with as_role("worker"):
        call_command("create_key", team="fresh", scopes="experiments:read")
    history.one_each({"access.team": 1, "access.apikey": 1}, kind="job", name="create_key")


def test_a_secret_and_a_password_are_not_written_down(history: History, boss: User, team: Team, now: datetime) -> None:
    with as_role("owner"):
        create_key(team, scopes=[Scope.READ], now=now)
    boss.set_password("correct horse battery")
    boss.save()
    changes = " ".join(str(row[7]) for row in history.read())
    assert '"digest": ["***", "***"]' in changes
    assert '"password": ["***", "***"]' in changes
    assert "pbkdf2" not in changes


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("role", ["owner", "web", "worker", "superuser"])
def test_psql(role: str, team: Team) -> None:
    with psql(role) as db:
        with db.transaction():
            db.execute("SELECT set_config('app.admin', 'on', true)")
            db.execute("UPDATE metadata.teams SET name = name || '!'")
        who = db.execute("SELECT session_user").fetchone()
    with transaction.atomic(), as_role("owner"), connection.cursor() as cursor:
        cursor.execute(
            "SELECT actor_kind, actor_name, action FROM audit.entries WHERE object_pk = %s AND action = 1",
            [str(team.pk)],
        )
        assert cursor.fetchall() == [("role", (who or ("",))[0], UPDATE)]
