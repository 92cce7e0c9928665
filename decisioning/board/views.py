"""Web doors: find out who asks, make one domain call or ask one presenter, hand the dict to a template.

People come in by session. Reading needs the scope `experiments:read` by being in a team; what the database hides is 404.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, cast
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import login
from django.contrib.auth.forms import UserCreationForm
from django.contrib.auth.models import User
from django.core.exceptions import BadRequest, PermissionDenied
from django.core.signing import BadSignature
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.cache import patch_vary_headers
from django.utils.html import format_html
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from decisioning.access import keys as access_keys
from decisioning.access import members, pictures
from decisioning.access.login import ask_to_sign_in, keeps_unsent, sign_in_url
from decisioning.access.middleware import about, own_transaction
from decisioning.access.models import ApiKey, Invitation, Membership, Team
from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope
from decisioning.board import once, snapshots, words, zones
from decisioning.board.downloads import MOST_OF_ONE, spreadsheet
from decisioning.board.forms import ExperimentForm, ImageForm, InviteForm, KeyForm, PolicyForm, WebhookForm
from decisioning.board.presenters import (
    creation,
    dossier,
    frame,
    freshness,
    listing,
    policies,
    promises,
    records,
    sheets,
    webhooks,
)
from decisioning.board.presenters import members as member_pages
from decisioning.ledger import channels
from decisioning.ledger.models import Channel, Delivery
from experiments import lifecycle
from experiments.models import Asset, Experiment, Variant
from gates import backtests
from gates import policies as policy_rules
from gates.decisions import DecisionRefused, record_decision
from gates.engine.evidence import EvidenceRefused
from gates.models import PolicyVersion
from telemetry import events
from telemetry.models import QuarantinedEvent, Source
from telemetry.sources import runs
from telemetry.sources.preview import preview
from telemetry.sources.refusals import SourceFailed, SourceRefused

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


def sheet(
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


def sheet_of(name: str, rows: Callable[[dossier.Dossier], Iterable[Iterable[object]]]) -> View:
    """The same for a table of one experiment."""

    @require_GET
    @person
    def view(request: HttpRequest, ref: str) -> HttpResponse:
        e = found(request, ref)
        return spreadsheet(f"{e.key}-{name}.csv", rows(dossier.Dossier(e, who(request), now=timezone.now())))

    return view


def found(request: HttpRequest, ref: str) -> Experiment:
    """The experiment, or 404 when there is none or it is another team's."""
    experiment = records.find_experiment(ref)
    if experiment is None:
        raise Http404(ref)
    return experiment


def allowed(request: HttpRequest, scope: Scope, team_id: int) -> None:
    about(request, team_id)
    if not who(request).may(scope, team_id):
        raise PermissionDenied(f"This needs the right {scope} in the team.")


# The board -------------------------------------------------------------------------------------------------------------


@require_GET
@person
def board(request: HttpRequest) -> HttpResponse:
    now = timezone.now()
    shown = listing.board(who(request), request.GET, now=now) | {"pulse": promises.pulse(who(request), now=now)}
    return page(request, "board/board.html", shown, here="board", title=shown["lead"]["title"])


@require_GET
@person
def board_csv(request: HttpRequest) -> HttpResponse:
    return spreadsheet("experiments.csv", listing.csv_rows(request.GET, now=timezone.now()))


@require_GET
@polled
def news(request: HttpRequest) -> HttpResponse:
    """What came since the board was opened; the list itself never moves under a reader."""
    since = request.GET.get("since", "")
    number = listing.newer_than(int(since)) if since.isdecimal() and len(since) < 19 else 0
    return render(request, "board/_news.html", {"number": number})


@require_GET
@polled
def watch(request: HttpRequest) -> HttpResponse:
    return render(request, "board/_watch.html", {"watch": frame.watchdog(timezone.now())})


# One experiment --------------------------------------------------------------------------------------------------------


@require_GET
@person
def experiment(request: HttpRequest, ref: str) -> HttpResponse:
    return _dossier(request, found(request, ref))


def _dossier(
    request: HttpRequest, e: Experiment, *, answer: Mapping[str, Any] | None = None, status: int = 200
) -> HttpResponse:
    d = dossier.Dossier(e, who(request), now=timezone.now())
    if request.headers.get("HX-Request") and request.method == "POST":
        shown = dossier.verdicts(d, answer=answer)
        return render(request, "board/_decide.html", {"d": shown[0]}, status=status)
    return page(
        request,
        "board/experiment.html",
        dossier.experiment(d, answer=answer),
        here="board",
        title=e.name,
        status=status,
        exact=False,
    )


@require_POST
@person
def decide(request: HttpRequest, ref: str) -> HttpResponse:
    """A person's answer, on the evidence named in the form."""
    e = found(request, ref)
    allowed(request, Scope.REVIEW, e.team_id)
    sent = {name: request.POST.get(name, "") for name in ("action", "override_to", "reason", "evidence_digest")}
    override = sent["action"] == "override"
    try:
        decision = record_decision(
            e,
            digest=sent["evidence_digest"],
            action=sent["action"],
            by=who(request),
            now=timezone.now(),
            override_to=sent["override_to"] if override else "",
            reason=sent["reason"].strip(),
        )
    except DecisionRefused as refusal:
        return _dossier(request, e, answer=sent | _told(refusal, sent), status=refusal.status)
    e.refresh_from_db()
    done = _done(e, decision.override_to or decision.recommendation.action, override=override)
    number, first = listing.waits_next(who(request))
    if first is not None:
        url = f"{reverse('experiment', args=[first.key])}#decide"
        done = format_html('{} Next of {}: <a href="{}">{}</a>', done, number, url, first.name)
    messages.success(request, done)
    response = redirect("experiment", ref=e.key)
    if request.headers.get("HX-Request"):
        return HttpResponse(headers={"HX-Redirect": response.url})  # with a fragment the browser would not reload
    return response


def _told(refusal: DecisionRefused, sent: Mapping[str, str]) -> dict[str, Any]:
    """Where in the form a refusal is shown; what an override lacks is said all at once."""
    if refusal.code == "missing_field":
        return {
            "to_error": "" if sent["override_to"] else "Choose what is done instead.",
            "reason_error": "" if sent["reason"].strip() else "Say why you decide otherwise; one sentence is enough.",
        }
    if refusal.status == 409:
        title = {
            "already_decided": "Somebody has answered already.",
            "recommendation_replaced": "A newer recommendation replaced the one you saw.",
            "recommendation_suspended": "Its inputs are not good just now.",
        }.get(refusal.code, "There is nothing to answer.")
        return {
            "replaced": {"title": title, "text": f"Nothing was recorded. {refusal.message}"},
            "action": "",
        }
    return {"error": refusal.message}


def _done(e: Experiment, did: str, *, override: bool) -> str:
    how = "Overridden, with your reason" if override else "Accepted"
    became = {"scaled": "is scaled", "deleted": "is deleted", "stopped": "is stopped"}.get(e.status, "runs on")
    return f"{how}: {did}. {e.name} {became}."


_ASKS = {
    "running": ("Start", ["From now on its rows are judged.", "Its plan can no longer be changed."]),
    "paused": (
        "Pause",
        ["Rows still arrive and are kept; gates rest until it is started again.", "Paused time does not count as age."],
    ),
    "stopped": (
        "Stop",
        ["It ends without a winner, and cannot be started again.", "A proposal that is open is not answered by this."],
    ),
}


@require_http_methods(["GET", "HEAD", "POST"])
@person
def move(request: HttpRequest, ref: str, status: str) -> HttpResponse:
    """Start, pause, resume or stop, after asking once more."""
    e = found(request, ref)
    allowed(request, Scope.WRITE, e.team_id)
    if status not in _ASKS:
        raise Http404(status)
    error = ""
    if request.method == "POST":
        try:
            lifecycle.ask(e, status, by=who(request), now=timezone.now())
        except lifecycle.TransitionRefused as refusal:
            error = refusal.message
        else:
            messages.success(request, f"{e.name} is {e.get_status_display().lower()}.")
            return redirect("experiment", ref=e.key)
    verb, lines = _ASKS[status]
    verb = "Resume" if status == "running" and e.status == "paused" else verb
    asked = {
        "crumb": e.key,
        "back": reverse("experiment", args=[e.key]),
        "title": f"{verb} {e.name}?",
        "lines": lines if verb != "Resume" else lines[:1],
        "button": verb,
        "tone": "delete" if status == "stopped" else "hold",
        "error": error,
    }
    return page(
        request,
        "board/confirm.html",
        asked,
        here="board",
        title=str(asked["title"]),
        status=409 if error else 200,
        exact=False,
    )


_MADE_ALREADY = "It was made already: this form was sent a second time, and made no second one."


@require_http_methods(["GET", "HEAD", "POST"])
@person
def experiment_new(request: HttpRequest) -> HttpResponse:
    """Name, hypothesis, KPIs; the dashboard, the gates and the log come with it."""
    principal = who(request)
    form = ExperimentForm(request.POST or None)
    teams = records.teams_with(principal, Scope.WRITE)
    form.fields["team"].queryset = teams  # type: ignore[attr-defined]
    if not principal.may(Scope.WRITE) or not teams:
        raise PermissionDenied("Creating needs the right experiments:write in a team.")
    status = 200
    if request.method == "POST":
        if once.taken(request):
            messages.warning(request, _MADE_ALREADY)
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
        creation.page(form, teams) | {"once": once.number()},
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
        {"duration": creation.duration(request.GET, records.teams_with(who(request), Scope.WRITE))},
    )


@require_GET
@person
def report(request: HttpRequest, ref: str) -> HttpResponse:
    """One page for paper: what was proposed, on what, and what became of it."""
    e = found(request, ref)
    d = dossier.Dossier(e, who(request), now=timezone.now())
    return page(
        request, "board/report.html", dossier.experiment(d), here="board", title=f"Report: {e.name}", exact=False
    )


@require_GET
@person
def rows_csv(request: HttpRequest, ref: str) -> HttpResponse:
    e = found(request, ref)
    return spreadsheet(f"{e.key}-rows.csv", dossier.rows(e), most=MOST_OF_ONE)


@require_GET
@person
def evidence(request: HttpRequest, ref: str, digest: str) -> HttpResponse:
    """The canonical JSON, byte for byte as it was hashed."""
    e = found(request, ref)
    try:
        body = dossier.evidence_body(e, digest)
    except EvidenceRefused as refusal:
        return HttpResponse(f"{refusal}\n", status=409, content_type="text/plain")
    if body is None:
        raise Http404(digest)
    name = f"{e.key}-evidence-{digest.removeprefix('sha256:')[:12]}.json"
    return HttpResponse(
        body, content_type="application/json", headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )


@require_POST
@person
def replay(request: HttpRequest, ref: str, digest: str) -> HttpResponse:
    """Compute the evidence anew and say whether it gives the same bytes."""
    e = found(request, ref)
    said = dossier.replayed(e, digest, now=timezone.now())
    if said is None:
        raise Http404(digest)
    if request.headers.get("HX-Request"):
        return render(request, "board/_replayed.html", {"said": said})
    (messages.success if said["same"] else messages.error)(request, said["text"])
    return redirect(reverse("experiment", args=[e.key]) + "#evidence")


@require_POST
@person
def upload(request: HttpRequest, ref: str, variant: str) -> HttpResponse:
    """A picture of one variant, with what it shows in words."""
    e = found(request, ref)
    allowed(request, Scope.WRITE, e.team_id)
    arm = Variant.objects.filter(experiment=e, key=variant).first()
    if arm is None:
        raise Http404(variant)
    form = ImageForm(request.POST, request.FILES)
    if not form.is_valid():
        problem = next(iter(form.errors.items()))
        messages.error(request, f"The picture was not taken. {problem[0].capitalize()}: {problem[1][0]}")
        return redirect(reverse("experiment", args=[e.key]) + "#variants")
    image = form.cleaned_data["image"]
    Asset.objects.create(
        experiment=e, variant=arm, title=image.name[:200], alt=form.cleaned_data["alt"], media_type=form.media_type, body=form.body,
        created_at=timezone.now(),
    )  # fmt: skip
    messages.success(request, f"The picture of {arm} is kept.")
    return redirect(reverse("experiment", args=[e.key]) + "#variants")


@require_GET
@signed_in
def asset(request: HttpRequest, pk: int) -> HttpResponse:
    """A picture, never as anything a browser would run."""
    picture = Asset.objects.filter(pk=pk).first()
    if picture is None:
        raise Http404(str(pk))
    return _picture(bytes(picture.body), picture.media_type)


@require_GET
@signed_in
def asset_small(request: HttpRequest, pk: int) -> HttpResponse:
    """The same picture as lists show it, hundreds of times lighter."""
    if not Asset.objects.filter(pk=pk).exists():
        raise Http404(str(pk))
    return _picture(*_small(pk))


@lru_cache(maxsize=512)
def _small(pk: int) -> tuple[bytes, str]:
    """Kept by the process: a picture never changes, and whether the person may see it was asked before."""
    return pictures.small(bytes(Asset.objects.values_list("body", flat=True).get(pk=pk)))


def _picture(body: bytes, media_type: str) -> HttpResponse:
    """A picture never changes, so the browser of the person who may see it keeps it for a day."""
    headers = {
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": "inline",
        "Cache-Control": "private, max-age=86400, immutable",
    }
    response = HttpResponse(body, content_type=media_type, headers=headers)
    patch_vary_headers(response, ["Cookie"])  # the next person at this browser asks anew
    return response


@require_GET
@own_transaction
def snapshot(request: HttpRequest, token: str) -> HttpResponse:
    """A chart for Slack, which is not signed in: drawn from its own signed address."""
    try:
        picture = snapshots.draw(token)
    except BadSignature as problem:
        raise Http404(token) from problem
    headers = {"Cache-Control": "public, max-age=86400", "X-Content-Type-Options": "nosniff"}
    return HttpResponse(picture, content_type="image/png", headers=headers)


# The portal itself -----------------------------------------------------------------------------------------------------


@require_GET
@person
def freshness_page(request: HttpRequest) -> HttpResponse:
    shown = freshness.page(request.GET, now=timezone.now())
    return page(request, "board/freshness.html", shown, here="freshness", title="Freshness")


@require_GET
@person
def refresh_log(request: HttpRequest) -> HttpResponse:
    shown = records.refresh_log(request.GET, now=timezone.now())
    return page(request, "board/refresh_log.html", shown, here="freshness", title="Refresh log", exact=False)


@require_GET
@person
def refresh_log_csv(request: HttpRequest) -> HttpResponse:
    return spreadsheet("refresh-log.csv", records.refresh_log_rows(request.GET))


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
    allowed(request, Scope.TELEMETRY, held.team_id)

    def create(_data: Mapping[str, Any]) -> None:
        fault = ("/type", "not_here", f"It creates an experiment: replay it with POST /api/quarantine/{pk}/replay.")
        raise events.DataRefused("not_here", 422, [fault])

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


@require_POST
@person
def source_try(request: HttpRequest, pk: int) -> HttpResponse:
    """What a run would do: the query is run and its first rows are taken in, then that is undone."""
    source = get_object_or_404(Source.objects.select_related("team"), pk=pk)
    allowed(request, Scope.TELEMETRY, source.team_id)
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
    allowed(request, Scope.TELEMETRY, source.team_id)
    try:
        runs.queue(source, now=timezone.now())
    except SourceRefused as refusal:
        messages.error(request, str(refusal))
    else:
        messages.success(request, f"{source.key} is asked for. What came of it stands in the refresh log.")
    return redirect(f"{reverse('refresh_log')}?job=source/{source.key}")


@require_GET
@person
def promises_page(request: HttpRequest) -> HttpResponse:
    return page(
        request, "board/slo.html", promises.page(who(request), now=timezone.now()), here="promises", title="Promises"
    )


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
    allowed(request, Scope.POLICIES, live.team_id)
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
                messages.warning(request, _MADE_ALREADY)
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
        allowed(request, Scope.POLICIES, version.team_id)
    return version


@require_GET
@person
def policy_backtest_csv(request: HttpRequest, pk: int, number: int) -> HttpResponse:
    version = policies.find(pk, number)
    if version is None:
        raise Http404(str(pk))
    name = f"{version.policy.name}-{version.number}-backtest.csv"
    return spreadsheet(name, sheets.of_backtest(version))


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


@require_GET
@person
def audit(request: HttpRequest) -> HttpResponse:
    return page(
        request, "board/audit.html", records.audit(request.GET, now=timezone.now()), here="audit", title="Audit log"
    )


@require_GET
@person
def audit_csv(request: HttpRequest) -> HttpResponse:
    return spreadsheet("audit.csv", records.audit_rows(request.GET))


# People and keys -------------------------------------------------------------------------------------------------------


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
                request, f"{_MADE_ALREADY} A key's secret is shown once: where it is lost, revoke that key."
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
    allowed(request, Scope.KEYS, key.team_id)
    if request.method == "POST":
        ApiKey.objects.filter(pk=pk, revoked_at__isnull=True).update(revoked_at=timezone.now())
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


# Who is in a team -------------------------------------------------------------------------------------------------------


def _team(request: HttpRequest, ref: str, *, need: Scope) -> Team:
    found = get_object_or_404(Team, key=ref)
    allowed(request, need, found.pk)
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
            messages.warning(request, f"{_MADE_ALREADY} Where its link is lost, withdraw that invitation.")
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
    get_object_or_404(Invitation, team=_team(request, ref, need=Scope.KEYS), pk=pk).delete()
    messages.success(request, "The invitation is withdrawn; its link leads nowhere now.")
    return redirect("team", ref=ref)


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


# Who is told ------------------------------------------------------------------------------------------------------------


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
                request, f"{_MADE_ALREADY} Its secret is shown once: where it is lost, delete that webhook."
            )
            return redirect("webhooks")
        status = 422
        if form.is_valid():
            try:
                channel, secret = channels.open_channel(**form.cleaned_data, by=principal.owner, now=now)
            except channels.ChannelRefused as refusal:
                form.add_error(refusal.pointer.removeprefix("/") or None, str(refusal))
            else:
                once.take(request)
                status, made = 201, {"secret": secret, "url": reverse("webhook", args=[channel.pk])}
                form = WebhookForm()
                form.fields["team"].queryset = records.teams_with(principal, Scope.KEYS)  # type: ignore[attr-defined]
    shown = webhooks.webhooks(principal, now=now) | {"form": form, "made": made, "once": once.number()}
    return page(request, "board/webhooks.html", shown, here="profile", title="Webhooks", status=status, exact=False)


def _channel(request: HttpRequest, pk: int) -> Channel:
    channel = Channel.objects.select_related("team").filter(pk=pk).first() if pk < 2**63 else None
    if channel is None:
        raise Http404(str(pk))
    allowed(request, Scope.KEYS, channel.team_id)
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
    return spreadsheet(f"deliveries-{pk}.csv", sheets.of_deliveries(_channel(request, pk), request.GET))


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
    wanted = found.filter(pk=delivery).first() if delivery < 2**63 else None
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
        channel.delete()
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
