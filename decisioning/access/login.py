"""Signing in: ten wrong passwords for a name from one address, and that pair has to wait. Counted in PostgreSQL.

Who sprays names has to wait as well: thirty wrong ones from one address, or a hundred from its network, whatever names they were for.

A session may end while a page is open. What was typed there is kept: the sign-in page carries it, signed, and hands it back.
"""

import datetime as dt
import ipaddress
import math
from typing import Any
from urllib.parse import urlsplit

from django import forms
from django.conf import settings
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.models import User
from django.contrib.auth.password_validation import MinimumLengthValidator
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.contrib.auth.views import LoginView, redirect_to_login
from django.core import signing
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import connection
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import resolve
from django.utils import timezone
from django.views import csrf

from decisioning.access.limits import failures
from decisioning.access.middleware import READS, has_room
from decisioning.access.models import LoginAttempts
from decisioning.access.proxies import origin

FAILURES = 10
OF_ADDRESS, OF_NETWORK = "30/15m", "100/15m"
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
        now = timezone.now()  # noqa: TID251 - a door reads the clock
        sprayed_s = _sprayed(request, address, more=False)
        until = now + dt.timedelta(seconds=sprayed_s) if sprayed_s else _reserve(name, address, now=now)
        if until is not None:
            request.locked_until = until  # type: ignore[attr-defined]
            raise PermissionDenied
        user = super().authenticate(request, username=username, password=password, **kwargs)
        if user is not None:
            LoginAttempts.objects.filter(username=name, address=address).delete()
        else:
            _sprayed(request, address, more=True)
        return user


def _sprayed(request: HttpRequest, address: str, *, more: bool) -> int:
    """Seconds until this address may try again, whatever the name. more: one more wrong password came from it."""
    network = ipaddress.ip_network((address, 48 if ":" in address else 24), strict=False)
    of_address = failures(request, f"sign-in address {address}", OF_ADDRESS, more=more)
    return max(of_address, failures(request, f"sign-in network {network}", OF_NETWORK, more=more))


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


class NewPassword(MinimumLengthValidator):
    """Django's least length, and its hook for what is done then: with a new password the wrong ones before count no more."""

    def password_changed(self, password: str, user: User) -> None:
        LoginAttempts.objects.filter(username=user.get_username().casefold()[:150]).delete()


class SignInForm(AuthenticationForm):
    """Says that a pair is locked, and for how long."""

    def get_invalid_login_error(self) -> ValidationError:
        until: dt.datetime | None = getattr(self.request, "locked_until", None)
        if until is None:
            return super().get_invalid_login_error()
        return ValidationError(
            f"Too many wrong passwords from your address. Try again after {until:%H:%M} UTC, "
            "or ask an admin to set a new password: that unlocks it at once.",
            code="locked",
        )


class AdminSignInForm(SignInForm, AdminAuthenticationForm):
    """For staff only."""


@has_room("passwords")
class SignIn(LoginView):
    """The board's door. Django rotates the session and refuses a foreign `next`."""

    authentication_form = SignInForm
    redirect_authenticated_user = True

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        return super().get_context_data(**{"unsent": self.request.POST.get("unsent", "")} | kwargs)

    def form_valid(self, form: Any) -> HttpResponse:
        response = super().form_valid(form)
        return handed_back(self.request, self.request.POST.get("unsent", "")) or response

    def form_invalid(self, form: forms.BaseForm) -> HttpResponse:
        response = super().form_invalid(form)  # type: ignore[arg-type]
        until: dt.datetime | None = getattr(self.request, "locked_until", None)
        if until is not None:
            response.status_code = 429
            left = until - timezone.now()  # noqa: TID251 - a door reads the clock
            response["Retry-After"] = str(max(1, math.ceil(left.total_seconds())))
        return response


class AdminSignIn(SignIn):
    """The admin's door: somebody signed in who is not staff is asked again rather than sent round in circles."""

    authentication_form = AdminSignInForm
    redirect_authenticated_user = False


# What was typed when the session ended -----------------------------------------------------------------------------------


def keeps_unsent[View](view: View) -> View:
    """Mark a view whose forms are kept when they cannot be taken: never one that is sent a password."""
    view.keeps_unsent = True  # type: ignore[attr-defined]
    return view


def ask_to_sign_in(request: HttpRequest) -> HttpResponse:
    """For who is not signed in, or no longer: reading leads back to the page that was asked for, a form keeps what was typed.

    A part of an open page leads to the sign-in as a whole page (`HX-Redirect`), never into a panel of it.
    """
    if request.method not in READS and (unsent := _unsent(request)):
        return _sign_in_keeping(request, unsent)
    if request.headers.get("HX-Request"):
        return HttpResponse(headers={"HX-Redirect": sign_in_url(request)})
    return redirect_to_login(request.get_full_path()) if request.method in READS else redirect(sign_in_url(request))


def sign_in_url(request: HttpRequest) -> str:
    """The sign-in that leads back to the page this request came from."""
    return redirect_to_login(_open(request)).url


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """A form that was opened under another session: one of our own pages gets it back, filled in; a foreign one is refused."""
    own = {f"{request.scheme}://{request.get_host()}", *settings.CSRF_TRUSTED_ORIGINS}
    unsent = request.headers.get("Origin") in own and (request.POST.get("unsent") or _unsent(request))
    if unsent and request.user.is_anonymous:
        return _sign_in_keeping(request, unsent)
    back = handed_back(request, unsent, status=403) if unsent else None
    return back or csrf.csrf_failure(request, reason)


def handed_back(request: HttpRequest, unsent: str, *, status: int = 200) -> HttpResponse | None:
    """The page that shows what was typed and sends it when asked to; None when nothing was kept."""
    try:
        kept = signing.loads(unsent, salt=_SALT, max_age=dt.timedelta(days=1))
    except signing.BadSignature:
        return None
    kept["shown"] = [
        (name.replace("_", " ").capitalize(), text)
        for name, text in kept["fields"]
        if text and not text.isdecimal() and not text.startswith("sha256:")
    ]
    return render(request, "registration/unsent.html", {"unsent": kept}, status=status)


_SALT = "unsent"


def _unsent(request: HttpRequest) -> str:
    """What was typed into a form, to be carried by the browser; nothing where a file is part of it, which cannot be."""
    if not getattr(resolve(request.path_info).func, "keeps_unsent", False) or request.FILES:
        return ""
    fields = [(name, text) for name, sent in request.POST.lists() for text in sent if name != "csrfmiddlewaretoken"]
    kept = {"path": request.get_full_path(), "back": _open(request), "fields": fields}
    return signing.dumps(kept, salt=_SALT, compress=True) if fields else ""


def _open(request: HttpRequest) -> str:
    """The page a request came from, without its host."""
    at = urlsplit(request.headers.get("HX-Current-URL") or request.headers.get("Referer", ""))
    return f"/{at.path.lstrip('/')}{f'?{at.query}' if at.query else ''}"


def _sign_in_keeping(request: HttpRequest, unsent: str) -> HttpResponse:
    door = SignIn()
    door.setup(request)
    response = door.render_to_response(door.get_context_data(form=SignInForm(request), unsent=unsent))
    response.status_code = 401
    return response
