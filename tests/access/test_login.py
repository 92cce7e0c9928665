"""Signing in: who guesses passwords has to wait, who has the right one gets a new session and goes where he wanted."""

import datetime as dt
import re
import secrets
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from decisioning.access import login
from decisioning.access.models import LoginAttempts

pytestmark = pytest.mark.django_db(transaction=True)
PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def person(transactional_db: None, settings: Any, monkeypatch: pytest.MonkeyPatch) -> User:
    monkeypatch.setattr(login, "OF_ADDRESS", "100000/15m")  # one address is all tests'
    monkeypatch.setattr(login, "OF_NETWORK", "100000/15m")
    return User.objects.create_user("ada", password=PASSWORD, is_staff=True)


def sign_in(client: Client, password: str = "wrong", *, at: str = "/sign-in", name: str = "ada", **extra: Any) -> Any:  # noqa: S107 - the wrong one
    return client.post(at, {"username": name, "password": password, "next": extra.pop("next", "")}, **extra)


@pytest.mark.parametrize("at", ["/sign-in", "/admin/login/"])
def test_of_30_wrong_passwords_the_11th_and_later_are_refused_unread_also_without_redis(at: str, settings: Any) -> None:
    settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:9/0"}}
    client = Client()
    answers = [sign_in(client, at=at) for _ in range(30)]
    assert [answer.status_code for answer in answers] == [200] * 10 + [429] * 20
    text = answers[10].content.decode()
    assert re.search(r"Too many wrong passwords .* after \d\d:\d\d UTC", text)
    assert 0 < int(answers[10]["Retry-After"]) <= 900
    assert sign_in(client, PASSWORD, at=at).status_code == 429, "locked means locked, also for the right password"
    assert "_auth_user_id" not in client.session


def test_the_lock_is_for_that_name_from_that_address(person: User) -> None:
    User.objects.create_user("bob", password=PASSWORD)
    for _ in range(11):
        sign_in(Client())
    assert sign_in(Client(), PASSWORD, name="ADA").status_code == 429
    assert sign_in(Client(), PASSWORD, name="bob").status_code == 302
    assert sign_in(Client(), PASSWORD, REMOTE_ADDR="192.0.2.7").status_code == 302
    assert sign_in(Client(), PASSWORD, HTTP_X_FORWARDED_FOR="192.0.2.8").status_code == 429, "nobody lies about it"


def test_the_right_password_forgets_the_wrong_ones_before() -> None:
    for _ in range(9):
        sign_in(Client())
    assert sign_in(Client(), PASSWORD).status_code == 302
    assert not LoginAttempts.objects.exists()
    assert [sign_in(Client()).status_code for _ in range(11)][-2:] == [200, 429]


def test_the_lock_ends_after_its_time_however_often_somebody_knocks() -> None:
    start = dt.datetime(2026, 11, 24, 9, tzinfo=dt.UTC)
    minutes = [dt.timedelta(minutes=m) for m in range(15)]
    assert [login._reserve("ada", "192.0.2.1", now=start) for _ in range(10)] == [None] * 10
    assert {login._reserve("ada", "192.0.2.1", now=start + m) for m in minutes} == {start + login.LOCK}
    assert login._reserve("ada", "192.0.2.1", now=start + login.LOCK + dt.timedelta(seconds=1)) is None


def test_signing_in_gives_a_new_session_and_signing_out_ends_it() -> None:
    client = Client()
    client.get("/sign-in")
    session = client.session
    session["planted"] = "x"
    session.save()
    client.cookies["decisioning_session"] = client.cookies[next(iter(client.cookies))] = session.session_key  # type: ignore[assignment]
    before = session.session_key
    assert sign_in(client, PASSWORD).status_code == 302
    after = client.session.session_key
    assert after
    assert after != before
    stolen = Client()
    stolen.cookies = client.cookies.copy()  # type: ignore[assignment]
    client.post("/sign-out")
    assert stolen.get("/profile").status_code == 302, "the session ended on the server, not only in one browser"


@pytest.mark.parametrize(
    ("wanted", "goes"),
    [
        ("/policies", "/policies"),
        ("https://evil.example/", "/"),
        ("//evil.example/", "/"),
        ("javascript:alert(1)", "/"),
        ("/\\evil.example", "/"),
    ],
)
def test_next_leads_nowhere_else(wanted: str, goes: str) -> None:
    assert sign_in(Client(), PASSWORD, next=wanted)["Location"] == goes


def test_a_changed_password_ends_the_other_sessions(person: User) -> None:
    here, there = Client(), Client()
    for client in (here, there):
        sign_in(client, PASSWORD)
    changed = here.post(
        "/password", {"old_password": PASSWORD, "new_password1": "staple-9-pony", "new_password2": "staple-9-pony"}
    )
    assert changed.status_code == 302
    assert here.get("/profile").status_code == 200
    assert there.get("/profile").status_code == 302
    assert sign_in(Client(), PASSWORD).status_code == 200
    assert sign_in(Client(), "staple-9-pony").status_code == 302


def test_a_new_password_unlocks_at_once_as_the_lock_says(person: User) -> None:
    User.objects.create_user("bob", password=PASSWORD)
    for name in ("ada", "bob"):
        said = [sign_in(Client(), name=name) for _ in range(11)][-1]
    assert "ask an admin to set a new password: that unlocks it at once" in said.content.decode()

    person.set_password("staple-9-pony")
    person.save()

    assert sign_in(Client(), "staple-9-pony").status_code == 302
    assert sign_in(Client(), PASSWORD, name="bob").status_code == 429


@pytest.mark.parametrize("redis", ["there", "away"])
@pytest.mark.parametrize("several", ["address", "network"])
def test_who_sprays_names_has_to_wait_also_with_the_right_password(
    person: User, settings: Any, monkeypatch: pytest.MonkeyPatch, redis: str, several: str
) -> None:
    """Each name is tried less often than its own lock allows."""
    if redis == "away":
        settings.CACHES = {"default": {**settings.CACHES["default"], "LOCATION": "redis://127.0.0.1:9/0"}}
    monkeypatch.setattr(login, f"OF_{several.upper()}", "8/15m")
    net = f"2001:db8:{secrets.randbelow(60_000):x}"
    addresses = [f"{net}:{n if several == 'network' else 1:x}::7" for n in range(1, 10)]
    tried = [sign_in(Client(), name=f"name-{n}", REMOTE_ADDR=addresses[n]) for n in range(9)]
    assert [answer.status_code for answer in tried] == [200] * 8 + [429]
    assert int(tried[-1]["Retry-After"]) > 0
    assert sign_in(Client(), PASSWORD, REMOTE_ADDR=addresses[0]).status_code == 429
    assert sign_in(Client(), PASSWORD, REMOTE_ADDR="2001:db8:ffff:1::7").status_code == 302, "others go in meanwhile"


def test_the_right_passwords_of_a_whole_office_are_no_spray(person: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "OF_ADDRESS", "3/15m")
    office = f"2001:db8:{secrets.randbelow(60_000):x}:1::7"
    assert {sign_in(Client(), PASSWORD, REMOTE_ADDR=office).status_code for _ in range(10)} == {302}
