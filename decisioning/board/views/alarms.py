"""What is wrong, and people's answers to it."""

from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from decisioning.access.scopes import Scope
from decisioning.board import words
from decisioning.board.forms import SnoozeForm
from decisioning.board.presenters import alarms
from decisioning.board.views.base import page, person, require_scope, who
from decisioning.ledger import snoozing
from decisioning.ledger.models import Alarm
from decisioning.literals import MOST


@require_GET
@person
def alarms_page(request: HttpRequest) -> HttpResponse:
    shown = alarms.page(who(request), now=timezone.now())
    return page(request, "board/alarms.html", shown, here="freshness", title="Alarms", exact=False)


@require_GET
@person
def alarm(request: HttpRequest, pk: int) -> HttpResponse:
    """One alarm; messages lead here. One that is over is not there any more, which is said."""
    found = Alarm.objects.filter(pk=pk).first() if pk <= MOST else None
    if found is None:
        gone = {"gone": f"There is no alarm {pk} that you may see: it is over, or another team's."}
        shown = alarms.page(who(request), now=timezone.now()) | gone
        return page(request, "board/alarms.html", shown, here="freshness", title="Alarms", status=404, exact=False)
    return _shown(request, found, SnoozeForm())


@require_POST
@person
def alarm_snooze(request: HttpRequest, pk: int) -> HttpResponse:
    found, form, now = _found(request, pk), SnoozeForm(request.POST), timezone.now()
    if form.is_valid():
        try:
            snoozing.snooze(
                found, until=form.instant(now), reason=form.cleaned_data["reason"], by=who(request).owner, now=now
            )
        except snoozing.SnoozeRefused as refusal:
            for fault in refusal.errors:
                form.add_error(fault.pointer.removeprefix("/"), fault.detail)
    if not form.is_valid():
        return _shown(request, found, form, status=422)
    messages.success(request, f"Nothing is told of it until {words.instant(found.snoozed_until, now)}.")
    return redirect("alarm", pk=pk)


@require_POST
@person
def alarm_wake(request: HttpRequest, pk: int) -> HttpResponse:
    found = _found(request, pk)
    snoozing.wake(Alarm.objects.filter(pk=found.pk))
    messages.success(request, "It is snoozed no longer.")
    return redirect("alarm", pk=pk)


@require_POST
@person
def alarm_acknowledge(request: HttpRequest, pk: int) -> HttpResponse:
    """Acknowledge it; `undo` takes that back."""
    found = _found(request, pk)
    if request.POST.get("undo"):
        snoozing.take_back(found)
        messages.success(request, "Nobody deals with it: it is told again as it spreads.")
    else:
        snoozing.acknowledge(found, by=who(request).owner, now=timezone.now())
        messages.success(request, "You deal with it: only its end is told from now on.")
    return redirect("alarm", pk=pk)


def _found(request: HttpRequest, pk: int) -> Alarm:
    found = Alarm.objects.filter(pk=pk).first() if pk <= MOST else None
    if found is None:
        raise Http404(str(pk))
    require_scope(request, Scope.WRITE, found.team_id)
    return found


def _shown(request: HttpRequest, found: Alarm, form: SnoozeForm, *, status: int = 200) -> HttpResponse:
    shown: dict[str, Any] = alarms.one(found, who(request), now=timezone.now()) | {"form": form}
    title = shown["alarm"]["title"]
    return page(request, "board/alarm.html", shown, here="freshness", title=title, status=status, exact=False)
