"""Who is in a team and what each role may do; the page behind an invitation."""

from datetime import datetime
from typing import Any

from django.contrib.auth.forms import BaseUserCreationForm
from django.urls import reverse

from decisioning.access import members
from decisioning.access.models import Invitation, Membership, Team
from decisioning.access.principal import Principal
from decisioning.access.scopes import ROLES, Scope
from decisioning.board import words
from decisioning.board.forms import InviteForm

# What a scope lets a person do, in the order of the table.
MAY = {
    Scope.READ: "See experiments, gates, evidence and the audit",
    Scope.WRITE: "Create, start, pause and stop experiments",
    Scope.TELEMETRY: "Send rows, try and run sources",
    Scope.REVIEW: "Answer proposals",
    Scope.POLICIES: "Write, backtest and activate policies",
    Scope.KEYS: "Invite and remove people, make keys and webhooks",
}


def team(of: Team, principal: Principal, form: InviteForm, *, now: datetime) -> dict[str, Any]:
    """The whole page; what can be changed is offered to an admin of the team."""
    may = principal.may(Scope.KEYS, of.pk)
    held = Membership.objects.select_related("user").filter(team=of).order_by("user__username")
    waiting = (
        Invitation.objects.filter(team=of, used_at__isnull=True, expires_at__gt=now).order_by("-pk") if may else []
    )
    return {
        "name": of.name,
        "url": reverse("team", args=[of.key]),
        "may": may,
        "members": [
            {
                "name": m.user.get_username(),
                "email": m.user.email,
                "role": m.role,
                "roles": [{"value": r, "here": r == m.role} for r in ROLES],
                "seen": words.instant(m.user.last_login, now) if m.user.last_login else "not yet",
                "self": m.user_id == principal.id,
                "role_url": reverse("member_role", args=[of.key, m.pk]),
                "remove_url": reverse("member_remove", args=[of.key, m.pk]),
            }
            for m in held
        ],
        "waiting": [
            {
                "for": i.email or "whoever has the link",
                "role": i.role,
                "by": i.created_by,
                "until": words.instant(i.expires_at, now),
                "url": reverse("invitation_withdraw", args=[of.key, i.pk]),
            }
            for i in waiting
        ],
        "roles": list(ROLES),
        "table": [
            {"what": text, "cells": [scope in scopes for scopes in ROLES.values()]} for scope, text in MAY.items()
        ],
        "form": form,
    }


def leaving(member: Membership, *, now: datetime) -> dict[str, Any]:
    """The page that asks once more before somebody is removed."""
    name, of = member.user.get_username(), member.team
    return {
        "team": of.name,
        "back": reverse("team", args=[of.key]),
        "name": name,
        "title": f"Remove {name} from {of.name}?",
        "keys": [
            {
                "name": str(k),
                "may": ", ".join(k.scopes),
                "used": words.instant(k.last_used_at, now) if k.last_used_at else "not yet",
            }
            for k in members.keys_of(member, now=now)
        ],
    }


def invited(
    invitation: Invitation, principal: Principal, form: BaseUserCreationForm[Any], *, now: datetime
) -> dict[str, Any]:
    return {
        "team": invitation.team.name,
        "role": invitation.role,
        "by": invitation.created_by,
        "until": words.instant(invitation.expires_at, now),
        "may": [text for scope, text in MAY.items() if scope in ROLES[invitation.role]],
        "person": principal.name if principal.kind == "user" else "",
        "form": form,
    }
