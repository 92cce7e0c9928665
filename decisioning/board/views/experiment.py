"""One experiment: its page, people's answers and moves, its evidence, its pictures."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from django.contrib import messages
from django.core.signing import BadSignature
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.cache import patch_vary_headers
from django.utils.html import format_html
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from decisioning.access import pictures
from decisioning.access.middleware import has_room, own_transaction
from decisioning.access.scopes import Scope
from decisioning.board import snapshots
from decisioning.board.forms import DoubtForm, ImageForm
from decisioning.board.presenters.board import page as board_page
from decisioning.board.presenters.experiment import doubt as doubt_page
from decisioning.board.presenters.experiment import evidence as evidence_page
from decisioning.board.presenters.experiment import page as experiment_page
from decisioning.board.presenters.experiment.context import ExperimentContext
from decisioning.board.presenters.experiment.verdict import verdicts
from decisioning.board.views.base import experiment_or_404, page, person, require_scope, signed_in, who
from experiments import assets, lifecycle
from experiments.models import Asset, Experiment, TargetKpi, Variant
from gates import doubts
from gates.decisions import DecisionRefused, record_decision
from gates.engine.evidence import EvidenceRefused


@require_GET
@person
def experiment(request: HttpRequest, ref: str) -> HttpResponse:
    return _page(request, experiment_or_404(request, ref))


def _page(
    request: HttpRequest, e: Experiment, *, answer: Mapping[str, Any] | None = None, status: int = 200
) -> HttpResponse:
    d = ExperimentContext(e, who(request), now=timezone.now())
    if request.headers.get("HX-Request") and request.method == "POST":
        shown = verdicts(d, answer=answer)
        return render(request, "board/_decide.html", {"d": shown[0]}, status=status)
    return page(
        request,
        "board/experiment.html",
        experiment_page.page(d, answer=answer),
        here="board",
        title=e.name,
        status=status,
        exact=False,
    )


@require_POST
@person
def decide(request: HttpRequest, ref: str) -> HttpResponse:
    """A person's answer, on the evidence named in the form."""
    e = experiment_or_404(request, ref)
    require_scope(request, Scope.REVIEW, e.team_id)
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
        return _page(request, e, answer=sent | _errors_of(refusal, sent), status=refusal.status)
    e.refresh_from_db()
    done = _done(e, decision.override_to or decision.recommendation.action, override=override)
    number, first = board_page.waits_next(who(request))
    if first is not None:
        url = f"{reverse('experiment', args=[first.key])}#decide"
        done = format_html('{} Next of {}: <a href="{}">{}</a>', done, number, url, first.name)
    messages.success(request, done)
    response = redirect("experiment", ref=e.key)
    if request.headers.get("HX-Request"):
        return HttpResponse(headers={"HX-Redirect": response.url})  # with a fragment the browser would not reload
    return response


def _errors_of(refusal: DecisionRefused, sent: Mapping[str, str]) -> dict[str, Any]:
    """Where in the form a refusal is shown; what an override lacks is said all at once."""
    if any(fault.code == "missing_field" for fault in refusal.errors):
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


@require_http_methods(["GET", "HEAD", "POST"])
@person
def doubt(request: HttpRequest, ref: str, metric: str) -> HttpResponse:
    """Why the rows of a KPI are doubted; setting that aside with a reason, and doubting them again."""
    e, by, now = experiment_or_404(request, ref), who(request), timezone.now()
    kpi = TargetKpi.objects.select_related("metric").filter(experiment=e, metric__key=metric).first()
    if kpi is None:
        raise Http404(metric)
    form, status = DoubtForm(), 200
    if request.method == "POST":
        require_scope(request, Scope.REVIEW, e.team_id)
        again = request.POST.get("doubt") == "on"
        form = DoubtForm({"reason": "-"} if again else request.POST)
        try:
            if form.is_valid():
                if again:
                    doubts.restore(e, metric, by=by, now=now)
                else:
                    doubts.set_aside(e, metric, reason=form.cleaned_data["reason"], by=by, now=now)
                messages.success(
                    request,
                    f"{kpi.metric}: {'doubted again' if again else 'the doubt is set aside'} from the next slot on.",
                )
                return redirect(reverse("experiment", args=[e.key]) + "#gates")
        except doubts.DoubtRefused as refusal:
            form.add_error(None, refusal.message)
        status = 422
    shown = doubt_page.page(ExperimentContext(e, by, now=now), kpi, form)
    return page(
        request, "board/doubt.html", shown, here="board", title=f"Doubt in {shown['name']}", status=status, exact=False
    )


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
    e = experiment_or_404(request, ref)
    require_scope(request, Scope.WRITE, e.team_id)
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


@require_GET
@person
def report(request: HttpRequest, ref: str) -> HttpResponse:
    """One page for paper: what was proposed, on what, and what became of it."""
    e = experiment_or_404(request, ref)
    d = ExperimentContext(e, who(request), now=timezone.now())
    return page(
        request,
        "board/report.html",
        experiment_page.page(d),
        here="board",
        title=f"Report: {e.name}",
        exact=False,
    )


@require_GET
@person
def evidence(request: HttpRequest, ref: str, digest: str) -> HttpResponse:
    """The canonical JSON, byte for byte as it was hashed."""
    e = experiment_or_404(request, ref)
    try:
        body = evidence_page.evidence_body(e, digest)
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
    e = experiment_or_404(request, ref)
    said = evidence_page.replayed(e, digest, now=timezone.now())
    if said is None:
        raise Http404(digest)
    if request.headers.get("HX-Request"):
        return render(request, "board/_replayed.html", {"said": said})
    (messages.success if said["same"] else messages.error)(request, said["text"])
    return redirect(reverse("experiment", args=[e.key]) + "#evidence")


@has_room("files")
@require_POST
@person
def upload(request: HttpRequest, ref: str, variant: str) -> HttpResponse:
    """A picture of one variant, with what it shows in words."""
    e = experiment_or_404(request, ref)
    require_scope(request, Scope.WRITE, e.team_id)
    arm = Variant.objects.filter(experiment=e, key=variant).first()
    if arm is None:
        raise Http404(variant)
    form = ImageForm(request.POST, request.FILES)
    if not form.is_valid():
        problem = next(iter(form.errors.items()))
        messages.error(request, f"The picture was not taken. {problem[0].capitalize()}: {problem[1][0]}")
        return redirect(reverse("experiment", args=[e.key]) + "#variants")
    image = form.cleaned_data["image"]
    assets.keep(
        arm,
        title=image.name,
        alt=form.cleaned_data["alt"],
        media_type=form.media_type,
        body=form.body,
        now=timezone.now(),
    )
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
