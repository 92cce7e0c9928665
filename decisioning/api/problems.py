"""Every refusal and every failure under /api/ as `application/problem+json` (RFC 9457). The one error handler.

`code` is stable and for programs; `detail` says what happened, with the value, and what to do. Nothing internal leaves.
"""

import errno
import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.db import DataError, IntegrityError, InterfaceError, InternalError, OperationalError, ProgrammingError
from django.http import Http404, HttpRequest, HttpResponse, UnreadablePostError
from django.template import loader
from django.views import defaults
from rest_framework import exceptions

from decisioning.access.middleware import id_of
from decisioning.api.codes import CODES
from decisioning.database.schema import NewerDatabase
from decisioning.refusals import Fault, Refused

_log = logging.getLogger(__name__)

RETRY_AFTER_S = 5


class Problem(exceptions.APIException):
    """A refusal in its final words. `extra` holds members of its own, such as `allowed` of a refused transition."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail, code)
        self.status_code = status
        self.code = code
        self.text = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    def response(self) -> HttpResponse:
        body = {
            "type": "about:blank",
            "title": HTTPStatus(self.status_code).phrase,
            "status": self.status_code,
            "code": self.code,
            "detail": self.text,
            "errors": [{"pointer": e.pointer, "code": e.code, "detail": e.detail} for e in self.errors],
            **self.extra,
        }
        return HttpResponse(
            json.dumps(body, default=str),
            status=self.status_code,
            content_type="application/problem+json",
            headers=self.headers,
        )


def invalid(errors: Sequence[Fault], *, code: str = "invalid", status: int = 422) -> Problem:
    """422 for bad values in a body; the detail is the first one's."""
    more = f" And {len(errors) - 1} more, see errors." if len(errors) > 1 else ""
    where = f"{errors[0].pointer}: " if errors[0].pointer else ""
    return Problem(status, code, f"{where}{errors[0].detail}{more}", errors=errors)


def bad_parameter(name: str, detail: str, *, code: str = "invalid_parameter") -> Problem:
    """400 for a query parameter."""
    return Problem(400, code, f"{name}: {detail}", errors=[Fault(f"?{name}", code, detail)])


def handle(exception: Exception, context: Mapping[str, Any]) -> HttpResponse:
    """DRF's exception handler."""
    response = problem_of(exception, context).response()
    view = context.get("view")
    if response.status_code == 405 and view is not None:
        response["Allow"] = ", ".join(view.allowed_methods)
    return response


def problem_of(exception: BaseException | None, context: Mapping[str, Any] | None = None) -> Problem:
    """What to tell the caller about any exception."""
    for kind, tell in _PROBLEMS:
        if isinstance(exception, kind):
            problem: Problem = tell(exception)
            return problem
    view = type((context or {}).get("view")).__name__
    _log.error("Unexpected in %s", view, exc_info=exception)
    return _internal()


def _of_drf(exception: exceptions.APIException) -> Problem:
    status = exception.status_code
    headers: dict[str, str] = {}
    if getattr(exception, "auth_header", None):
        headers["WWW-Authenticate"] = exception.auth_header  # type: ignore[attr-defined]
    if getattr(exception, "wait", None):
        headers["Retry-After"] = str(max(1, math.ceil(exception.wait)))  # type: ignore[attr-defined]
    code, detail = _CODES.get(status, str(exception.default_code)), str(exception.detail)
    if isinstance(exception, exceptions.NotFound):
        detail = NOT_FOUND
    if isinstance(exception, exceptions.UnsupportedMediaType):
        detail += " Send application/json."
    return Problem(status, code, detail, headers=headers)


def _of_refusal(refusal: Refused) -> Problem:
    """What a domain refuses, in its words. One that is about values says at which of them it begins."""
    if refusal.errors and refusal.message == refusal.errors[0].detail and not refusal.extra:
        return invalid(refusal.errors, code=refusal.code, status=refusal.status)
    wait = refusal.extra.get("retry_after_s")
    headers = {} if wait is None else {"Retry-After": str(wait)}
    return Problem(
        refusal.status, refusal.code, refusal.message, errors=refusal.errors, extra=refusal.extra, headers=headers
    )


def _of_validation(exception: exceptions.ValidationError) -> Problem:
    return invalid(list(flattened(exception.detail)) or [Fault("", "invalid", "The body is not valid.")])


def is_out_of_room(failure: BaseException) -> bool:
    """Whether a disk is full: the database's, by what it says, or ours."""
    if isinstance(failure, OSError):
        return failure.errno in {errno.ENOSPC, errno.EDQUOT}
    return getattr(failure.__cause__, "sqlstate", None) == "53100"


def _of_database(failure: Exception) -> Problem:
    """It could not answer, or not do this; in either case nothing was changed."""
    if is_out_of_room(failure):
        return _unavailable("storage_full", "A disk of the portal's is full. Nothing was changed; try again later.")
    if isinstance(failure, InternalError) and getattr(failure.__cause__, "sqlstate", None) != "25006":  # read-only
        _log.error("Unexpected in the database", exc_info=failure)
        return _internal()
    if isinstance(failure, OSError):
        _log.error("Unexpected in the system", exc_info=failure)
        return _internal()
    if isinstance(failure.__cause__, NewerDatabase):
        return _unavailable("database_unavailable", str(failure.__cause__))
    return _unavailable("database_unavailable", "The database did not answer in time. Nothing was changed; try again.")


def _unavailable(code: str, detail: str) -> Problem:
    return Problem(503, code, detail, headers={"Retry-After": str(RETRY_AFTER_S)})


def _of_row_security(error: ProgrammingError) -> Problem:
    """The database's own refusal, should a view ever let through what the team may not do."""
    if getattr(error.__cause__, "sqlstate", None) == "42501":
        return Problem(403, "permission_denied", "This team may not do that.")
    _log.error("Unexpected in the database", exc_info=error)
    return _internal()


def _internal() -> Problem:
    return Problem(500, "internal_error", "This is a fault of the portal. It is in its log; try again later.")


def flattened(detail: object, pointer: str = "") -> Iterator[Fault]:
    """DRF's nested error details as faults.

    >>> from rest_framework.exceptions import ErrorDetail
    >>> list(flattened({"rows": [{}, {"value": [ErrorDetail("No.", code="required")]}]}))
    [Fault(pointer='/rows/1/value', code='missing_field', detail='No.', index=0)]
    """
    if isinstance(detail, Mapping):
        for name, inner in detail.items():
            yield from flattened(inner, pointer if name == "non_field_errors" else f"{pointer}/{_escaped(str(name))}")
    elif isinstance(detail, (list, tuple)):
        for position, inner in enumerate(detail):
            leaf = isinstance(inner, exceptions.ErrorDetail)
            yield from flattened(inner, pointer if leaf else f"{pointer}/{position}")
    elif isinstance(detail, exceptions.ErrorDetail):
        code = detail.code or "invalid"
        known = _FIELD_CODES.get(code, code)
        yield Fault(pointer, known if known in CODES else "invalid", str(detail))
    else:
        yield Fault(pointer, "invalid", str(detail))


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


NOT_FOUND = "There is nothing here that you may see. Check the address and the team of your key."
_CODES = {
    401: "not_authenticated",
    403: "permission_denied",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    415: "unsupported_media_type",
    429: "rate_limited",
}
_FIELD_CODES = {
    "required": "missing_field",
    "max_length": "invalid_text",
    "blank": "missing_field",
    "empty": "empty",
}
_PROBLEMS: list[tuple[type[BaseException] | tuple[type[BaseException], ...], Any]] = [
    (Problem, lambda problem: problem),
    (Refused, _of_refusal),
    (exceptions.ValidationError, _of_validation),
    (exceptions.APIException, _of_drf),
    (Http404, lambda _: Problem(404, "not_found", NOT_FOUND)),
    (PermissionDenied, lambda _: Problem(403, "permission_denied", "You may not do this.")),
    (RequestDataTooBig, lambda _: Problem(413, "body_too_large", "The body is too large. Send less at a time.")),
    (SuspiciousOperation, lambda _: Problem(400, "invalid_request", "The request is malformed.")),
    (UnreadablePostError, lambda _: Problem(400, "invalid_request", "The body ended early. Send it again.")),
    (
        DataError,
        lambda _: Problem(422, "invalid", "A value does not fit: out of range, or text that cannot be stored."),
    ),
    (IntegrityError, lambda _: Problem(409, "conflict", "Somebody changed this at the same moment. Read it again.")),
    (ProgrammingError, _of_row_security),
    ((OperationalError, InterfaceError, InternalError, OSError), _of_database),
]


BEFORE_READING = {
    408: Problem(408, "body_too_slow", "The body took too long. Send it faster, or less at a time."),
    413: Problem(413, "body_too_large", "The body has more than 8388608 bytes. Split it."),
    503: Problem(
        503,
        "too_busy",
        "Too much is being sent or answered at the moment. Nothing was changed; try again.",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    ),
}
"""Refusals of a body, and of more requests than can be waited for, by status: before anything of them is read."""


# Outside DRF: addresses nobody knows, and what middleware raises --------------------------------------------------------


def bad_request(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler400: a host that is not ours, a body that is too large."""
    return problem_of(exception).response() if _is_api(request) else defaults.bad_request(request, exception)  # type: ignore[arg-type]


def permission_denied(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler403."""
    if _is_api(request):
        return Problem(403, "permission_denied", "You may not do this.").response()
    return defaults.permission_denied(request, exception)  # type: ignore[arg-type]


def not_found(request: HttpRequest, exception: Exception | None = None) -> HttpResponse:
    """Django's handler404."""
    if _is_api(request):
        return Problem(404, "not_found", NOT_FOUND).response()
    return defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler500, also for what middleware raises: a database that does not answer is a 503."""
    error = sys.exc_info()[1]
    problem = problem_of(error)
    if _is_api(request):
        return problem.response()
    if isinstance(error, OverflowError) and (request.META.get("QUERY_STRING") or request.method == "POST"):
        # A number in the address or a form that no time holds: asking is at fault. What the database refuses may be our own fault.
        return HttpResponse(loader.get_template("400.html").render({"request": {"id": id_of(request)}}), status=400)
    if problem.status_code == 503:
        return HttpResponse(_broken(request, problem), status=503, headers={"Retry-After": str(RETRY_AFTER_S)})
    return HttpResponse(_broken(request, problem), status=500)


def _broken(request: HttpRequest, problem: Problem) -> str:
    """The page with the request's number, by which the log is searched; nothing else is asked, it may be what broke."""
    page = loader.get_template(f"{problem.status_code}.html")
    return page.render({"request": {"id": id_of(request)}, "code": problem.code})


def _is_api(request: HttpRequest) -> bool:
    return request.path_info == "/api" or request.path_info.startswith("/api/")
