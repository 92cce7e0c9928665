"""Who is told."""

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from decisioning.access.quotas import QuotaExceeded
from decisioning.access.scopes import Scope
from decisioning.board import once
from decisioning.board.downloads import spreadsheet
from decisioning.board.forms import WebhookForm
from decisioning.board.presenters import (
    exports,
    records,
    webhooks,
)
from decisioning.board.views.base import MADE_ALREADY, page, person, require_scope, who
from decisioning.ledger import channels
from decisioning.ledger.models import Channel, Delivery
from decisioning.literals import MOST


@require_http_methods(["GET", "HEAD", "POST"])
@person
def webhooks_page(request: HttpRequest) -> HttpResponse:
    """List and add receivers; a new one's secret is in this one answer and nowhere else."""
    principal = who(request)
    if not principal.may(Scope.KEYS):
        raise PermissionDenied("This needs the right keys:manage in a team.")
    now, made, status = timezone.now(), None, 200
    form = WebhookForm(request.POST or None)
    form.fields["team"].queryset = records.teams_with(principal, Scope.KEYS)  # type: ignore[attr-defined]
    if request.method == "POST":
        if once.taken(request):
            messages.warning(
                request, f"{MADE_ALREADY} Its secret is shown once: where it is lost, delete that webhook."
            )
            return redirect("webhooks")
        status = 422
        if form.is_valid():
            try:
                channel, secret = channels.open_channel(**form.cleaned_data, by=principal.owner, now=now)
            except (channels.ChannelRefused, QuotaExceeded) as refusal:
                form.add_error(refusal.errors[0].pointer.removeprefix("/") if refusal.errors else None, refusal.message)
            else:
                once.take(request)
                status, made = 201, {"secret": secret, "url": reverse("webhook", args=[channel.pk])}
                form = WebhookForm()
                form.fields["team"].queryset = records.teams_with(principal, Scope.KEYS)  # type: ignore[attr-defined]
    shown = webhooks.webhooks(principal, now=now) | {"form": form, "made": made, "once": once.number()}
    return page(request, "board/webhooks.html", shown, here="profile", title="Webhooks", status=status, exact=False)


def _channel(request: HttpRequest, pk: int) -> Channel:
    channel = Channel.objects.select_related("team").filter(pk=pk).first() if pk <= MOST else None
    if channel is None:
        raise Http404(str(pk))
    require_scope(request, Scope.KEYS, channel.team_id)
    return channel


@require_GET
@person
def webhook(request: HttpRequest, pk: int) -> HttpResponse:
    """One receiver with what became of its messages."""
    channel = _channel(request, pk)
    shown = webhooks.webhook(channel, request.GET, now=timezone.now())
    return page(request, "board/webhook.html", shown, here="profile", title=channel.name, exact=False)


@require_GET
@person
def deliveries_csv(request: HttpRequest, pk: int) -> HttpResponse:
    return spreadsheet(f"deliveries-{pk}.csv", exports.of_deliveries(_channel(request, pk), request.GET))


@require_POST
@person
def webhook_test(request: HttpRequest, pk: int) -> HttpResponse:
    channels.try_out(_channel(request, pk), by=who(request).owner, now=timezone.now())
    messages.success(request, "A test is on its way. Load this page again in a few seconds to see whether it arrived.")
    return redirect("webhook", pk=pk)


@require_POST
@person
def webhook_again(request: HttpRequest, pk: int, delivery: int) -> HttpResponse:
    found = Delivery.objects.select_related("message", "channel").filter(channel=_channel(request, pk))
    wanted = found.filter(pk=delivery).first() if delivery <= MOST else None
    if wanted is None:
        raise Http404(str(delivery))
    try:
        channels.send_again(wanted, now=timezone.now())
    except channels.ChannelRefused as refusal:
        messages.error(request, str(refusal))
    else:
        messages.success(request, f"msg_{wanted.message_id} is on its way again.")
    return redirect("webhook", pk=pk)


@require_http_methods(["GET", "HEAD", "POST"])
@person
def webhook_delete(request: HttpRequest, pk: int) -> HttpResponse:
    channel = _channel(request, pk)
    if request.method == "POST":
        channels.close_channel(channel)
        messages.success(request, f"{channel} is deleted; nothing is sent to it any more.")
        return redirect("webhooks")
    asked = {
        "crumb": channel.name,
        "back": reverse("webhook", args=[pk]),
        "title": f"Delete {channel}?",
        "lines": ["What waits in its queue is dropped.", "Its secret is gone; a new webhook gets a new one."],
        "button": "Delete",
        "tone": "delete",
    }
    return page(request, "board/confirm.html", asked, here="profile", title=str(asked["title"]), exact=False)
