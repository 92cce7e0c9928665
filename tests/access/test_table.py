"""The permission table holds: every address the router knows, every method, two teams, each role."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.test import Client, RequestFactory
from django.urls import URLPattern, URLResolver, get_resolver

from decisioning.access.keys import create_key
from decisioning.access.models import Membership, Team
from decisioning.access.scopes import ROLES, Scope
from tests.access.logins import psql
from tests.access.scene import FOREIGN, OWN, lay_out
from tests.access.table import ADMIN, API, BOARD, REST, SHARED, Need, Row
from tests.conftest import as_role

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
ARGUMENTS = {
    "digest": "sha256:x{}",
    "number": "{}",
    "pk": "{}",
    "delivery": "{}",
    "status": "paused",
    "type_": "x",
    "url": "x",
}


def routes(resolver: URLResolver, prefix: str = "") -> Iterator[tuple[str, URLPattern]]:
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLResolver):
            yield from routes(pattern, prefix + str(pattern.pattern))
        else:
            yield prefix + str(pattern.pattern), pattern


ROUTES = dict(routes(get_resolver()))


def test_every_address_has_a_row_and_every_row_an_address() -> None:
    known: set[str] = set()
    for route in ROUTES:
        if route.startswith("api/"):
            known.add(route.removeprefix("api/v1/") if route.startswith("api/v1/") else route.removeprefix("api/"))
        elif not route.startswith("admin/"):
            known.add(route)
    assert known - set(API) - set(BOARD) - set(REST) == set(), "an address without a row in tests/access/table.py"
    for prefix in ("api/", "api/v1/"):
        assert {route.removeprefix(prefix) for route in ROUTES if route.startswith(prefix)} >= set(API)
    assert set(BOARD) <= set(ROUTES)


def test_the_views_ask_for_the_scopes_of_the_table() -> None:
    for route, pattern in ROUTES.items():
        if route.startswith("api/") and not route.startswith("api/v1/"):
            row = API[route.removeprefix("api/")]
            asked = dict(getattr(getattr(pattern.callback, "cls", None), "scopes", {}))
            if any(need not in Need for need in row.values()):
                assert asked == row, route


def test_the_admin_shows_facts_and_changes_what_people_may_change() -> None:
    request = RequestFactory().get("/admin/")
    request.user = User(is_superuser=True, is_staff=True, is_active=True)
    found = {
        model._meta.label_lower: frozenset(
            may for may in ("view", "add", "change", "delete") if getattr(shown, f"has_{may}_permission")(request)
        )
        for model, shown in admin.site._registry.items()
    }
    assert found == dict(ADMIN)


@pytest.fixture
def doors(transactional_db: None, settings: Any) -> dict[str, tuple[Client, Client]]:
    """For each role in team OWN: a browser that is signed in and a program with a key of the same scopes."""
    settings.KEY_RATE = settings.ADDRESS_RATE = "100000/h"
    with psql("superuser") as db:
        lay_out(db)
    made = {}
    with as_role("owner"):
        team = Team.objects.get(pk=OWN)
        for role, scopes in ROLES.items():
            person = User.objects.create(username=role)
            Membership.objects.create(pk=70_000 + person.pk, team=team, user=person, role=role)
            _, secret = create_key(team, scopes=scopes, owner=person, now=team.created_at)
            browser = Client(raise_request_exception=False)
            browser.force_login(person)
            made[role] = (
                browser,
                Client(headers={"Authorization": f"Bearer {secret}"}, raise_request_exception=False),
            )
    return made


def address(route: str, team: int) -> str:
    """With the object of that team wherever one is named."""

    def argument(found: re.Match[str]) -> str:
        return ARGUMENTS.get(found[1], "x{}").format(team)

    return "/" + re.sub(r"<\w+:(\w+)>", argument, route)


def call(client: Client, method: str, route: str, team: int) -> int:
    if method in ("POST", "PATCH", "PUT") and route.startswith("api/"):
        return client.generic(method, address(route, team), "{}", content_type="application/json").status_code
    return client.generic(method, address(route, team)).status_code


def wrong_answers(client: Client, held: frozenset[Scope], route: str, name: str, row: Row) -> Iterator[str]:
    """Every way in which this role's answers differ from the table's word."""
    for method, need in row.items():
        may = need in held or need in (Need.NOTHING, Need.SESSION, Need.KEY_OR_SESSION)
        own = call(client, method, route, OWN)
        if may and own in (401, 403):
            yield f"{method} {route}: {own}, though {need} is held"
        if not may and own not in (403, 404):
            yield f"{method} {route}: {own} without {need}"
        if "<" in name and name not in SHARED and need is not Need.NOTHING:
            foreign = call(client, method, route, FOREIGN)
            if foreign != 404 and (may or foreign != 403):
                yield f"{method} {route}: {foreign} for another team's object"


def test_the_table_holds_for_each_role_of_two_teams(doors: dict[str, tuple[Client, Client]]) -> None:
    wrong = []
    for role, (browser, program) in doors.items():
        for client, prefix, table in ((program, "api/", API), (browser, "", BOARD)):
            for name, row in table.items():
                if not name.startswith("sign-"):
                    wrong += [f"{role}: {w}" for w in wrong_answers(client, ROLES[role], prefix + name, name, row)]
    assert wrong == [], "\n".join(wrong)


def test_a_method_without_a_row_is_not_answered(doors: dict[str, tuple[Client, Client]]) -> None:
    browser, program = doors["admin"]
    answered = [
        f"{method} {prefix}{name}"
        for client, prefix, table in ((program, "api/", API), (browser, "", BOARD))
        for name, row in table.items()
        for method in METHODS
        if method not in row
        and not name.startswith("sign-")
        and call(client, method, prefix + name, OWN) not in (403, 404, 405)
    ]
    assert answered == []


def test_nobody_gets_in_anywhere_but_where_the_table_says(doors: dict[str, tuple[Client, Client]]) -> None:
    nobody = Client(raise_request_exception=False)
    wrong = []
    for prefix, table, refused in (("api/", API, (401,)), ("api/v1/", API, (401,)), ("", BOARD, (302,))):
        for name, row in table.items():
            for method, need in row.items():
                status = call(nobody, method, prefix + name, OWN)
                if need is not Need.NOTHING and status not in refused:
                    wrong.append(f"{method} {prefix}{name}: {status}")
    assert wrong == [], "\n".join(wrong)


def test_people_who_are_not_staff_see_nothing_of_the_admin(doors: dict[str, tuple[Client, Client]]) -> None:
    for model in ADMIN:
        for client in (*doors["admin"], Client()):  # admin of a team, by session and by key, and nobody
            answer = client.get(f"/admin/{model.replace('.', '/')}/")
            assert (answer.status_code, answer["Location"].split("?")[0]) == (302, "/admin/login/")


def test_staff_with_every_django_right_sees_its_own_team_alone(doors: dict[str, tuple[Client, Client]]) -> None:
    from django.contrib.auth.models import Permission

    person = User.objects.get(username="viewer")
    person.is_staff = True
    person.save()
    person.user_permissions.set(Permission.objects.all())
    browser, _ = doors["viewer"]
    own = browser.get("/admin/experiments/experiment/").content.decode()
    assert f"x{OWN}" in own
    assert f"x{FOREIGN}" not in own
    assert (
        browser.get(f"/admin/experiments/experiment/{FOREIGN}/change/").status_code == 302
    )  # Django: not found, to the index
    assert f"x{FOREIGN}" not in browser.get("/admin/access/team/").content.decode()
    assert f"x{FOREIGN}" not in browser.get("/admin/ledger/entry/").content.decode()


def test_something_new_cannot_be_made_in_another_team(doors: dict[str, tuple[Client, Client]]) -> None:
    _, program = doors["admin"]
    bodies: dict[str, dict[str, Any]] = {
        "experiments": {"name": "n", "hypothesis": "h", "target_kpis": ["vrps"]},
        "keys": {"scopes": ["experiments:read"]},
        "policies": {"name": "mine", "body": {"gates": []}},
    }
    for name, body in bodies.items():
        answer = program.post(f"/api/{name}", {**body, "team": f"x{FOREIGN}"}, content_type="application/json")
        assert answer.status_code in (403, 404, 422), name
    with as_role("owner"):
        from experiments.models import Experiment

        assert Experiment.objects.filter(team_id=FOREIGN).count() == 1
