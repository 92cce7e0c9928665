"""What comes in and how old it is: freshness, refresh log, quarantine, sources."""

from collections.abc import Mapping
from typing import Any, cast

from django.contrib import messages
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from decisioning.access.middleware import has_room
from decisioning.access.scopes import Scope
from decisioning.board.presenters import (
    feeds,
    records,
)
from decisioning.board.views.base import page, person, require_scope, who
from decisioning.refusals import Fault, Refused
from experiments import plan
from experiments.expected import in_words
from experiments.models import Metric
from telemetry import events
from telemetry.feeds import proposal
from telemetry.models import QuarantinedEvent, Source
from telemetry.sources import runs
from telemetry.sources.preview import preview
from telemetry.sources.refusals import SourceFailed, SourceRefused


@require_GET
@person
def freshness_page(request: HttpRequest) -> HttpResponse:
    shown = feeds.page(who(request), request.GET, now=timezone.now())
    return page(request, "board/freshness.html", shown, here="freshness", title="Freshness")


@require_http_methods(["GET", "HEAD", "POST"])
@person
def schedule(request: HttpRequest, key: str) -> HttpResponse:
    """Which schedule the rows of a metric show, as a page or as a part of one; POST takes what is proposed."""
    metric = get_object_or_404(Metric.objects.select_related("team").prefetch_related("schedules"), key=key)
    now, may = timezone.now(), feeds.may_schedule(who(request), metric)
    if request.method == "POST" and not may:
        raise PermissionDenied(
            f"The schedule of {key} is changed by its own team, with experiments:write, or by an admin."
        )
    found = proposal(metric, now=now)
    if request.method == "POST":
        if found.expected is None:
            messages.warning(request, f"There is nothing to take any more. {found.detail}")
        else:
            plan.redefine(metric, plan.NewMetric(key=key, expected=found.expected), now=now)
            messages.success(
                request, f"{key} is due {in_words(found.expected)} from now on. Before: {in_words(found.configured)}."
            )
        return redirect(f"{reverse('freshness')}?q={key}")
    shown = feeds.proposed(metric, found, now=now, may=may)
    if request.headers.get("HX-Request"):
        return render(request, "board/_schedule.html", {"proposed": shown})
    return page(request, "board/schedule.html", shown, here="freshness", title=shown["title"], exact=False)


@require_GET
@person
def refresh_log(request: HttpRequest) -> HttpResponse:
    shown = records.refresh_log(request.GET, now=timezone.now())
    return page(request, "board/refresh_log.html", shown, here="freshness", title="Refresh log", exact=False)


@require_GET
@person
def quarantine(request: HttpRequest) -> HttpResponse:
    shown = records.quarantine(who(request), request.GET, now=timezone.now())
    return page(request, "board/quarantine.html", shown, here="freshness", title="Quarantine", exact=False)


@require_POST
@person
def quarantine_replay(request: HttpRequest, pk: int) -> HttpResponse:
    """Take an event in that waits; one that creates an experiment is replayed through the API, which knows that form."""
    held = QuarantinedEvent.objects.filter(pk=pk).first()
    if held is None:
        raise Http404(str(pk))
    require_scope(request, Scope.TELEMETRY, held.team_id)

    def create(_data: Mapping[str, Any]) -> None:
        detail = f"It creates an experiment: replay it with POST /api/quarantine/{pk}/replay."
        raise Refused.of(Fault("/type", "not_here", detail), code="not_here")

    try:
        taken = events.replay(held, create=create, now=timezone.now())
    except events.EventsRefused as refusal:
        messages.error(request, str(refusal))
        return page(request, "board/quarantine.html", records.quarantine(who(request), request.GET, now=timezone.now()),
                    here="freshness", title="Quarantine", status=refusal.status, exact=False)  # fmt: skip
    messages.success(
        request, f"Replayed: {taken.accepted or taken.duplicates} event, {taken.new_rows + taken.changed_rows} rows."
    )
    return redirect("quarantine")


@require_GET
@person
def sources(request: HttpRequest) -> HttpResponse:
    shown = records.sources(who(request), is_staff=cast("User", request.user).is_staff, now=timezone.now())
    return page(request, "board/sources.html", shown, here="freshness", title="Sources", exact=False)


@has_room("files")
@require_POST
@person
def source_try(request: HttpRequest, pk: int) -> HttpResponse:
    """What a run would do: the query is run and its first rows are taken in, then that is undone."""
    source = get_object_or_404(Source.objects.select_related("team"), pk=pk)
    require_scope(request, Scope.TELEMETRY, source.team_id)
    now = timezone.now()
    shown = records.sources(who(request), is_staff=cast("User", request.user).is_staff, now=now)
    status = 200
    try:
        shown["tried"] = records.tried(source, preview(source, now=now), now=now)
    except (SourceRefused, SourceFailed) as refusal:
        status, shown["failed"] = 422, {"key": source.key, "text": str(refusal)}
    return page(request, "board/sources.html", shown, here="freshness", title="Sources", status=status, exact=False)


@require_POST
@person
def source_refresh(request: HttpRequest, pk: int) -> HttpResponse:
    """Pull a source now; a job does it, and the refresh log tells what came of it."""
    source = get_object_or_404(Source.objects.select_related("team"), pk=pk)
    require_scope(request, Scope.TELEMETRY, source.team_id)
    try:
        runs.queue(source, now=timezone.now())
    except SourceRefused as refusal:
        messages.error(request, str(refusal))
    else:
        messages.success(request, f"{source.key} is asked for. What came of it stands in the refresh log.")
    return redirect(f"{reverse('refresh_log')}?job=source/{source.key}")
