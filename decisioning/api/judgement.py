"""What the gates say of an experiment, on which evidence, and what people answered."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q
from django.http import Http404, HttpResponse
from rest_framework.request import Request
from rest_framework.response import Response

from decisioning.access.scopes import Scope
from decisioning.api.base import PortalView, json_response
from decisioning.api.document import reader_of, recommendation_before_the_first_look
from decisioning.api.experiments import matches, shown_document
from decisioning.api.lists import PAGING, page
from decisioning.api.problems import Problem, bad_parameter
from decisioning.api.serializers import DecisionIn, DoubtIn
from decisioning.api.series import instant_of
from decisioning.literals import rfc3339
from experiments.models import Experiment, TargetKpi
from gates import claims, consistency, doubts, policies, wording
from gates.decisions import record_decision
from gates.engine.evidence import digest as digest_of
from gates.engine.evidence import replay
from gates.engine.narration import Reader, in_words, rationale
from gates.engine.plan import newest_slot
from gates.engine.policy import setting
from gates.models import Cursor, Decision, Evaluation, Evidence, PolicyVersion, Recommendation


class OneDecision(PortalView):
    """The current recommendation with its rationale, and a person's answer to it."""

    scopes = {"GET": Scope.READ, "POST": Scope.REVIEW}
    parameters = {"GET": frozenset({"as_of"})}

    def get(self, request: Request, ref: str) -> HttpResponse:
        """The recommendation as of the newest slot, or recomputed for a past one."""
        experiment = self.experiment(ref)
        past = instant_of(request, "as_of")
        if past is not None:
            return Response(_as_of(experiment, past, now=self.now))
        shown = shown_document(experiment)
        if matches(request.headers.get("If-None-Match", ""), shown.etag):
            return HttpResponse(status=304, headers={"ETag": shown.etag})
        cursor = Cursor.objects.filter(pk=experiment.pk).values_list("shown", flat=True).first() or {}
        document = shown.value
        body = {
            "experiment": experiment.key,
            "as_of": document["as_of"],
            "stale": document["stale"],
            "unjudgeable": document["unjudgeable"],
            "recommendation": document["recommendation"],
            "variants": _per_treatment(
                document, [in_words(told, reader_of(document, self.now)) for told in cursor.get("variants", [])]
            ),
            "decision": _standing(experiment),
        }
        return Response(body, headers={"ETag": shown.etag, "Cache-Control": "private, no-cache"})

    def post(self, request: Request, ref: str) -> Response:
        """Accept or override the recommendation whose evidence you saw."""
        experiment, values = self.experiment(ref), self.body(DecisionIn)
        decision = record_decision(
            experiment,
            digest=values["evidence_digest"],
            action=values["action"],
            override_to=values.get("override_to") or "",
            reason=values.get("reason") or "",
            by=self.principal,
            now=self.now,
        )
        experiment.refresh_from_db()
        return Response({"experiment": experiment.key, "status": experiment.status, **_as_json(decision)}, status=201)


class Doubt(PortalView):
    """Doubt in the rows of one KPI, and a person's word that they are right."""

    scopes = {"GET": Scope.READ, "POST": Scope.REVIEW}

    def get(self, request: Request, ref: str, metric: str) -> Response:
        """Whether its rows are doubted where they look wrong, and each time somebody set that aside."""
        kpi = TargetKpi.objects.filter(experiment=self.experiment(ref), metric__key=metric).first()
        if kpi is None:
            raise Http404(metric)
        return Response(_doubt(metric, kpi))

    def post(self, request: Request, ref: str, metric: str) -> Response:
        """Set the doubt aside (off) with a reason, or doubt again (on)."""
        experiment, values = self.experiment(ref), self.body(DoubtIn)
        if values["doubt"] == "off":
            reason = values.get("reason") or ""
            kpi = doubts.set_aside(experiment, metric, reason=reason, by=self.principal, now=self.now)
        else:
            kpi = doubts.restore(experiment, metric, by=self.principal, now=self.now)
        return Response(_doubt(metric, kpi))


def _doubt(metric: str, kpi: TargetKpi) -> dict[str, Any]:
    doubt = "off" if doubts.is_set_aside(kpi) else "on"
    return {"metric": metric, "doubt": doubt, "set_aside": kpi.trusted}


class Gates(PortalView):
    """The gates as of the newest slot."""

    scopes = {"GET": Scope.READ}

    def get(self, request: Request, ref: str) -> Response:
        """Each gate with verdict, reading and reason."""
        document = shown_document(self.experiment(ref)).value
        return Response({"results": document["gates"], "as_of": document["as_of"], "next": None, "previous": None})


class Evaluations(PortalView):
    """Slots at which something changed, or that somebody asked for; at most one a slot."""

    scopes = {"GET": Scope.READ}
    parameters = {"GET": PAGING}

    def get(self, request: Request, ref: str) -> Response:
        """Newest first. A slot that was judged again after a correction shows its newest judgement, and all that was ever proposed there."""
        experiment = self.experiment(ref)
        newest = Evaluation.objects.filter(experiment=experiment)
        # The last retelling of each slot: no evaluation of the same slot has a higher fold.
        retold = newest.order_by("slot", "-fold").distinct("slot").values("pk")
        return page(
            request,
            Evaluation.objects.filter(pk__in=retold),
            shown=lambda found: _evaluations(experiment, found),
            ordering="-slot",
            orderings=("slot",),
        )


class Decisions(PortalView):
    """What people answered."""

    scopes = {"GET": Scope.READ}
    parameters = {"GET": PAGING}

    def get(self, request: Request, ref: str) -> Response:
        """Newest first, each with what had been recommended."""
        experiment = self.experiment(ref)
        decisions = Decision.objects.filter(experiment=experiment).select_related("recommendation__variant")
        revised = _revisions(experiment)
        return page(request, decisions, shown=lambda found: _with_answers(found, revised, self.now))


class OneEvidence(PortalView):
    """The canonical evidence of an evaluation, byte for byte what its digest is the SHA-256 of."""

    scopes = {"GET": Scope.READ}

    def get(self, request: Request, ref: str, digest: str) -> HttpResponse:
        """Everything the recommendation rests on."""
        return json_response(
            _evidence(self.experiment(ref), digest),
            headers={"ETag": f'"{digest}"', "Cache-Control": "private, immutable, max-age=31536000"},
        )


class Verification(PortalView):
    """Evidence recomputed from itself."""

    scopes = {"POST": Scope.READ}

    def post(self, request: Request, ref: str, digest: str) -> Response:
        """Run the rules again over the facts in the evidence: the same bytes prove what it says."""
        kept = _evidence(self.experiment(ref), digest)
        again = replay(kept)
        return Response({"same": again == kept, "digest": digest, "recomputed": digest_of(again)})


class Evaluate(PortalView):
    """Ask for an evaluation now."""

    scopes = {"POST": Scope.WRITE}

    def post(self, request: Request, ref: str) -> Response:
        """The tick evaluates the newest slot; done when /evaluations lists it or a newer one."""
        experiment, now = self.experiment(ref), self.now
        if experiment.status != Experiment.Status.RUNNING:
            detail = f"{experiment.key} is {experiment.status}: experiments are judged while they run."
            raise Problem(409, "not_running", detail)
        slot = newest_slot(now, setting(policies.version_for(experiment).body, "slot_s"))
        claims.ask(experiment, slot, now=now)
        return Response({"slot": rfc3339(slot)}, status=202)


def _evaluations(experiment: Experiment, found: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Each slot with what was proposed there: here alone stands what nobody answered and is not proposed any more."""
    made = defaultdict(list)
    recommended = Recommendation.objects.filter(experiment=experiment, slot__in=[e.slot for e in found])
    for proposal in recommended.select_related("variant"):
        made[proposal.slot].append(proposal)
    shown = Cursor.objects.filter(pk=experiment.pk).values_list("shown", flat=True).first() or {}
    parts = [shown.get("recommendation") or {}, *shown.get("variants", [])]
    suspended = {part.get("evidence_digest") for part in parts if part.get("state") == "suspended"}
    return [
        {
            "slot": rfc3339(e.slot),
            "computed_at": rfc3339(e.computed_at),
            "action": e.action,
            "code": e.code,
            "evidence_digest": e.evidence_digest,
            "proposals": [_proposal(p, suspended=p.evidence_digest in suspended) for p in made[e.slot]],
        }
        for e in found
    ]


def _proposal(of: Recommendation, *, suspended: bool) -> dict[str, Any]:
    state, since = of.became
    return {
        "variant": of.variant.key if of.variant else None,
        "action": of.action,
        "code": of.code,
        "evidence_digest": of.evidence_digest,
        "state": "suspended" if suspended and state == "proposed" else state,
        "since": rfc3339(since),
        "because": of.superseded_because or None,
    }


def _as_of(experiment: Experiment, past: datetime, *, now: datetime) -> dict[str, Any]:
    if past > now:
        raise bad_parameter("as_of", f"{rfc3339(past)} is in the future")
    if experiment.started_at is None or past <= experiment.started_at:
        raise bad_parameter("as_of", f"{experiment.key} had not started by {rfc3339(past)}")
    version = _in_force(experiment, past)
    policy = {"name": version.policy.name, "version": version.number}
    slot = newest_slot(past, setting(version.body, "slot_s"))
    recommendation, variants = recommendation_before_the_first_look(policy), []
    if slot > experiment.started_at:
        found = consistency.as_of(experiment, slot, version)
        who = wording.reader((found["recommendation"], *found["variants"]), slot)
        recorded = Evaluation.objects.filter(experiment=experiment, slot=slot, policy_version=version)
        same = (e.evidence_digest for e in recorded.order_by("-fold") if _outcome(e.found) == _outcome(found))
        beside = {"evidence_digest": next(same, None), "policy": policy}
        recommendation, *variants = (
            {**in_words(told, who), "proposed_at": told["proposed_slot"], **beside}
            for told in (found["recommendation"], *found["variants"])
        )
    return {
        "experiment": experiment.key,
        "as_of": rfc3339(slot),
        "stale": False,
        "unjudgeable": None,
        "recommendation": recommendation,
        "variants": variants,
        "decision": _standing(experiment, until=past),
    }


def _in_force(experiment: Experiment, past: datetime) -> PolicyVersion:
    """The version that judged then: of what was on record by the end of that slot the newest, else what first judged the slots up to it
    (history brought in later); with nothing on record today's."""
    recorded = Evaluation.objects.filter(experiment=experiment, slot__lte=past).select_related("policy_version__policy")
    today = policies.version_for(experiment)
    by_then = recorded.filter(computed_at__lt=past + timedelta(seconds=setting(today.body, "slot_s")))
    judged = by_then.order_by("-computed_at", "-slot").first() or recorded.order_by("computed_at", "slot").first()
    return judged.policy_version if judged else today


def _outcome(found: Mapping[str, Any]) -> object:
    """What evidence proves of a slot, whatever words tell it: what is recommended, and each gate with its reading."""
    told = [(r["action"], r["code"], r["variant"], r["state"]) for r in (found["recommendation"], *found["variants"])]
    return told, [(g["gate"], g["variant"], g["verdict"], g["reading"]) for g in found["gates"]]


def _per_treatment(document: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One recommendation a treatment (or for the only variant), in plan order; a dropped one says since when."""
    by_variant = {told["variant"]: told for told in shown}
    subjects = [v for v in document["variants"] if not v["control"]]
    unjudged = recommendation_before_the_first_look(document["recommendation"]["policy"])
    return [
        {
            **by_variant.get(v["key"], unjudged),
            "variant": v["key"],
            **({"dropped_at": v["dropped_at"]} if v["dropped_at"] else {}),
        }
        for v in subjects
    ]


def _standing(experiment: Experiment, until: datetime | None = None) -> dict[str, Any] | None:
    """The newest answer, unless something newer has been proposed since."""
    decisions = Decision.objects.filter(experiment=experiment)
    decision = (decisions.filter(at__lte=until) if until else decisions).order_by("-id").first()
    if decision is None:
        return None
    newer = experiment.recommendations.filter(Q(pk__gt=decision.recommendation_id), answered_at__isnull=True)
    if (
        newer.filter(proposed_at__lte=until)
        if until
        else newer.filter(superseded_at__isnull=True, withdrawn_at__isnull=True)
    ).exists():
        return None
    return _as_json(decision, _revisions(experiment))


def _as_json(decision: Decision, revisions: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "action": decision.action,
        "override_to": decision.override_to or None,
        "reason": decision.reason,
        "by": decision.by,
        "at": rfc3339(decision.at),
        "evidence_digest": decision.evidence_digest,
        "would_now": (revisions or {}).get(str(decision.pk)),
    }


def _revisions(experiment: Experiment) -> dict[str, dict[str, str]]:
    """By decision, what the gates would advise on the rows stored now where that is another action."""
    return Cursor.objects.filter(pk=experiment.pk).values_list("revisions", flat=True).first() or {}


def _with_answers(found: Sequence[Decision], revised: Mapping[str, Any], now: datetime) -> list[dict[str, Any]]:
    who = wording.reader(({"reasons": d.recommendation.told} for d in found), now)
    return [{**_as_json(d, revised), "recommended": _answered(d, who)} for d in found]


def _answered(decision: Decision, who: Reader) -> dict[str, Any]:
    of = decision.recommendation
    return {
        "action": of.action,
        "code": of.code,
        "variant": of.variant.key if of.variant else None,
        "proposed_at": rfc3339(of.proposed_at),
        "rationale": rationale(of.told, who),
        "reasons": of.told,
    }


def _evidence(experiment: Experiment, digest: str) -> bytes:
    kept = Evidence.objects.filter(experiment=experiment, digest=digest).first()
    if kept is None:
        raise Http404
    return kept.read()
