"""Making and reading keys: `dk_<8 character id>_<256-bit secret>`, kept as id and SHA-256 of the whole key."""

import hashlib
import math
import re
import secrets
import string
from collections.abc import Iterable
from datetime import datetime

from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection
from django.db.models import QuerySet

from decisioning.access.models import ApiKey, Team
from decisioning.access.scopes import ALL, NEVER_FOR_AGENTS, ROLES, Scope
from decisioning.refusals import Fault, Refused

_ALPHABET = string.ascii_lowercase + string.digits
_RATE = r"[1-9][0-9]{0,6}/[1-9]?[0-9]{0,3}[smhd]"
GENERATIONS = 4
"""Keys made by keys made by keys: each is looked at and counted with every request of the last one."""
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class KeyRefused(Refused):
    """Such a key is not made; the errors say what of the request is refused."""


def digest_of(secret: str) -> bytes:
    """SHA-256 of the whole key as sent. The secret has 256 bits of entropy, so a slow password hash would add nothing."""
    return hashlib.sha256(secret.encode()).digest()


def create_key(
    team: Team,
    *,
    scopes: Iterable[str],
    now: datetime,
    agent: bool = False,
    rate: str = "",
    expires_at: datetime | None = None,
    owner: User | None = None,
    maker: ApiKey | None = None,
) -> tuple[ApiKey, str]:
    """A new key and its secret, which exists nowhere else.

    owner: whose it is; it holds what his role holds at any time, and ends with his membership.   maker: the key that asks for it. It
    lasts no longer than that, which is what it does when nothing is said, is no faster, no wider, and ends with it.

    Raises KeyRefused: `invalid_scope`, `scope_not_held`, `agent_scope`, `invalid_rate`, `faster_than_maker`, `outlives_maker`,
    `wider_than_maker`, `owner_not_in_team`, `maker_ended`, `too_many_makers`.
    """
    wanted = list(dict.fromkeys(scopes))
    unknown = [s for s in wanted if s not in set(Scope)]
    if unknown or not wanted:
        said = f"There is no scope {', '.join(unknown)}" if unknown else "A key needs a scope"
        raise KeyRefused.of(Fault("/scopes", "invalid_scope", f"{said}; choose from {', '.join(Scope)}."))
    forbidden = [s for s in wanted if agent and s in NEVER_FOR_AGENTS]
    if forbidden:
        detail = f"An agent's key never holds {', '.join(forbidden)}: agents propose, people decide."
        raise KeyRefused.of(Fault("/scopes", "agent_scope", detail))
    held = _held(team, owner) & (frozenset(map(Scope, maker.scopes)) if maker else ALL)
    for position, scope in enumerate(wanted):
        if scope not in held:
            detail = f"You do not hold {scope} in {team.key} yourself, so you cannot hand it on."
            raise KeyRefused.of(Fault(f"/scopes/{position}", "scope_not_held", detail))
    if rate:
        try:
            rate_of(rate)
        except ValueError as error:
            detail = f"{str(error)[0].upper()}{str(error)[1:]}."
            raise KeyRefused.of(Fault("/rate", "invalid_rate", detail)) from error
    if maker is not None:
        rate, expires_at = _within(maker, team, rate=rate, expires_at=expires_at)
    public_id = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    secret = f"dk_{public_id}_{secrets.token_urlsafe(32)}"
    key = ApiKey.objects.create(
        public_id=public_id,
        digest=digest_of(secret),
        team=team,
        owner=owner,
        made_by=maker,
        scopes=wanted,
        agent=agent,
        rate=rate,
        expires_at=expires_at,
        created_at=now,
    )
    return key, secret


def revoke(keys: QuerySet[ApiKey], *, now: datetime) -> int:
    """They are nobody from the next request on, and stay in the list; the number of those that were not yet."""
    return keys.filter(revoked_at__isnull=True).update(revoked_at=now)


def is_faster(rate: str, than: str) -> bool:
    """Whether a key of this rate could ask more often than the other one allows, in any of its windows.

    >>> is_faster("40/m", "40/m"), is_faster("1/s", "40/m"), is_faster("600/h", "40/m"), is_faster("40/h", "40/m")
    (False, True, True, False)
    """
    (limit, window_s), (most, within_s) = rate_of(rate), rate_of(than)
    return limit * math.ceil(within_s / window_s) > most


def _held(team: Team, owner: User | None) -> frozenset[Scope]:
    """What a person's keys may hold in the team; of one that is nobody's, anything."""
    if owner is None:
        return ALL
    with connection.cursor() as cursor:
        cursor.execute("SELECT access.standing(%s, %s)", [owner.pk, team.pk])
        (role,) = cursor.fetchone() or (None,)
    if role is None:
        detail = f"{owner} is not active in {team.key}. Add the person to the team first."
        raise KeyRefused.of(Fault("/owner", "owner_not_in_team", detail))
    return ROLES[role]


def _within(maker: ApiKey, team: Team, *, rate: str, expires_at: datetime | None) -> tuple[str, datetime | None]:
    """Rate and end of a key that another one asks for. That one is locked, so that it cannot end meanwhile and leave this one behind."""
    held = ApiKey.objects.select_for_update(of=("self",), no_key=True).get(pk=maker.pk)
    if held.revoked_at is not None:
        raise KeyRefused.of(Fault("", "maker_ended", f"{held} was revoked. Ask with another key."))
    if team.pk != held.team_id:
        raise KeyRefused.of(Fault("/team", "wider_than_maker", f"{held} belongs to another team than {team.key}."))
    generation, at = 1, held
    while at.made_by is not None:
        generation, at = generation + 1, at.made_by
    if generation > GENERATIONS:
        detail = f"{held} comes from a key that comes from a key, {GENERATIONS} times. Ask with one of those."
        raise KeyRefused.of(Fault("", "too_many_makers", detail))
    if held.expires_at is not None and expires_at is not None and expires_at > held.expires_at:
        detail = f"{held} itself ends at {held.expires_at:%Y-%m-%d %H:%M:%SZ}. Choose an earlier end, or none: then it ends with it."
        raise KeyRefused.of(Fault("/expires_at", "outlives_maker", detail))
    most = held.rate or settings.KEY_RATE
    if rate and is_faster(rate, most):
        detail = f"{held} itself may ask {most}. Choose a slower rate, or none: then it is the same."
        raise KeyRefused.of(Fault("/rate", "faster_than_maker", detail))
    return rate or held.rate, expires_at or held.expires_at


def rate_of(rate: str) -> tuple[int, int]:
    """(requests, seconds). Raises ValueError.

    >>> rate_of("40/m"), rate_of("5/10s"), rate_of("1/d")
    ((40, 60), (5, 10), (1, 86400))
    """
    if not re.fullmatch(_RATE, rate):
        raise ValueError(f'rate is {rate!r}, must be requests per window, such as "40/m"')
    limit, _, window = rate.partition("/")
    return int(limit), int(window[:-1] or 1) * _SECONDS[window[-1]]
