"""A person's own pages: profile and keys."""

from typing import cast

from django.contrib import messages
from django.contrib.auth.models import User
from django.core.exceptions import BadRequest, PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from decisioning.access import keys as access_keys
from decisioning.access.models import ApiKey
from decisioning.access.scopes import Scope
from decisioning.board import once, zones
from decisioning.board.forms import KeyForm
from decisioning.board.presenters import (
    frame,
    records,
)
from decisioning.board.views.base import MADE_ALREADY, page, person, require_scope, who


@require_GET
@person
def profile(request: HttpRequest) -> HttpResponse:
    user = cast("User", request.user)
    shown = records.profile(who(request), email=user.email, is_staff=user.is_staff, joined=user.date_joined)
    shown["zones"] = frame.options([(name, name.replace("_", " ")) for name in zones.names()], zones.name_of(request))
    return page(request, "board/profile.html", shown, here="profile", title="Profile")


@require_POST
@person
def profile_zone(request: HttpRequest) -> HttpResponse:
    """In which time zone this browser reads from now on."""
    name = request.POST.get("zone", "")
    if name not in zones.names():
        raise BadRequest("There is no such time zone.")
    messages.success(request, f"Times are shown in {name.replace('_', ' ')} from now on.")
    response = redirect("profile")
    zones.keep(response, name)
    return response


@require_http_methods(["GET", "HEAD", "POST"])
@person
def keys(request: HttpRequest) -> HttpResponse:
    """List and make keys; a new one's secret is in this one answer and nowhere else."""
    principal = who(request)
    if not principal.may(Scope.KEYS):
        raise PermissionDenied("This needs the right keys:manage in a team.")
    now, made, status = timezone.now(), None, 200
    form = KeyForm(request.POST or None)
    form.fields["team"].queryset = records.teams_with(principal, Scope.KEYS)  # type: ignore[attr-defined]
    if request.method == "POST":
        if once.taken(request):
            messages.warning(
                request, f"{MADE_ALREADY} A key's secret is shown once: where it is lost, revoke that key."
            )
            return redirect("keys")
        status = 422
        if form.is_valid():
            try:
                made = records.make_key(form.cleaned_data, owner=cast("User", request.user), now=now)
            except access_keys.KeyRefused as refusal:
                form.add_error(None, str(refusal))
            else:
                once.take(request)
                status = 201
                form = KeyForm()
                form.fields["team"].queryset = records.teams_with(principal, Scope.KEYS)  # type: ignore[attr-defined]
    shown = records.keys(principal, now=now) | {"form": form, "made": made, "once": once.number()}
    return page(request, "board/keys.html", shown, here="profile", title="Keys", status=status, exact=False)


@require_http_methods(["GET", "HEAD", "POST"])
@person
def key_revoke(request: HttpRequest, pk: int) -> HttpResponse:
    key = ApiKey.objects.select_related("team").filter(pk=pk).first()
    if key is None:
        raise Http404(str(pk))
    require_scope(request, Scope.KEYS, key.team_id)
    if request.method == "POST":
        access_keys.revoke(ApiKey.objects.filter(pk=pk), now=timezone.now())
        messages.success(request, f"{key} is revoked; it is refused from now on.")
        return redirect("keys")
    asked = {
        "crumb": "Keys",
        "back": reverse("keys"),
        "title": f"Revoke {key}?",
        "lines": [
            "Programs that use it are refused from their next request on.",
            "This cannot be undone; make a new key instead.",
        ],
        "button": "Revoke",
        "tone": "delete",
    }
    return page(request, "board/confirm.html", asked, here="profile", title=str(asked["title"]), exact=False)
