"""A form that makes something makes it once, however often it is sent: reloaded, pressed twice, or gone back to.

Each form carries a number; the person's session keeps the numbers of the newest that were taken, under the lock of its row.
"""

import secrets
from typing import Any

from django.contrib.sessions.models import Session
from django.http import HttpRequest

_KEPT = 20


def number() -> str:
    """For the hidden field `once` of a form that is shown."""
    return secrets.token_urlsafe(9)


def taken(request: HttpRequest) -> bool:
    """Whether this very form was taken before; another request with it waits until this transaction has ended."""
    session: Any = Session.objects.select_for_update().get(pk=request.session.session_key)
    return request.POST.get("once", "") in session.get_decoded().get("once", [])


def take(request: HttpRequest) -> None:
    """Remember that what the form asks for is made."""
    if sent := request.POST.get("once", ""):
        request.session["once"] = [*request.session.get("once", []), sent][-_KEPT:]
        request.session.save()  # before the lock is let go
