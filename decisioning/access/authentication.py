"""DRF's view of who asks: the middleware has found out already, so that row security is bound before anything is read."""

from rest_framework.authentication import BaseAuthentication, CSRFCheck
from rest_framework.exceptions import AuthenticationFailed, PermissionDenied
from rest_framework.request import Request

from decisioning.access.principal import Principal


class BoundPrincipal(BaseAuthentication):
    """Bearer keys for programs, session and CSRF for people."""

    def authenticate(self, request: Request) -> tuple[Principal, None] | None:
        principal: Principal = request._request.principal  # type: ignore[attr-defined]
        if principal.key_error:
            raise AuthenticationFailed(principal.key_error)
        if principal.kind == "user":
            self._enforce_csrf(request)
        return (principal, None) if principal.is_authenticated else None

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="decisioning"'

    @staticmethod
    def _enforce_csrf(request: Request) -> None:
        check = CSRFCheck(lambda _request: None)  # type: ignore[arg-type]
        check.process_request(request._request)
        reason = check.process_view(request._request, None, (), {})  # type: ignore[arg-type]
        if reason:
            raise PermissionDenied(f"CSRF: {reason}")
