"""How much of the installation one team may take: rows a day, open experiments, sources, webhooks.

An admin of the installation sets a team's own in the admin; what is empty there is the installation's (DECISIONING_QUOTA_...).
"""

from typing import Literal

from django.conf import settings

from decisioning.access.models import Team
from decisioning.refusals import Refused

Counted = Literal["rows_a_day", "experiments", "sources", "webhooks"]
_SAID = {"experiments": "open experiments", "sources": "sources", "webhooks": "webhooks"}
_INSTEAD = {
    "experiments": "End one that is over",
    "sources": "Delete one that is not needed",
    "webhooks": "Delete one",
}


class QuotaExceeded(Refused):
    """The team has what it may have."""

    usual_status = 409


def most(team: Team, what: Counted) -> int:
    """The most of it that the team may have."""
    own: int | None = getattr(team, f"most_{what}")
    return settings.QUOTAS[what] if own is None else own


def refuse_one_more(team: Team, what: Literal["experiments", "sources", "webhooks"], *, has: int) -> None:
    """Raises QuotaExceeded when a team that has so many may not have one more."""
    if has >= (limit := most(team, what)):
        code = "too_many_webhooks" if what == "webhooks" else "quota_exceeded"
        raise QuotaExceeded(
            code,
            f"{team.key} has {has:,} {_SAID[what]}, and may have {limit:,}. {_INSTEAD[what]}, or ask an admin of the installation for more.",
        )
