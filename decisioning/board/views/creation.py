"""A new experiment."""

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods

from decisioning.access.scopes import Scope
from decisioning.board import once, zones
from decisioning.board.forms import ExperimentForm
from decisioning.board.presenters import (
    creation,
    records,
)
from decisioning.board.views.base import MADE_ALREADY, page, person, who


@require_http_methods(["GET", "HEAD", "POST"])
@person
def experiment_new(request: HttpRequest) -> HttpResponse:
    """Name, hypothesis, KPIs; the dashboard, the gates and the log come with it."""
    principal = who(request)
    form = ExperimentForm(request.POST or None)
    teams = records.teams_with(principal, Scope.WRITE)
    form.fields["team"].queryset = teams  # type: ignore[attr-defined]
    form.fields["comes_zone"].initial = zones.name_of(request)
    if not principal.may(Scope.WRITE) or not teams:
        raise PermissionDenied("Creating needs the right experiments:write in a team.")
    status = 200
    if request.method == "POST":
        if once.taken(request):
            messages.warning(request, MADE_ALREADY)
            return redirect("board")
        status = 422
        if form.is_valid() and (made := creation.create(form, by=principal, now=timezone.now())):
            once.take(request)
            messages.success(
                request, f"{made.name} is {made.get_status_display().lower()}. Send its first rows, and it is judged."
            )
            for warning in creation.warnings(made):
                messages.warning(request, warning)
            return redirect("experiment", ref=made.key)
    return page(
        request,
        "board/new.html",
        creation.page(form, teams, now=timezone.now()) | {"once": once.number()},
        here="board",
        title="New experiment",
        status=status,
        exact=False,
    )


@require_GET
@person
def planned_duration(request: HttpRequest) -> HttpResponse:
    return render(
        request,
        "board/_duration.html",
        {"duration": creation.duration(request.GET, records.teams_with(who(request), Scope.WRITE), now=timezone.now())},
    )
