"""What a program or a person may do. A key holds scopes; a person's role in a team is a set of the same scopes."""

from enum import StrEnum


class Scope(StrEnum):
    """The whole list; docs/api.md, Who asks."""

    READ = "experiments:read"
    WRITE = "experiments:write"
    TELEMETRY = "telemetry:write"
    LINEAGE = "lineage:write"
    REVIEW = "decisions:review"
    POLICIES = "policies:write"
    KEYS = "keys:manage"


ALL = frozenset(Scope)
# Agents propose, they never decide: such a key cannot even be stored with these (a CHECK in the database says so too).
NEVER_FOR_AGENTS = frozenset({Scope.REVIEW, Scope.POLICIES, Scope.KEYS})

ROLES: dict[str, frozenset[Scope]] = {
    "viewer": frozenset({Scope.READ}),
    "operator": frozenset({Scope.READ, Scope.WRITE, Scope.TELEMETRY, Scope.LINEAGE}),
    "approver": frozenset({Scope.READ, Scope.WRITE, Scope.TELEMETRY, Scope.LINEAGE, Scope.REVIEW, Scope.POLICIES}),
    "admin": ALL,
}
