"""Two teams and their programs, who come in through the whole middleware with keys, as they would over HTTP."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client

from decisioning.access.keys import create_key
from decisioning.access.models import Membership, Team
from decisioning.access.scopes import Scope
from tests.api import contract
from tests.conftest import as_role

PLAN = {"name": "One-page checkout", "hypothesis": "Fewer steps raise value per session", "target_kpis": ["vrps"]}


class Caller:
    """A program with a key. Answers have `.json()`; errors are checked to be problem documents."""

    def __init__(self, secret: str | None, team: Team) -> None:
        self.client = Client(raise_request_exception=False)
        self.secret = secret
        self.team = team

    def __call__(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        if self.secret is not None:
            headers.setdefault("Authorization", f"Bearer {self.secret}")
        kind = headers.pop("Content_Type", "application/json")
        response: Any = self.client.generic(
            method, path, data, content_type=kind, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        if response.status_code >= 400 and method != "HEAD":
            check_problem(response)
        contract.check(method, path, response)
        return response

    def get(self, path: str, **headers: str) -> Any:
        return self("GET", path, **headers)

    def post(self, path: str, body: object = None, **headers: str) -> Any:
        return self("POST", path, body, **headers)

    def patch(self, path: str, body: object = None, **headers: str) -> Any:
        return self("PATCH", path, body, **headers)

    def delete(self, path: str, **headers: str) -> Any:
        return self("DELETE", path, **headers)

    def experiment(self, **said: object) -> dict[str, Any]:
        """A new experiment's document."""
        response = self.post("/api/experiments", {**PLAN, **said})
        assert response.status_code == 201, response.content
        made: dict[str, Any] = response.json()
        return made


def check_problem(response: HttpResponse) -> None:
    assert response["Content-Type"] == "application/problem+json", response.content[:300]
    told = json.loads(response.content)
    assert {"type", "title", "status", "code", "detail", "errors"} <= told.keys()
    assert told["status"] == response.status_code
    assert all(error.keys() == {"pointer", "code", "detail"} for error in told["errors"])


def errors_of(response: Any) -> list[tuple[str, str]]:
    """(pointer, code) of each error of a refusal."""
    return [(error["pointer"], error["code"]) for error in response.json()["errors"]]


@pytest.fixture(autouse=True)
def _static_root(settings: Any) -> None:
    settings.STATIC_ROOT.mkdir(exist_ok=True)  # whitenoise warns when it is absent


Makes = Callable[..., Caller]


@pytest.fixture
def caller(db: None) -> Makes:
    """Makes programs: `caller("growth")` holds every scope in team growth, `caller("growth", Scope.READ)` only one."""

    def make(team: str, *scopes: Scope, owner: str = "", **options: Any) -> Caller:
        now = datetime.now(UTC)
        with as_role("owner"):
            of, _ = Team.objects.get_or_create(key=team, defaults={"name": team.title(), "created_at": now})
            person = User.objects.get_or_create(username=owner, email=owner)[0] if owner else None
            if person is not None:
                Membership.objects.get_or_create(team=of, user=person, defaults={"role": "admin"})
            _, secret = create_key(of, scopes=scopes or list(Scope), now=now, owner=person, **options)
        return Caller(secret, of)

    return make


@pytest.fixture
def ops(caller: Makes) -> Caller:
    return caller("growth", owner="ops@example.org")


@pytest.fixture
def stranger(caller: Makes) -> Caller:
    return caller("search", owner="eve@example.org")


@pytest.fixture
def nobody(ops: Caller) -> Caller:
    return Caller(None, ops.team)
