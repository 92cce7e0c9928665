"""The audit tells the right people: each team what was about it, and of strangers no more than one can read."""

import hashlib
import zlib
from datetime import datetime
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client

from decisioning.access.keys import create_key
from decisioning.access.models import ApiKey, Membership, Team
from decisioning.access.scopes import Scope
from decisioning.ledger.models import Entry
from experiments.models import Experiment, Metric
from gates import tasks, tick
from gates.models import Evidence
from telemetry.models import RefreshRun
from tests.conftest import as_role

pytestmark = pytest.mark.django_db
PASSWORD = "open sesame 7"


@pytest.fixture
def other(team: Team, now: datetime) -> Team:
    with as_role("owner"):
        return Team.objects.create(key="search", name="Search", created_at=now)


@pytest.fixture
def ines(team: Team, other: Team) -> User:
    """A viewer of both teams."""
    with as_role("owner"):
        person = User.objects.create_user("ines", "ines@example.org", PASSWORD)
        for of in (team, other):
            Membership.objects.create(team=of, user=person, role="viewer")
    return person


@pytest.fixture
def theirs(other: Team, now: datetime) -> Experiment:
    """An experiment of the other team, judged by a metric that is nobody's own."""
    with as_role("owner"):
        metric = Metric.objects.create(key="vrps", name="Value per session", created_at=now)
        experiment = Experiment.objects.create(
            key="ranking", name="Ranking", hypothesis="h", owner="o", team=other, status="running", created_at=now, started_at=now
        )  # fmt: skip
        experiment.targetkpis.create(metric=metric, role="goal", position=0, team=other)
    return experiment


def entries(kind: str) -> list[Entry]:
    with as_role("owner"):
        return list(Entry.objects.filter(content_type__model=kind).select_related("content_type").order_by("id"))


def signed_in(person: User) -> Client:
    client = Client()
    client.force_login(person)
    return client


def program(team: Team, now: datetime, *scopes: Scope, **options: Any) -> Client:
    with as_role("owner"):
        _, secret = create_key(team, scopes=scopes or [Scope.READ], now=now, **options)
    return Client(headers={"Authorization": f"Bearer {secret}"})


def test_a_refusal_belongs_to_the_team_it_was_about(ines: User, other: Team, theirs: Experiment) -> None:
    assert signed_in(ines).post(f"/experiments/{theirs.key}/to/paused").status_code == 403
    (one,) = entries("refusal")
    assert (one.team_id, one.actor_name) == (other.pk, "ines")


def test_whoever_tries_what_another_team_has_is_told_to_that_team(
    team: Team, other: Team, theirs: Experiment, now: datetime
) -> None:
    refused = program(team, now).post(f"/api/experiments/{theirs.key}/decision", {}, content_type="application/json")
    assert refused.status_code == 403
    (one,) = entries("refusal")
    assert (one.team_id, one.actor_kind) == (other.pk, "key")


def test_what_a_key_that_has_ended_still_tries_is_told_to_its_team(team: Team, now: datetime) -> None:
    gone = program(team, now)
    with as_role("owner"):
        key = ApiKey.objects.get()
        ApiKey.objects.update(revoked_at=now)
    assert gone.get("/api/experiments", REMOTE_ADDR="192.0.2.7").status_code == 401
    (one,) = entries("refusal")
    assert (one.team_id, one.actor_kind, one.actor_name, one.remote_addr) == (
        team.pk,
        "anonymous",
        str(key),
        "192.0.2.7",
    )


def test_a_stranger_is_noted_with_his_address_and_then_counted(settings: Any) -> None:
    settings.ADDRESS_RATE = "10000/s"
    for _ in range(25):
        assert Client().get("/api/experiments", REMOTE_ADDR="192.0.2.7").status_code == 401
    Client().get("/api/experiments", REMOTE_ADDR="2001:db8::1")

    found = entries("refusal")

    assert [(e.remote_addr, e.actor_name, (e.changes or {}).get("times")) for e in found] == [
        ("192.0.2.7", "nobody", None),
        ("192.0.2.7", "nobody", [None, 10]),
        ("2001:db8::", "nobody", None),
    ]


def test_strangers_from_many_addresses_do_not_fill_the_audit() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT audit.refusal('GET', '/api/experiments', 401, ('198.51.' || n / 250 || '.' || n %% 250)::inet, NULL, NULL) FROM generate_series(1, 2000) AS n",
            [],
        )
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("SELECT count(*), sum(times) FROM audit.noted")
        assert cursor.fetchone() == (301, 2000)
    assert len(entries("refusal")) == 300 + 4  # and the first, the tenth, the hundredth, the thousandth of the many


def test_signing_in_failing_to_and_signing_out_are_in_the_audit_of_each_of_the_persons_teams(
    ines: User, team: Team, other: Team
) -> None:
    browser = Client(REMOTE_ADDR="192.0.2.7")
    browser.post("/sign-in", {"username": "ines", "password": "guess"})
    browser.post("/sign-in", {"username": "INES", "password": "guess again"})
    browser.post("/sign-in", {"username": "ines", "password": PASSWORD})
    browser.post("/sign-out")

    for kind, actor in (("failedsignin", "nobody"), ("signin", "ines"), ("signout", "ines")):
        found = entries(kind)
        assert {e.team_id for e in found} == {team.pk, other.pk}, kind
        assert {(e.object_repr, e.actor_name, e.remote_addr) for e in found} == {("ines", actor, "192.0.2.7")}, kind
        assert len(found) == 2, kind


def test_what_is_typed_for_a_name_that_nobody_has_is_not_kept(ines: User) -> None:
    Client().post("/sign-in", {"username": "my password 7", "password": "x"})
    (one,) = entries("failedsignin")
    assert "password" not in f"{one.object_repr}{one.changes}{one.actor_name}"


def test_what_is_taken_along_is_in_the_audit(
    ines: User, team: Team, other: Team, theirs: Experiment, now: datetime
) -> None:
    browser = signed_in(ines)
    for _ in range(3):
        assert browser.get("/board.csv").status_code == 200
    assert browser.get(f"/experiments/{theirs.key}/rows.csv").status_code == 200
    csv = program(other, now).get(f"/api/experiments/{theirs.key}/kpis", headers={"Accept": "text/csv"})
    assert csv.status_code == 200

    told = {(e.object_repr, e.actor_name, e.team_id) for e in entries("export")}

    with as_role("owner"):
        key = str(ApiKey.objects.get())
    assert told == {
        ("/board.csv", "ines", team.pk),
        ("/board.csv", "ines", other.pk),
        (f"/experiments/{theirs.key}/rows.csv", "ines", other.pk),
        (f"/api/experiments/{theirs.key}/kpis", key, other.pk),
    }
    assert len(entries("export")) == 4, "once an hour"


def test_reading_evidence_is_in_the_experiments_audit(
    ines: User, other: Team, theirs: Experiment, now: datetime
) -> None:
    digest = _evidence(theirs, now)
    reader = program(other, now)
    assert signed_in(ines).get(f"/experiments/{theirs.key}/evidence/{digest}.json").status_code == 200
    assert reader.get(f"/api/experiments/{theirs.key}/evidence/{digest}").status_code == 200

    assert [(e.team_id, e.experiment_id) for e in entries("evidence")] == [(other.pk, theirs.pk)] * 2
    told = reader.get(f"/api/experiments/{theirs.key}/audit").json()["results"]
    assert {e["action"] for e in told if e["object"]["type"] == "access.evidence"} == {"access"}


def test_a_metrics_change_is_told_to_every_team_that_judges_by_it_and_shown_once(
    team: Team, other: Team, ines: User, theirs: Experiment, now: datetime
) -> None:
    with as_role("owner"):
        mine = Experiment.objects.create(
            key="checkout", name="Checkout", hypothesis="h", owner="o", team=team, status="running", created_at=now, started_at=now
        )  # fmt: skip
        mine.targetkpis.create(metric=Metric.objects.get(), role="goal", position=0, team=team)
        Team.objects.create(key="third", name="Third", created_at=now)
        Metric.objects.update(name="Renamed")
        boss = User.objects.create_superuser("boss")

    changed = [e for e in entries("metric") if e.action == Entry.Action.UPDATE]

    assert {e.team_id for e in changed} == {None, team.pk, other.pk}
    assert {(e.additional_data or {}).get("of") for e in changed} == {None, changed[0].pk}
    for person in (ines, boss):
        assert signed_in(person).get("/audit?what=metric").text.count("Renamed") == 1


def _evidence(experiment: Experiment, now: datetime) -> str:
    body = b"{}"
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    with as_role("owner"):
        Evidence.objects.create(
            experiment=experiment, team_id=experiment.team_id, digest=digest, body=zlib.compress(body), created_at=now
        )
    return digest


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, theirs: Experiment) -> None:
    """A tick in which the other team's experiment cannot be judged."""
    done = tick.TickReport()
    done.failed.append((theirs.key, "ValueError: a secret of theirs"))
    monkeypatch.setattr(tasks, "skip_unchanged", lambda **_: done)
    monkeypatch.setattr(tasks, "due", lambda **_: ([], False))


@pytest.mark.usefixtures("broken")
def test_what_the_portals_own_jobs_fail_at_is_told_to_the_team_it_concerns_and_to_no_other(
    team: Team, other: Team, now: datetime
) -> None:
    with as_role("worker"):
        tasks.tick()
    with as_role("owner"):
        runs = list(RefreshRun.objects.filter(status="failed").values_list("team_id", "error"))
    assert (other.pk, "ranking: ValueError: a secret of theirs") in runs
    assert [error for of, error in runs if of is None] == [
        "1 experiments could not be judged; the log of their teams says which and why"
    ]
    assert "secret of theirs" in program(other, now).get("/api/refresh-log").text
    assert "secret of theirs" not in program(team, now).get("/api/refresh-log").text
