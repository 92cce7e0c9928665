"""Keys of programs over HTTP. A secret is shown once; a revoked key is nobody from the next request on."""

from typing import Any

from django.contrib.auth.models import User
from django.http import Http404, HttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from decisioning.access.keys import create_key, revoke
from decisioning.access.models import ApiKey
from decisioning.access.permissions import require
from decisioning.access.scopes import Scope
from decisioning.api.base import PortalView
from decisioning.api.lists import PAGING, page
from decisioning.api.problems import invalid
from decisioning.api.serializers import KeyIn
from decisioning.literals import rfc3339, whole_number
from decisioning.refusals import Fault


class Keys(PortalView):
    """The keys of the caller's teams."""

    scopes = {"GET": Scope.KEYS, "POST": Scope.KEYS}
    parameters = {"GET": PAGING}

    def get(self, request: Request) -> Response:
        """Newest first, without secrets."""
        keys = ApiKey.objects.judged().select_related("team", "owner", "made_by")
        if not self.principal.is_admin:
            keys = keys.filter(team__in=[team for team, held in self.principal.teams.items() if Scope.KEYS in held])
        return page(request, keys, shown=lambda found: [_as_json(k) for k in found])

    def post(self, request: Request) -> Response:
        """A new key; `key` is its secret, which exists nowhere else."""
        values, now = self.body(KeyIn), self.now
        team = self.team(values.get("team"), Scope.KEYS)
        expires_at = values.get("expires_at")
        if expires_at is not None and expires_at <= now:
            raise invalid([Fault("/expires_at", "invalid", f"{rfc3339(expires_at)} is over already.")])
        key, secret = create_key(
            team,
            scopes=values["scopes"],
            agent=values.get("agent", False),
            rate=values.get("rate") or "",
            expires_at=expires_at,
            owner=User.objects.filter(pk=self.principal.person_id).first() if self.principal.person_id else None,
            maker=ApiKey.objects.filter(pk=self.principal.id or 0).first() if self.principal.kind == "key" else None,
            now=now,
        )
        headers = {"Location": f"/api/keys/{key.public_id}", "Cache-Control": "no-store"}
        return Response(
            {**_as_json(ApiKey.objects.judged().get(pk=key.pk)), "key": secret}, status=201, headers=headers
        )


class OneKey(PortalView):
    """One key, by its number or the eight characters after dk_."""

    scopes = {"GET": Scope.KEYS, "DELETE": Scope.KEYS}

    def get(self, request: Request, ref: str) -> Response:
        """What it may do, and when it was last used."""
        return Response(_as_json(self._key_or_404(ref)))

    def delete(self, request: Request, ref: str) -> HttpResponse:
        """Revoke it; it stays in the list."""
        revoke(ApiKey.objects.filter(pk=self._key_or_404(ref).pk), now=self.now)
        return HttpResponse(status=204)

    def _key_or_404(self, ref: str) -> ApiKey:
        keys = ApiKey.objects.judged().select_related("team", "owner", "made_by")
        key = keys.filter(public_id=ref.removeprefix("dk_")).first()
        if key is None and (number := whole_number(ref)) is not None:
            key = keys.filter(pk=number).first()
        if key is None:
            raise Http404
        require(self.principal, Scope.KEYS, key.team_id)
        return key


def _as_json(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.pk,
        "public_id": key.public_id,
        "team": key.team.key,
        "owner": (key.owner.email or key.owner.username) if key.owner else None,
        "made_by": str(key.made_by) if key.made_by else None,
        "scopes": key.scopes,
        "agent": key.agent,
        "rate": key.rate or None,
        "created_at": rfc3339(key.created_at),
        "expires_at": rfc3339(key.expires_at),
        "revoked_at": rfc3339(key.revoked_at),
        "last_used_at": rfc3339(key.last_used_at),
        "problem": key.problem,  # type: ignore[attr-defined] # annotated by judged()
    }
