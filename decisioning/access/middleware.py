"""One transaction a request, bound to who asks; a refusal or an error keeps nothing but the note that it happened."""

import uuid
from collections.abc import Callable

from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import Resolver404, resolve

from decisioning.access.principal import Principal, bind_key, bind_user


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
        with transaction.atomic(durable=True):
            request.principal = bind(request)  # type: ignore[attr-defined]
            response = self.get_response(request)
            if response.streaming and not getattr(response, "file_to_stream", None):
                raise RuntimeError("A streaming response would be read after its transaction.")
            if response.status_code >= 400:
                transaction.set_rollback(True)
        if response.status_code in (401, 403):
            with transaction.atomic(durable=True):
                bind(request)
                with connection.cursor() as cursor:
                    cursor.execute(
                        "SELECT audit.refusal(%s, %s, %s)", [request.method, request.path, response.status_code]
                    )
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
