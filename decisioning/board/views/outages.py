"""Planned outages: listed, made, ended before their time, taken back."""

from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_http_methods, require_POST

from decisioning.access.scopes import Scope
from decisioning.board import once, words
from decisioning.board.forms import OutageForm
from decisioning.board.presenters import outages, records
from decisioning.board.views.base import MADE_ALREADY, page, person, require_scope, who
from decisioning.literals import MOST
from telemetry import outages as domain
from telemetry.models import Outage, Source


@require_http_methods(["GET", "HEAD", "POST"])
@person
def outages_page(request: HttpRequest) -> HttpResponse:
    """List them, and plan one more; `?metric=` and `?source=` fill the form."""
    principal, now, status = who(request), timezone.now(), 200
    teams = records.teams_with(principal, Scope.TELEMETRY)
    form: OutageForm | None = None
    if teams.exists():
        chosen = {"metrics": request.GET.get("metric", ""), "sources": request.GET.getlist("source")}
        form = OutageForm(request.POST or None, initial=chosen)
        form.fields["team"].queryset = teams  # type: ignore[attr-defined]
        known = Source.objects.filter(team__in=teams).order_by("key").values_list("key", flat=True)
        form.fields["sources"].choices = [(key, key) for key in known]  # type: ignore[attr-defined]
    if request.method == "POST":
        if form is None:
            raise PermissionDenied("This needs the right telemetry:write in a team.")
        if once.taken(request):
            messages.warning(request, MADE_ALREADY)
            return redirect("outages")
        status = 422
        if form.is_valid():
            try:
                made = domain.plan(form.outage(), team=form.cleaned_data["team"], now=now)
            except domain.OutageRefused as refusal:
                for fault in refusal.errors:
                    form.add_error(form.FIELDS.get(fault.pointer.split("/")[1]), fault.detail)
            else:
                once.take(request)
                messages.success(request, f"Nothing is expected of {outages.of(made)} {outages.said(made, now)}")
                return redirect("outages")
    shown: dict[str, Any] = outages.page(principal, request.GET, now=now) | {"form": form, "once": once.number()}
    return page(
        request, "board/outages.html", shown, here="freshness", title="Planned outages", status=status, exact=False
    )


@require_POST
@person
def outage_end(request: HttpRequest, pk: int) -> HttpResponse:
    """It is over now: what is due from here on is expected again."""
    found, now = _found(request, pk), timezone.now()
    try:
        domain.change(found, {"ends_at": now}, now=now)
    except domain.OutageRefused as refusal:
        messages.error(request, str(refusal))
    else:
        messages.success(request, f"The outage ends now, {words.instant(now, now)}. Data is expected again.")
    return redirect("outages")


@require_http_methods(["GET", "HEAD", "POST"])
@person
def outage_take_back(request: HttpRequest, pk: int) -> HttpResponse:
    found, now = _found(request, pk), timezone.now()
    if request.method == "POST":
        domain.take_back(found)
        messages.success(request, "The outage is taken back, as if it had never been planned.")
        return redirect("outages")
    asked = {
        "crumb": "Planned outages",
        "back": reverse("outages"),
        "title": f"Take back the outage of {outages.of(found)}?",
        "lines": [
            outages.said(found, now),
            "What was due in it counts as missing where no row came, also at looks of the past: all is judged anew.",
            "The audit and the timeline of every experiment concerned say who took it back.",
        ],
        "button": "Take it back",
        "tone": "late",
    }
    return page(request, "board/confirm.html", asked, here="freshness", title=str(asked["title"]), exact=False)


def _found(request: HttpRequest, pk: int) -> Outage:
    found = Outage.objects.select_related("team").filter(pk=pk).first() if pk <= MOST else None
    if found is None:
        raise Http404(str(pk))
    require_scope(request, Scope.TELEMETRY, found.team_id)
    return found
