"""May this principal do this here? Views name the scope per method; the team is the object's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rest_framework.exceptions import NotAuthenticated, PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope

if TYPE_CHECKING:  # rest_framework.views reads the settings, which name this module
    from rest_framework.views import APIView


def require(principal: Principal, scope: Scope, team_id: int | None = None) -> None:
    """Raise unless `scope` is held in the team (any team when none is named): 401 for nobody, 403 for somebody."""
    if not principal.is_authenticated:
        raise NotAuthenticated("Send `Authorization: Bearer <key>`, or sign in.")
    if not principal.may(scope, team_id):
        raise PermissionDenied(f"This needs the scope {scope}. Ask a team admin for a key or a role that holds it.")


class Scoped(BasePermission):
    """Reads `view.scopes = {"GET": Scope.READ, ...}`; a method without a scope is refused (fail closed)."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        scopes: dict[str, Scope] = getattr(view, "scopes", {})
        method = "GET" if request.method in ("HEAD", "OPTIONS") else str(request.method)
        if method not in scopes:
            return request.method == "OPTIONS" or method not in view.allowed_methods
        require(request.user, scopes[method])  # type: ignore[arg-type]
        return True
