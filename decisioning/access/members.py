"""Who is in a team: invited by a link that works once, given another role, removed with or without the keys they made.

A team keeps one admin at least. Nobody here checks who asks: that is the door's.
"""

import datetime as dt
import logging
import secrets
import smtplib
from dataclasses import replace

from django.conf import settings
from django.contrib.auth.models import User
from django.core import signing
from django.core.mail import EmailMessage
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from decisioning.access.keys import digest_of
from decisioning.access.middleware import id_of
from decisioning.access.models import ApiKey, Invitation, Membership, Team
from decisioning.access.principal import Principal, rebind
from decisioning.refusals import Refused

_log = logging.getLogger(__name__)

LASTS = dt.timedelta(days=7)
_SALT = "invitation"


class MemberRefused(Refused):
    """Nobody came, went or changed."""

    usual_status = 409


def invite(team: Team, *, role: str, email: str, by: Principal, now: dt.datetime) -> tuple[Invitation, str]:
    """A new invitation and its token, which exists nowhere else."""
    token = signing.dumps([team.pk, secrets.token_urlsafe(32)], salt=_SALT)
    made = Invitation.objects.create(
        team=team, role=role, email=email, digest=digest_of(token), created_at=now, created_by=by.owner, expires_at=now + LASTS
    )  # fmt: skip
    return made, token


def mail(invited: Invitation, url: str) -> bool:
    """Whether the link went out by mail; an installation without a mail server sends none."""
    team = " ".join(invited.team.name.split())
    text = (
        f"{invited.created_by} invites you to {team} in Decisioning, as {invited.role}.\n\n{url}\n\n"
        f"The link works once, until {invited.expires_at:%Y-%m-%d %H:%M} UTC."
    )
    mail = EmailMessage(f"[Decisioning] Come into {team}", text, to=[invited.email])
    try:
        return settings.EMAIL_ON and bool(mail.send())
    except (OSError, smtplib.SMTPException):
        _log.exception("An invitation was not sent")
        return False


def invitation(request: HttpRequest, token: str, *, now: dt.datetime) -> Invitation | None:
    """The invitation of a token that is still good. From here on the transaction sees its team: who is invited is not in it yet."""
    try:
        team, _ = signing.loads(token, salt=_SALT)
    except signing.BadSignature:
        return None
    asking: Principal = request.principal  # type: ignore[attr-defined]
    rebind(replace(asking, teams={**asking.teams, team: frozenset()}), id_of(request))
    waiting = Invitation.objects.select_related("team").filter(used_at__isnull=True, expires_at__gt=now)
    return waiting.filter(digest=digest_of(token)).first()


def join(request: HttpRequest, invited: Invitation, user: User, *, now: dt.datetime) -> Membership:
    """Take this person in, one who is new as well. Raises MemberRefused: `used` when somebody was quicker, `member_already`."""
    if user.pk is None:
        user.email = invited.email
        user.save()
    asking = Principal("user", id=user.pk, name=user.get_username(), teams={invited.team_id: frozenset()})
    rebind(asking, id_of(request))
    with transaction.atomic():
        if not Invitation.objects.filter(pk=invited.pk, used_at__isnull=True).update(
            used_at=now, used_by=user.get_username()
        ):
            raise MemberRefused("used", "This invitation has been used already. Ask for another one.")
        member, made = Membership.objects.get_or_create(
            team_id=invited.team_id, user=user, defaults={"role": invited.role}
        )
        if not made:
            raise MemberRefused("member_already", f"You are in {invited.team.name} already, as {member.role}.")
    return member


def change_role(member: Membership, role: str) -> None:
    """Raises MemberRefused `last_admin`."""
    if role != Membership.Role.ADMIN:
        _check_another_admin(member)
    member.role = role
    member.save(update_fields=["role"])


def remove(member: Membership, *, now: dt.datetime) -> int:
    """Out of the team from the next request on; the number of keys that end with it. Raises MemberRefused `last_admin`."""
    _check_another_admin(member)
    ended = keys_of(member, now=now).count()
    member.delete()  # the database ends them, whoever deletes
    return ended


def withdraw(invitation: Invitation) -> None:
    """Its link leads nowhere from now on."""
    invitation.delete()


def keys_of(member: Membership, *, now: dt.datetime) -> QuerySet[ApiKey]:
    """The keys of this person that work and end with the place in the team; an admin of the installation needs none."""
    working = Q(expires_at__isnull=True) | Q(expires_at__gt=now)
    return ApiKey.objects.filter(
        working, team=member.team_id, owner=member.user_id, owner__is_superuser=False, revoked_at__isnull=True
    ).order_by("pk")


def _check_another_admin(member: Membership) -> None:
    Team.objects.select_for_update().get(pk=member.team_id)  # of two who leave at once, one sees the other gone
    admins = Membership.objects.filter(team=member.team_id, role=Membership.Role.ADMIN)
    if member.role == Membership.Role.ADMIN and not admins.exclude(pk=member.pk).exists():
        raise MemberRefused("last_admin", "The team would have no admin left. Make somebody else an admin first.")
