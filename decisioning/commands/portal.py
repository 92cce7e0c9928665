"""How a command that works over HTTP finds the portal, and the key it asks with."""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.contrib.auth.models import User
from django.core.management.base import CommandError
from django.db import DatabaseError, transaction

from decisioning.access.keys import create_key, revoke
from decisioning.access.models import ApiKey, Team, valid_key
from decisioning.access.principal import bind_job
from decisioning.access.scopes import Scope
from decisioning.agents.client import Portal

logging.getLogger("httpx").setLevel(logging.WARNING)  # one line a request would bury what a command says
_WORKING = (Scope.READ, Scope.WRITE, Scope.TELEMETRY, Scope.POLICIES)


class NoSuchTeam(Exception):
    """There is no team with this key."""


@contextmanager
def own_portal(*, patience_s: float = 30.0) -> Iterator[Portal]:
    """The portal that DECISIONING_URL and DECISIONING_API_KEY name, else the running installation's own."""
    kept = _credentials()
    key = os.environ.get("DECISIONING_API_KEY") or kept.get("api_key")
    if not key:
        raise CommandError(
            f"There is no key: {settings.HOME / 'credentials.json'} is absent. Set DECISIONING_API_KEY "
            "(manage.py create_key makes one)."
        )
    with Portal(_url(kept), key, patience_s=patience_s) as found:
        yield found


@contextmanager
def portal_as(
    team: str,
    *,
    name: str = "",
    scopes: Sequence[Scope] = _WORKING,
    rate: str = "",
    hours: float = 24.0,
    patience_s: float = 30.0,
    make: bool = True,
) -> Iterator[Portal]:
    """The portal, asked with a key of this team that lives as long as the block.

    make: make the team when absent; else raise NoSuchTeam.
    """
    valid_key(team)
    with transaction.atomic():
        bind_job("borrow_key")
        now = datetime.now(UTC)
        if not make and not Team.objects.filter(key=team).exists():
            raise NoSuchTeam(team)
        owner, _ = Team.objects.get_or_create(
            key=team, defaults={"name": name or team.replace("-", " ").title(), "created_at": now}
        )
        key, secret = create_key(
            owner,
            scopes=scopes,
            rate=rate,
            owner=User.objects.filter(is_superuser=True, is_active=True).order_by("pk").first(),
            now=now,
            expires_at=now + timedelta(hours=hours),
        )
    try:
        with Portal(_url(_credentials()), secret, patience_s=patience_s) as found:
            yield found
    finally:
        with suppress(DatabaseError), transaction.atomic():  # else it expires by itself
            bind_job("borrow_key")
            revoke(ApiKey.objects.filter(pk=key.pk), now=datetime.now(UTC))


def _url(kept: dict[str, str]) -> str:
    return os.environ.get("DECISIONING_URL") or kept.get("url") or str(settings.PUBLIC_URL)


def _credentials() -> dict[str, str]:
    try:
        kept: dict[str, str] = json.loads((settings.HOME / "credentials.json").read_text())
    except FileNotFoundError:
        return {}
    return kept
