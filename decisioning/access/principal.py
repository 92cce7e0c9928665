"""Who asks. One value for people and programs, made once a request and told to PostgreSQL by the same call."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from django.db import connection

from decisioning.access.keys import digest_of
from decisioning.access.scopes import ALL, ROLES, Scope
from decisioning.logs import CAUSE


@dataclass(frozen=True)
class Principal:
    """`teams` maps team id to the scopes held there; of a key, those its owner's role holds as well.

    makers: name and rate of the keys that a key comes from, the nearest first. key_error: why a key that was sent is not good,
    and ended_in of which team it was.
    """

    kind: Literal["user", "key", "anonymous"]
    id: int | None = None
    name: str = ""
    teams: dict[int, frozenset[Scope]] = field(default_factory=dict)
    is_admin: bool = False
    agent: bool = False
    rate: str = ""
    owner: str = ""
    owner_id: int | None = None
    makers: tuple[tuple[str, str], ...] = ()
    key_error: str = ""
    ended_in: int | None = None

    # Django and DRF ask these of request.user.
    is_active = True
    is_anonymous = False
    is_staff = False
    pk = None

    @property
    def is_authenticated(self) -> bool:
        return self.kind != "anonymous"

    @property
    def person_id(self) -> int | None:
        """The person behind the request: the user, or the owner of the key."""
        return self.id if self.kind == "user" else self.owner_id

    @property
    def sees(self) -> tuple[bool, frozenset[int]]:
        """Equal for those who see the rows of the same teams."""
        return self.is_admin, frozenset(self.teams)

    def may(self, scope: Scope, team_id: int | None = None) -> bool:
        """Whether the scope is held in this team, or in any team when none is named."""
        if self.is_admin:
            return True
        if team_id is None:
            return any(scope in scopes for scopes in self.teams.values())
        return scope in self.teams.get(team_id, frozenset())


ANONYMOUS = Principal("anonymous")


def _call(sql: str, args: tuple[Any, ...]) -> tuple[object, ...]:
    if not connection.in_atomic_block:
        raise RuntimeError("Bind inside a transaction: settings made outside one last for a single statement.")
    with connection.cursor() as cursor:
        cursor.execute(sql, args)
        return cursor.fetchone() or ()


def bind_user(user_id: int | None, request_id: str) -> Principal:
    """Tell PostgreSQL that this person asks, until the transaction ends. No one, or an inactive user, sees nothing."""
    found, name, admin, teams = _call("SELECT * FROM access.bind_user(%s, %s)", (user_id, request_id))
    if found is None:
        return ANONYMOUS
    return Principal(
        "user",
        id=found,  # type: ignore[arg-type]
        name=str(name),
        owner=str(name),
        teams={
            int(team): ROLES[role] for team, role in json.loads(str(teams or "{}")).items()
        },  # raw SQL: jsonb is text
        is_admin=bool(admin),
    )


def bind_key(secret: str, request_id: str) -> Principal:
    """Tell PostgreSQL that this program asks. A key that is unknown or has ended binds nobody."""
    row = _call("SELECT * FROM access.bind_api_key(%s, %s)", (digest_of(secret), request_id))
    found, public_id, team, scopes, agent, rate, owner, owner_id, role, makers, problem = row
    if found is None:
        return Principal(
            "anonymous",
            name=f"dk_{public_id}" if public_id else "",
            key_error=str(problem),
            ended_in=team,  # type: ignore[arg-type]
        )
    return Principal(
        "key",
        id=found,  # type: ignore[arg-type]
        name=f"dk_{public_id}",
        teams={team: frozenset(map(Scope, scopes)) & (ROLES[str(role)] if role else ALL)},  # type: ignore[dict-item,call-overload]
        agent=bool(agent),
        rate=str(rate),
        owner=str(owner or f"dk_{public_id}"),
        owner_id=owner_id,  # type: ignore[arg-type]
        makers=tuple((name, rate) for name, rate in json.loads(str(makers or "[]"))),
    )


def rebind(known: Principal, request_id: str) -> Principal:
    """Tell another server what the primary has just said about who asks."""
    teams = list(known.teams)
    _call(
        "SELECT access.bind(%s, %s, %s, %s::bigint[], %s, %s)",
        (known.kind, known.id, known.name, teams, known.is_admin, request_id),
    )
    return known


def bind_job(name: str) -> None:
    """Tell the audit which job writes. The worker's own policies let it see every team."""
    _call("SELECT access.bind('job', NULL, %s, '{}', false, %s)", (name, CAUSE.get()))


def bind_portal(name: str) -> None:
    """The portal asks about itself: all teams are counted, and nothing is written."""
    _call("SELECT access.bind('job', NULL, %s, '{}', true, '')", (name,))
