"""Debian's chromium against a live server on the real database roles; skipped in one line where chromium is absent."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from playwright.sync_api import BrowserContext, ConsoleMessage, Page
from pytest_django import Settings
from pytest_django.live_server_helper import LiveServer

from decisioning.access.models import Team
from tests.board.scenes import Scene, person
from tests.browser.gallery import hang
from tests.conftest import as_role

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--no-first-run"]  # fmt: skip
os.environ.setdefault("DJANGO_ALLOW_ASYNC_UNSAFE", "1")  # playwright's sync API runs an event loop in the test's thread

# What chromium writes for an answer that says no; the page shows it, so it is no error of the page.
EXPECTED = ("the server responded with a status of 422", "the server responded with a status of 409")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.django_db(transaction=True))


@pytest.fixture(scope="session")
def browser_type_launch_args() -> dict[str, Any]:
    if not Path(CHROMIUM).exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"There is no chromium at {CHROMIUM}.", pytrace=False)
        pytest.skip(f"no chromium at {CHROMIUM}: browser tests are left out")
    return {"executable_path": CHROMIUM, "args": ARGS, "headless": True}


@pytest.fixture(scope="session")
def base_url() -> str:
    """Addresses are given whole; the plugin's own fixture is one that pytest warns of."""
    return ""


@pytest.fixture
def growth(transactional_db: None, now: Any) -> Team:
    with as_role("owner"):
        return Team.objects.create(key="growth", name="Growth", created_at=now)


@pytest.fixture
def now() -> Any:
    import datetime as dt

    return dt.datetime.now(dt.UTC)


@pytest.fixture
def scene(growth: Team, now: Any) -> Scene:
    return Scene(growth, now)


@pytest.fixture
def ines(growth: Team) -> User:
    return person("ines", growth)


@pytest.fixture
def served(live_server: LiveServer, settings: Settings) -> Iterator[str]:
    """The portal over plain HTTP on the loopback address."""
    settings.SESSION_COOKIE_SECURE = settings.CSRF_COOKIE_SECURE = False
    settings.SESSION_COOKIE_NAME, settings.CSRF_COOKIE_NAME = "session", "csrf"
    settings.SECURE_HSTS_SECONDS = 0
    settings.ALLOWED_HOSTS = ["*"]
    settings.STATIC_ROOT.mkdir(parents=True, exist_ok=True)
    yield live_server.url
    connection.close()


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def watched(context: BrowserContext, complaints: list[str]) -> BrowserContext:
    """The browser context; every console error and CSP report of its pages lands in `complaints`."""

    def listen(page: Page) -> None:
        def heard(message: ConsoleMessage) -> None:
            told = message.type == "error" or "Content Security Policy" in message.text
            if told and not any(text in message.text for text in EXPECTED):
                complaints.append(f"{page.url}: {message.text}")

        page.on("console", heard)
        page.on("pageerror", lambda error: complaints.append(f"{page.url}: {error}"))

    context.on("page", listen)
    return context


@pytest.fixture
def signed_in(watched: BrowserContext, served: str, ines: User) -> Page:
    """A page on which Ines has signed in through the form."""
    page = watched.new_page()
    sign_in(page, served, "ines")
    return page


def sign_in(page: Page, served: str, name: str) -> None:
    page.goto(f"{served}/sign-in")
    page.get_by_label("User name").fill(name)
    page.get_by_label("Password").fill("open sesame 7")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{served}/")


@pytest.fixture
def sign(served: str) -> Callable[[Page, str], None]:
    return lambda page, name: sign_in(page, served, name)


@pytest.fixture
def gallery(scene: Scene) -> Scene:
    hang(scene)
    return scene
