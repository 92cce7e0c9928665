"""Who is behind a request before it is answered: by what was known a moment ago, else by what the database says."""

from importlib import import_module

from django.conf import settings
from django.contrib.auth import get_user
from django.db import DatabaseError, transaction
from django.http import HttpRequest

from decisioning.access.middleware import bind
from decisioning.access.principal import ANONYMOUS, Principal
from decisioning.availability.response_cache import KnownPrincipals

KNOWN = KnownPrincipals()


def asked(request: HttpRequest) -> Principal:
    """The principal; anonymous for nobody, and when the database does not say. Nothing is written to the audit."""
    if (known := KNOWN.find(request)) is not None:
        return known
    try:
        with transaction.atomic(durable=True):
            session = import_module(settings.SESSION_ENGINE).SessionStore
            request.session = session(request.COOKIES.get(settings.SESSION_COOKIE_NAME))
            request.user = get_user(request)
            principal = bind(request)
    except DatabaseError:
        return ANONYMOUS
    KNOWN.note(request, principal)
    return principal
