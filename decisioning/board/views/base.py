"""What every web door shares: who asks, a page with its frame, a table as a spreadsheet.

People come in by session. Reading needs the scope `experiments:read` by being in a team; what the database hides is 404.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import wraps
from typing import Any, cast

from django.core.exceptions import BadRequest, PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from decisioning.access.login import ask_to_sign_in, keeps_unsent, sign_in_url
from decisioning.access.middleware import about
from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope
from decisioning.board import zones
from decisioning.board.downloads import MOST, spreadsheet
from decisioning.board.presenters import (
    frame,
    records,
    webhooks,
)
from decisioning.board.presenters.experiment.context import ExperimentContext
from experiments.models import Experiment

type View = Callable[..., HttpResponse]


def person(view: View) -> View:
    """Only somebody who is signed in; a key is for the API. No answer is kept by a browser."""
    return never_cache(signed_in(view))


def signed_in(view: View) -> View:
    """As `person`, for what a browser may keep."""

    @keeps_unsent
    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if who(request).kind != "user":
            return ask_to_sign_in(request)
        if any("\x00" in value for sent in (request.GET, request.POST) for value in sent.values()):
            raise BadRequest("No text holds a NUL character.")
        with timezone.override(zones.zone_of(request)):
            return view(request, *args, **kwargs)

    return guarded


def polled(view: View) -> View:
    """As `person`, for what an open page asks for again and again: without a user it says so in its place, and asks no more."""

    @wraps(view)
    def asked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if request.headers.get("HX-Request") and who(request).kind != "user":
            return render(request, "board/_signed_out.html", {"url": sign_in_url(request)}, status=HTTP_STOP_POLLING)
        return person(view)(request, *args, **kwargs)

    return asked


HTTP_STOP_POLLING = 286  # htmx's own


def who(request: HttpRequest) -> Principal:
    return cast("Principal", request.principal)  # type: ignore[attr-defined]


def page(
    request: HttpRequest,
    template: str,
    content: Mapping[str, Any],
    *,
    here: str,
    title: str,
    status: int = 200,
    exact: bool = True,
) -> HttpResponse:
    """A whole page: `content` is what the presenter made, the frame goes around it."""
    around = frame.frame(who(request), here=here, exact=exact, now=timezone.now())
    around["notices"] = webhooks.notices(who(request))
    return render(request, template, {"page": content, "frame": around, "title": title}, status=status)


def export(
    name: str,
    rows: Callable[[Principal, QueryDict, datetime], Iterable[Iterable[object]]],
    *,
    need: Scope | None = None,
) -> View:
    """The door of one table of the portal as a spreadsheet; `need` is asked for in any team."""

    @require_GET
    @person
    def view(request: HttpRequest) -> HttpResponse:
        if need and not who(request).may(need):
            raise PermissionDenied(f"This needs the right {need} in a team.")
        return spreadsheet(f"{name}.csv", rows(who(request), request.GET, timezone.now()))

    return view


def export_of(name: str, rows: Callable[[ExperimentContext], Iterable[Iterable[object]]], *, most: int = MOST) -> View:
    """The same for a table of one experiment; most: rows that are taken along."""

    @require_GET
    @person
    def view(request: HttpRequest, ref: str) -> HttpResponse:
        experiment = experiment_or_404(request, ref)
        context = ExperimentContext(experiment, who(request), now=timezone.now())
        return spreadsheet(f"{experiment.key}-{name}.csv", rows(context), most=most)

    return view


def experiment_or_404(request: HttpRequest, ref: str) -> Experiment:
    """The experiment, or 404 when there is none or it is another team's."""
    experiment = records.find_experiment(ref)
    if experiment is None:
        raise Http404(ref)
    return experiment


def require_scope(request: HttpRequest, scope: Scope, team_id: int) -> None:
    about(request, team_id)
    if not who(request).may(scope, team_id):
        raise PermissionDenied(f"This needs the right {scope} in the team.")


MADE_ALREADY = "It was made already: this form was sent a second time, and made no second one."
