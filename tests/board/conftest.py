"""A team with an approver who is signed in, and a scene to fill the board with."""

import datetime as dt

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client

from decisioning.access.models import Team
from tests.board.scenes import Scene, person
from tests.conftest import as_role


@pytest.fixture
def moment() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@pytest.fixture
def growth(db: None, moment: dt.datetime) -> Team:
    with as_role("owner"):
        return Team.objects.create(key="growth", name="Growth", created_at=moment)


@pytest.fixture
def scene(growth: Team, moment: dt.datetime) -> Scene:
    return Scene(growth, moment)


@pytest.fixture
def ines(growth: Team) -> User:
    return person("ines", growth)


@pytest.fixture
def board(ines: User) -> Client:
    client = Client()
    client.force_login(ines)
    return client


@pytest.fixture(autouse=True, scope="session")
def _static_root() -> None:
    settings.STATIC_ROOT.mkdir(parents=True, exist_ok=True)
