"""Who is in a team, and who comes into it."""

from typing import cast
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.forms import UserCreationForm
from django.contrib.auth.models import User
from django.core.exceptions import BadRequest
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from decisioning.access import members
from decisioning.access.middleware import has_room
from decisioning.access.models import Invitation, Membership, Team
from decisioning.access.scopes import Scope
from decisioning.board import once, words
from decisioning.board.forms import InviteForm
from decisioning.board.presenters import members as member_pages
from decisioning.board.views.base import MADE_ALREADY, page, person, require_scope, who


def _team(request: HttpRequest, ref: str, *, need: Scope) -> Team:
    found = get_object_or_404(Team, key=ref)
    require_scope(request, need, found.pk)
    return found


@require_http_methods(["GET", "HEAD", "POST"])
@person
def team(request: HttpRequest, ref: str) -> HttpResponse:
    """Members and roles; an admin of the team invites here. The link is in this one answer and nowhere else."""
    of = _team(request, ref, need=Scope.KEYS if request.method == "POST" else Scope.READ)
    now, made, status = timezone.now(), None, 200
    form = InviteForm(request.POST or None)
    if request.method == "POST":
        if once.taken(request):
            messages.warning(request, f"{MADE_ALREADY} Where its link is lost, withdraw that invitation.")
            return redirect("team", ref=of.key)
        status = 422
        if form.is_valid():
            invitation, token = members.invite(of, **form.cleaned_data, by=who(request), now=now)
            once.take(request)
            url = f"{settings.PUBLIC_URL}{reverse('join')}?{urlencode({'with': token})}"
            mailed = members.mail(invitation, url) if invitation.email else None
            status, made, form = 201, {"url": url, "mailed": mailed, "email": invitation.email}, InviteForm()
    shown = member_pages.team(of, who(request), form, now=now) | {"made": made, "once": once.number()}
    return page(request, "board/team.html", shown, here="profile", title=of.name, status=status, exact=False)


def _member(request: HttpRequest, ref: str, pk: int) -> Membership:
    of = _team(request, ref, need=Scope.KEYS)
    return get_object_or_404(Membership.objects.select_related("user", "team"), team=of, pk=pk)


@require_POST
@person
def member_role(request: HttpRequest, ref: str, pk: int) -> HttpResponse:
    member, role = _member(request, ref, pk), request.POST.get("role", "")
    if role not in Membership.Role.values:
        raise BadRequest("There is no such role.")
    try:
        members.change_role(member, role)
    except members.MemberRefused as refusal:
        messages.error(request, str(refusal))
    else:
        messages.success(request, f"{member.user} is {role} in {member.team.name} from now on.")
    return redirect("team", ref=ref)


@require_http_methods(["GET", "HEAD", "POST"])
@person
def member_remove(request: HttpRequest, ref: str, pk: int) -> HttpResponse:
    member, now, error = _member(request, ref, pk), timezone.now(), ""
    if request.method == "POST":
        name, of = member.user.get_username(), member.team.name
        try:
            ended = members.remove(member, now=now)
        except members.MemberRefused as refusal:
            error = str(refusal)
        else:
            keys = f", and {words.plural(ended, 'key')} of theirs ended" if ended else ""
            messages.success(request, f"{name} is out of {of} from now on{keys}.")
            return redirect("profile") if member.user_id == who(request).id else redirect("team", ref=ref)
    shown = member_pages.leaving(member, now=now) | {"error": error}
    return page(
        request,
        "board/member_remove.html",
        shown,
        here="profile",
        title=shown["title"],
        status=409 if error else 200,
        exact=False,
    )


@require_POST
@person
def invitation_withdraw(request: HttpRequest, ref: str, pk: int) -> HttpResponse:
    members.withdraw(get_object_or_404(Invitation, team=_team(request, ref, need=Scope.KEYS), pk=pk))
    messages.success(request, "The invitation is withdrawn; its link leads nowhere now.")
    return redirect("team", ref=ref)


@has_room("passwords")
@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def join(request: HttpRequest) -> HttpResponse:
    """Who follows an invitation: as who they are when they are signed in, else with a new account.

    `?with=` holds the token: a path would stand in logs and in the audit.
    """
    token = request.GET.get("with", "")
    now, signed, status = timezone.now(), who(request).kind == "user", 200
    invitation = members.invitation(request, token, now=now)
    if invitation is None:
        raise Http404("There is no such invitation.")
    form: UserCreationForm[User] = UserCreationForm(request.POST or None)
    error = ""
    if request.method == "POST":
        status = 422
        if signed or form.is_valid():
            user = cast("User", request.user) if signed else form.save(commit=False)
            try:
                members.join(request, invitation, user, now=now)
            except members.MemberRefused as refusal:
                status, error = 409, str(refusal)
            else:
                if not signed:
                    login(request, user)
                messages.success(request, f"You are in {invitation.team.name} now, as {invitation.role}.")
                return redirect("board")
    shown = member_pages.invited(invitation, who(request), form, now=now) | {"error": error}
    return render(request, "board/join.html", {"page": shown}, status=status)
