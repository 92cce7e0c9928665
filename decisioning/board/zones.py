"""In which time zone a person reads: a cookie of the browser, since a zone is where somebody is and not who."""

from datetime import tzinfo
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from django.conf import settings
from django.http import HttpRequest, HttpResponse

_COOKIE = "zone"
_YEAR_S = 366 * 86_400


@cache
def names() -> tuple[str, ...]:
    """UTC first, then every place; without the abbreviations, which mean several things."""
    return ("UTC", *sorted(name for name in available_timezones() if "/" in name and not name.startswith("Etc/")))


def name_of(request: HttpRequest) -> str:
    """The zone this browser was told to read in, else UTC."""
    asked = request.COOKIES.get(_COOKIE, "")
    return asked if asked in names() else "UTC"


def zone_of(request: HttpRequest) -> tzinfo:
    return ZoneInfo(name_of(request))


def keep(response: HttpResponse, name: str) -> None:
    response.set_cookie(
        _COOKIE, name, max_age=_YEAR_S, secure=settings.SESSION_COOKIE_SECURE, httponly=True, samesite="Lax"
    )
