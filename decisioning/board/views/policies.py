"""Policies: read, written, backtested, activated."""

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.utils import timezone
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from decisioning.access.scopes import Scope
from decisioning.board import once
from decisioning.board.downloads import spreadsheet
from decisioning.board.forms import PolicyForm
from decisioning.board.presenters import (
    exports,
    policies,
    records,
)
from decisioning.board.views.base import MADE_ALREADY, page, person, require_scope, who
from gates import backtests
from gates import policies as policy_rules
from gates.models import PolicyVersion


@require_GET
@person
def policies_page(request: HttpRequest) -> HttpResponse:
    return page(request, "board/policies.html", policies.policies(), here="policies", title="Policies")


@require_GET
@person
def policy(request: HttpRequest, pk: int, number: int | None = None) -> HttpResponse:
    version = policies.find(pk, number)
    if version is None:
        raise Http404(str(pk))
    shown = policies.policy(version, who(request), now=timezone.now())
    return page(request, "board/policy.html", shown, here="policies", title=f"Policy {version}", exact=False)


@require_http_methods(["GET", "HEAD", "POST"])
@person
def policy_next(request: HttpRequest, pk: int) -> HttpResponse:
    """The next version of a team's policy, from what judges now; it judges nothing before it is backtested and activated."""
    live = policies.find(pk, None)
    if live is None:
        raise Http404(str(pk))
    if live.team_id is None:
        raise PermissionDenied("This policy ships with the portal and never changes.")
    require_scope(request, Scope.POLICIES, live.team_id)
    return _written(request, live, copied=False)


@require_http_methods(["GET", "HEAD", "POST"])
@person
def policy_copy(request: HttpRequest, pk: int, number: int) -> HttpResponse:
    """A version of any policy as the first one of a new policy of a team."""
    version = policies.find(pk, number)
    if version is None:
        raise Http404(str(pk))
    if not who(request).may(Scope.POLICIES):
        raise PermissionDenied("This needs the right policies:write in a team.")
    return _written(request, version, copied=True)


def _written(request: HttpRequest, source: PolicyVersion, *, copied: bool) -> HttpResponse:
    """Look first, as often as one likes; then it is kept."""
    now, principal, status = timezone.now(), who(request), 200
    form = PolicyForm(request.POST or None, initial={"body": source.body})
    if copied:
        form.fields["team"].queryset = records.teams_with(principal, Scope.POLICIES)  # type: ignore[attr-defined]
    else:
        del form.fields["team"], form.fields["name"]
    looked = request.POST.get("do") == "look"
    if request.method == "POST":
        status = 200 if form.is_valid() and looked else 422
        if form.is_valid() and not looked:
            if once.taken(request):
                messages.warning(request, MADE_ALREADY)
                return redirect("policies")
            try:
                made = policies.write(form.cleaned_data, source, by=principal, now=now)
            except policy_rules.PolicyRefused as refusal:
                form.add_error("name" if refusal.code == "key_taken" else None, refusal.message)
            else:
                once.take(request)
                messages.success(
                    request,
                    f"{made} is kept."
                    + ("" if copied else " It judges nothing before it is backtested and activated."),
                )
                return redirect("policy_version", pk=made.policy_id, number=made.number)
    shown = policies.writing(form, source, copied=copied) | {"once": once.number()}
    return page(
        request, "board/policy_write.html", shown, here="policies", title=shown["title"], status=status, exact=False
    )


def _candidate(request: HttpRequest, pk: int, number: int) -> PolicyVersion:
    """A version the person may see and change; a shipped one belongs to admins."""
    version = policies.find(pk, number)
    if version is None:
        raise Http404(str(pk))
    if version.team_id is None and not who(request).is_admin:
        raise PermissionDenied("This policy ships with the portal.")
    if version.team_id is not None:
        require_scope(request, Scope.POLICIES, version.team_id)
    return version


@require_GET
@person
def policy_backtest_csv(request: HttpRequest, pk: int, number: int) -> HttpResponse:
    version = policies.find(pk, number)
    if version is None:
        raise Http404(str(pk))
    name = f"{version.policy.name}-{version.number}-backtest.csv"
    return spreadsheet(name, exports.of_backtest(version))


@require_POST
@person
def policy_backtest(request: HttpRequest, pk: int, number: int) -> HttpResponse:
    """Ask that a candidate is held against what is live; a job does it."""
    backtests.ask(_candidate(request, pk, number), by=who(request), now=timezone.now())
    messages.success(request, "The backtest is asked for. Its report stands below when it is done.")
    return redirect("policy_version", pk=pk, number=number)


@require_POST
@person
def policy_activate(request: HttpRequest, pk: int, number: int) -> HttpResponse:
    """Let a version judge: after a backtest, and by somebody other than its author."""
    version = _candidate(request, pk, number)
    try:
        policy_rules.activate(version, by=who(request), now=timezone.now(), backtested=backtests.passed(version))
    except policy_rules.PolicyRefused as refusal:
        messages.error(request, refusal.message)
        shown = policies.policy(version, who(request), now=timezone.now())
        title = f"Policy {version}"
        return page(request, "board/policy.html", shown, here="policies", title=title, status=409, exact=False)
    messages.success(request, f"{version} judges from now on.")
    return redirect("policy_version", pk=pk, number=number)
