"""One transaction a request, bound to who asks; a refusal or an error keeps nothing but the note that it happened."""

import uuid
from collections.abc import Callable
from typing import Any

from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import Resolver404, resolve

from decisioning.access.principal import Principal, bind_key, bind_user, rebind
from decisioning.access.proxies import origin
from decisioning.database.liveness import PRIMARY
from decisioning.database.replica import REPLICA_STATUS, instead_of_primary

READS = frozenset({"GET", "HEAD", "OPTIONS"})
ROOMS = ("passwords", "files")
"""What is slow or heavy by itself has places of its own: hashing a password; taking and trying out files and queries."""


class BoundTransaction:
    """After AuthenticationMiddleware. The key or the session is read here, once, for every door (API, board, admin).

    ATOMIC_REQUESTS stays off: it wraps only the view, so what middleware reads would be unbound. A response is never
    streamed past the transaction, because the settings row security reads are gone by then.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if owns_transaction(request):
            return self.get_response(request)
        if request.method in READS and self._from_replica(request):
            with instead_of_primary():
                response = self._answered(request)
        else:
            response = self._answered(request)
            if request.method not in READS and response.status_code < 400:
                REPLICA_STATUS.wrote(request.principal.name)  # type: ignore[attr-defined]
        if not PRIMARY.away:
            _note(request, response)
        return response

    def _from_replica(self, request: HttpRequest) -> bool:
        """Whether to read there; who asks is found out on the primary, as long as that answers."""
        if PRIMARY.away:
            return REPLICA_STATUS.answers()
        if not REPLICA_STATUS.is_fresh() or getattr(request, "from_primary", False):
            return False
        with transaction.atomic(durable=True):
            principal = bind(request)
        if not principal.is_authenticated or not REPLICA_STATUS.suits(principal.name):
            return False
        request.bound = principal  # type: ignore[attr-defined]
        return True

    def _answered(self, request: HttpRequest) -> HttpResponse:
        with transaction.atomic(durable=True):
            known = getattr(request, "bound", None)
            request.principal = rebind(known, id_of(request)) if known else bind(request)  # type: ignore[attr-defined]
            request.bound = None  # type: ignore[attr-defined]
            response = self.get_response(request)
            if response.streaming and not getattr(response, "file_to_stream", None):
                raise RuntimeError("A streaming response would be read after its transaction.")
            if response.status_code >= 400:
                transaction.set_rollback(True)
        return response


def about(request: HttpRequest, team_id: int) -> None:
    """Say which team's it is what is asked for: should it be refused, that team's audit tells so."""
    request.about_team = team_id  # type: ignore[attr-defined]


def _note(request: HttpRequest, response: HttpResponse) -> None:
    """What belongs in the audit though it changes nothing: refusals, what is taken along, and who reads evidence."""
    refused = response.status_code in (401, 403)
    kind = "" if refused or response.status_code != 200 else _reading(request, response)
    if not (refused or kind):
        return
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        principal, address = bind(request), origin(request)
        if kind:
            cursor.execute("SELECT audit.reading(%s, %s, %s)", [kind, request.path, address])
            return
        mine = next(iter(principal.teams)) if len(principal.teams) == 1 else principal.ended_in
        known = getattr(request, "about_team", None)
        cursor.execute(
            "SELECT audit.refusal(%s, %s, %s, %s, %s, %s)",
            [request.method, request.path, response.status_code, address, known, mine],
        )


def _reading(request: HttpRequest, response: HttpResponse) -> str:
    if "/evidence/" in request.path:
        return "evidence"
    return "export" if response.get("Content-Disposition", "").startswith("attachment") else ""


class SaysNotAllowed:
    """A 405 that Django leaves empty is a page, as every other refusal: somebody may have come there by a link."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        if response.status_code == 405 and not response.content:
            page = render(request, "405.html", status=405)
            page["Allow"] = response["Allow"]
            return page
        return response


def bind(request: HttpRequest) -> Principal:
    """A key beats a session: a program that sends one is that program, whatever cookies travel along."""
    request_id = id_of(request)
    kind, _, secret = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return bind_key(secret.strip(), request_id)
    if not hasattr(request, "person_id"):
        request.person_id = request.user.pk  # type: ignore[attr-defined]  # DRF puts its own user there later
    return bind_user(request.person_id, request_id)  # type: ignore[attr-defined]


def own_transaction[View: Callable[..., HttpResponse]](view: View) -> View:
    """Mark a view that touches no team's data, or opens and binds its transactions itself."""
    view.own_transaction = True  # type: ignore[attr-defined]
    return view


def has_room[View: Callable[..., Any] | type](room: str) -> Callable[[View], View]:
    """Mark a view, or a class of views, whose writes have places of their own, one of ROOMS."""

    def marked(view: View) -> View:
        view.room = room  # type: ignore[union-attr]
        return view

    return marked


def id_of(request: HttpRequest) -> str:
    """The name of this request in logs, audit and answers: the client's own, else a new one."""
    if not hasattr(request, "id"):
        sent = request.headers.get("X-Request-ID", "")[:64]
        request.id = sent if sent.isascii() and sent.isprintable() and sent else uuid.uuid4().hex  # type: ignore[attr-defined]
    return str(request.id)  # type: ignore[attr-defined]


def owns_transaction(request: HttpRequest) -> bool:
    """Whether the view is one that needs no database, or opens its own transactions."""
    try:
        return bool(getattr(resolve(request.path_info).func, "own_transaction", False))
    except Resolver404:
        return False
