"""Signing in: ten wrong passwords for a name from one address, and that pair has to wait. Counted in PostgreSQL."""

import datetime as dt
from typing import Any

from django import forms
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.contrib.auth.views import LoginView
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import connection
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from decisioning.access.models import LoginAttempts
from decisioning.access.proxies import origin

FAILURES = 10
LOCK = dt.timedelta(minutes=15)

# Counted before the password is looked at, so that attempts at the same moment are counted one by one. A locked pair's time does
# not move: whoever waits it out gets in, however often somebody knocks meanwhile.
_RESERVE = """
INSERT INTO login_attempts AS a (username, address, failures, last_at) VALUES (%(username)s, %(address)s, 1, %(now)s)
ON CONFLICT (username, address) DO UPDATE SET
  failures = CASE WHEN a.last_at < %(fresh)s THEN 1 ELSE least(a.failures + 1, %(most)s + 1) END,
  last_at = CASE WHEN a.last_at >= %(fresh)s AND a.failures >= %(most)s THEN a.last_at ELSE %(now)s END
RETURNING failures, last_at
"""


class GuardedBackend(ModelBackend):
    """Django's own, behind the lock: no door to a password goes around it."""

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **kwargs: Any
    ) -> User | None:
        if request is None or username is None or password is None:
            return super().authenticate(request, username=username, password=password, **kwargs)
        name, address = username.casefold()[:150], origin(request)
        until = _reserve(name, address, now=timezone.now())  # noqa: TID251 - a door reads the clock
        if until is not None:
            request.locked_until = until  # type: ignore[attr-defined]
            raise PermissionDenied
        user = super().authenticate(request, username=username, password=password, **kwargs)
        if user is not None:
            LoginAttempts.objects.filter(username=name, address=address).delete()
        return user


def _reserve(username: str, address: str, *, now: dt.datetime) -> dt.datetime | None:
    """Count one attempt; the time until which the pair is locked, if it is."""
    values: dict[str, Any] = {
        "username": username,
        "address": address,
        "now": now,
        "fresh": now - LOCK,
        "most": FAILURES,
    }
    with connection.cursor() as cursor:
        cursor.execute(_RESERVE, values)
        failures, last_at = cursor.fetchone() or (0, now)
    if failures == 1:
        LoginAttempts.objects.filter(last_at__lt=now - LOCK - dt.timedelta(days=1)).delete()
    until: dt.datetime = last_at + LOCK
    return until if failures > FAILURES else None


@receiver(user_logged_in)
def _signed_in(request: HttpRequest, user: User, **_more: Any) -> None:
    _note(request, "signin", user.pk)


@receiver(user_logged_out)
def _signed_out(request: HttpRequest, user: User | None, **_more: Any) -> None:
    if user is not None:
        _note(request, "signout", user.pk)


@receiver(user_login_failed)
def _failed(credentials: dict[str, Any], request: HttpRequest | None = None, **_more: Any) -> None:
    if request is not None:
        person = User.objects.filter(username__iexact=str(credentials.get("username"))[:150]).order_by("pk").first()
        _note(request, "failedsignin", person.pk if person else None)


def _note(request: HttpRequest, kind: str, person: int | None) -> None:
    """Into the audit, for requests that have come through the middleware: what a test or a shell does has no address."""
    if hasattr(request, "principal"):
        with connection.cursor() as cursor:
            cursor.execute("SELECT audit.signed(%s, %s, %s)", [kind, person, origin(request)])


class SignInForm(AuthenticationForm):
    """Says that a pair is locked, and for how long."""

    def get_invalid_login_error(self) -> ValidationError:
        until: dt.datetime | None = getattr(self.request, "locked_until", None)
        if until is None:
            return super().get_invalid_login_error()
        return ValidationError(
            f"Too many wrong passwords for this name from your address. Try again after {until:%H:%M} UTC, "
            "or ask an admin to set a new password.",
            code="locked",
        )


class AdminSignInForm(SignInForm, AdminAuthenticationForm):
    """For staff only."""


class SignIn(LoginView):
    """The board's door. Django rotates the session and refuses a foreign `next`."""

    authentication_form = SignInForm
    redirect_authenticated_user = True

    def form_invalid(self, form: forms.BaseForm) -> HttpResponse:
        response = super().form_invalid(form)  # type: ignore[arg-type]
        until: dt.datetime | None = getattr(self.request, "locked_until", None)
        if until is not None:
            response.status_code = 429
            left = until - timezone.now()  # noqa: TID251 - a door reads the clock
            response["Retry-After"] = str(max(1, int(left.total_seconds())))
        return response


class AdminSignIn(SignIn):
    """The admin's door: somebody signed in who is not staff is asked again rather than sent round in circles."""

    authentication_form = AdminSignInForm
    redirect_authenticated_user = False
