"""Making and reading keys: `dk_<8 character id>_<256-bit secret>`, kept as id and SHA-256 of the whole key."""

import hashlib
import re
import secrets
import string
from collections.abc import Iterable
from datetime import datetime

from django.contrib.auth.models import User

from decisioning.access.models import ApiKey, Team
from decisioning.access.scopes import NEVER_FOR_AGENTS, Scope

_ALPHABET = string.ascii_lowercase + string.digits
_RATE = r"[1-9][0-9]{0,6}/[1-9]?[0-9]{0,3}[smhd]"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class KeyRefused(Exception):
    """`code` for programs, the message for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


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
) -> tuple[ApiKey, str]:
    """A new key and its secret, which exists nowhere else. Raises KeyRefused for unknown scopes or ones an agent may not hold."""
    wanted = list(dict.fromkeys(scopes))
    unknown = [s for s in wanted if s not in set(Scope)]
    if unknown or not wanted:
        said = f"There is no scope {', '.join(unknown)}" if unknown else "A key needs a scope"
        raise KeyRefused("invalid_scope", f"{said}; choose from {', '.join(Scope)}.")
    forbidden = [s for s in wanted if agent and s in NEVER_FOR_AGENTS]
    if forbidden:
        raise KeyRefused(
            "agent_scope", f"An agent's key never holds {', '.join(forbidden)}: agents propose, people decide."
        )
    if rate:
        try:
            rate_of(rate)
        except ValueError as error:
            raise KeyRefused("invalid_rate", f"{str(error)[0].upper()}{str(error)[1:]}.") from error
    public_id = "".join(secrets.choice(_ALPHABET) for _ in range(8))
    secret = f"dk_{public_id}_{secrets.token_urlsafe(32)}"
    key = ApiKey.objects.create(
        public_id=public_id,
        digest=digest_of(secret),
        team=team,
        owner=owner,
        scopes=wanted,
        agent=agent,
        rate=rate,
        expires_at=expires_at,
        created_at=now,
    )
    return key, secret


def rate_of(rate: str) -> tuple[int, int]:
    """(requests, seconds). Raises ValueError.

    >>> rate_of("40/m"), rate_of("5/10s"), rate_of("1/d")
    ((40, 60), (5, 10), (1, 86400))
    """
    if not re.fullmatch(_RATE, rate):
        raise ValueError(f'rate is {rate!r}, must be requests per window, such as "40/m"')
    limit, _, window = rate.partition("/")
    return int(limit), int(window[:-1] or 1) * _SECONDS[window[-1]]
