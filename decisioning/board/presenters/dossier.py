"""One experiment on one page: what is recommended and why, what each gate reads, how it got there, what people did."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta
from functools import cached_property
from typing import Any

from django.db.models import Q
from django.urls import reverse

from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope
from decisioning.board import charts, words
from decisioning.board.charts import Post
from decisioning.board.downloads import MOST_OF_ONE
from decisioning.board.presenters import freshness, history, listing
from decisioning.board.presenters import gates as gate_presenter
from decisioning.board.presenters.frame import LATE_AFTER_S
from decisioning.board.presenters.gates import svg
from decisioning.board.presenters.records import present_runs
from decisioning.ledger.models import Entry
from experiments.lifecycle import BY_HAND, allowed
from experiments.models import Asset, Experiment, Pause, Variant
from gates import loading
from gates.engine import evidence
from gates.engine.forecast import Outlook, outlook
from gates.engine.plan import Kpi, Plan
from gates.engine.policy import Policy, plan_warnings
from gates.models import Cursor, Decision, Evaluation, Evidence, PolicyVersion, Recommendation
from telemetry.models import ExperimentKpi
from telemetry.refresh import runs_feeding

_MOVES = {"running": "Start", "paused": "Pause", "stopped": "Stop"}
# What an answer does, in words that end the choice it stands beside.
_THEN = {
    "scale": "The variant {variant} goes to everyone; the experiment ends as scaled.",
    "delete": "Control stays for everyone; the experiment ends as deleted.",
    "review": "Marked as seen; it runs on and is not proposed again for a while.",
}
_INSTEAD = {
    "scale": "Scale: give the treatment to everyone",
    "delete": "Delete: keep control for everyone",
    "stop": "Stop: end it without a winner",
    "hold": "Hold: go on reading",
}
TRAIL = 60


class Dossier:
    """Everything read about one experiment, each kind once."""

    def __init__(self, experiment: Experiment, principal: Principal, *, now: datetime) -> None:
        self.e, self.principal, self.now = experiment, principal, now
        self.facts = listing.gather([experiment.pk], now=now)
        self.cursor: Cursor | None = self.facts.cursors.get(experiment.pk)
        self.shown: Mapping[str, Any] = listing.shown_of(self.facts, experiment.pk)
        self.gates: Sequence[Mapping[str, Any]] = self.shown.get("gates") or []
        self.said: Mapping[str, Any] = self.shown.get("recommendation") or {}
        self.plan = self.facts.plans[experiment.pk]
        self.kpis: Sequence[Kpi] = self.plan.kpis
        self.arms = list(Variant.objects.filter(experiment=experiment).order_by("position"))
        self.control = next((v for v in self.arms if v.control), None)
        self.treatments = [v for v in self.arms if not v.control] if self.control else []
        self.metrics: Mapping[str, Kpi] = self.facts.metrics
        self.series = history.series((experiment.pk, kpi) for kpi in self.kpis)
        self.proposals: Sequence[Recommendation] = self.facts.proposals.get(experiment.pk, [])

    @cached_property
    def _judging(self) -> list[tuple[Policy, Plan]]:
        """Plan and the policy that judges it, or will when it is judged for the first time; none when it is over."""
        if self.e.status not in ("draft", "running", "paused"):
            return []
        policy = listing.policies_of(self.facts).get(self.e.pk)
        if policy is None:  # not judged yet: by the policy that would
            with suppress(loading.Unjudgeable):
                return [(judging.policy, judging.plan) for judging in loading.load([self.e.pk])]
            return []
        return [(policy, self.plan)]

    @cached_property
    def outlook(self) -> list[Outlook]:
        """What each goal needs, said by plan and policy alone."""
        return [found for policy, plan in self._judging for found in outlook(policy, plan)]

    @property
    def warnings(self) -> list[str]:
        """What is wrong with plan and policy before any row."""
        odd = [warning for policy, plan in self._judging for warning in plan_warnings(policy, plan)]
        return [*(found.warning for found in self.outlook if found.warning), *odd]

    @cached_property
    def newest(self) -> Mapping[tuple[str, str], datetime]:
        """The newest row's time of each (metric, variant), whether the gates have read it or not."""
        return freshness.newest(self.e.pk)

    @property
    def body(self) -> Mapping[str, Any]:
        return self.cursor.policy_version.body if self.cursor and self.cursor.policy_version else {}

    def url(self, name: str, *args: object) -> str:
        return reverse(name, args=[self.e.key, *args])


def experiment(d: Dossier, *, answer: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The whole page; `answer` is what a person sent and why it was refused, shown in the form again."""
    e = d.e
    goal = next((k for k in d.kpis if k.role == "goal"), None)
    passed = sum(g["verdict"] == "pass" for g in d.gates)
    several = len(d.treatments) > 1
    fresh = freshness.ages([e.pk], now=d.now)
    ages = {a.metric: a for a in fresh}
    runs = runs_feeding(e).order_by("-id")[:6]
    main = _kpi(d, goal, ages, d.kpis.index(goal)) if goal else None
    return {
        "key": e.key,
        "name": e.name,
        "status": words.status(e.status),
        "day": _day(d),
        "actions": _actions(d),
        "hypothesis": e.hypothesis,
        "meta": _meta(d),
        "notes": _notes(d),
        "verdicts": verdicts(d, answer=answer),
        "gates_note": f"{passed} of {len(d.gates)} pass{_as_of(d)}. The bar is the always-valid interval; a post is cleared when "
        "the whole bar is on its flag's side."
        if d.gates
        else "None read yet.",
        "gates": [
            gate_presenter.row(g, d.metrics, several=several, uid=f"g{i}", now=d.now) for i, g in enumerate(d.gates)
        ],
        "no_gates": _no_gates(e),
        "kpis_note": "Treatment against control, day by day." if d.treatments else "Against its target, day by day.",
        "uplifts": [u for i, t in enumerate(d.treatments) if goal and (u := _uplift(d, goal, t, several=several, i=i))],
        "goal": main,
        "kpis": [_kpi(d, k, ages, i) for i, k in enumerate(d.kpis) if k is not goal],
        "fresh": freshness.table(fresh, now=d.now),
        "runs": present_runs(runs, now=d.now),
        "runs_url": f"{reverse('refresh_log')}?experiment={e.key}",
        "split": _split(d),
        "shares": _shares(d, goal),
        "variants": _variants(d, goal),
        "may_edit": d.principal.may(Scope.WRITE, e.team_id),
        "trail": trail(d),
        "audit_url": f"{reverse('audit')}?object={e.key}",
        "evidence": _evidence(d),
        "report_url": d.url("report"),
    }


def _as_of(d: Dossier) -> str:
    at = d.cursor.judged_to if d.cursor else None
    return f" at slot {words.instant(at, d.now)}" if at else ""


def _day(d: Dossier) -> str:
    e = d.e
    if e.started_at is None:
        return "not started"
    if e.ended_at is not None:
        return f"ended {words.day(e.ended_at)}, after {words.plural(listing.ran_days(d.plan, e.ended_at), 'day')}"
    return f"day {listing.ran_days(d.plan, d.now)} of {d.body.get('max_days', 28)}"


def _actions(d: Dossier) -> list[dict[str, Any]]:
    if not d.principal.may(Scope.WRITE, d.e.team_id):
        return []
    moves = [to for to in allowed(d.e.status) if to in BY_HAND]
    names = {**_MOVES, "running": "Start" if d.e.status == "draft" else "Resume"}
    return [{"url": d.url("move", to), "label": names[to], "go": d.e.status == "draft"} for to in moves]


def _meta(d: Dossier) -> list[dict[str, str]]:
    e = d.e
    version = d.cursor.policy_version if d.cursor else None
    policy = (
        {
            "text": f"policy {version.policy.name}, version {version.number}",
            "url": reverse("policy_version", args=[version.policy_id, version.number]),
        }
        if version
        else {"text": "no policy yet", "url": ""}
    )
    started = f"started {words.day(e.started_at)}" if e.started_at else f"created {words.day(e.created_at)}"
    return [*({"text": t, "url": ""} for t in (e.team.name, e.owner, started)), policy, {"text": f"#{e.pk}", "url": ""}]


def _notes(d: Dossier) -> list[dict[str, str]]:
    notes = []
    if d.e.status == "paused":
        notes.append(
            {"tone": "hold", "icon": "hold", "title": "Paused.", "text": "Rows still arrive and are kept; gates rest."}
        )
    if d.cursor and (why := d.cursor.unjudgeable):
        since = words.instant(datetime.fromisoformat(why["since"]), d.now)
        text = f"{why['reason']} Nothing that it proposes can be accepted until then."
        notes.append({"tone": "late", "icon": "stale", "title": f"Suspended {since}.", "text": text})
    judged = d.cursor.judged_to if d.cursor else None
    if d.e.status == "running" and judged and (behind := (d.now - judged).total_seconds()) > LATE_AFTER_S:
        text = (
            f"Newest slot {words.instant(judged, d.now)}, {words.duration(behind)} ago. Verdicts below are as of then."
        )
        notes.append({"tone": "late", "icon": "stale", "title": "Evaluation is late.", "text": text})
    return [*notes, *_revised(d)]


def _revised(d: Dossier) -> list[dict[str, str]]:
    """Answers that would now be others, while it runs on; of what has ended the banner says it."""
    revisions = d.cursor.revisions if d.cursor and d.e.status in listing.OPEN else {}
    if not revisions:
        return []
    answers = Decision.objects.filter(experiment=d.e, pk__in=revisions).select_related("recommendation__variant")
    return [
        {
            "tone": "review",
            "icon": "review",
            "title": f"{_answered(a)} by {a.by}, {words.instant(a.at, d.now)}.",
            "text": words.on_older_data(revisions[str(a.pk)]),
        }
        for a in answers.order_by("-pk")
    ]


def _answered(a: Decision) -> str:
    of = f" of {a.recommendation.variant.key}" if a.recommendation.variant else ""
    return f"{a.recommendation.action.capitalize()}{of} {'accepted' if a.action == 'accept' else 'overridden'}"


def _no_gates(e: Experiment) -> dict[str, Any]:
    if e.status == "draft":
        return {
            "icon": "inconclusive",
            "title": "No gate is read yet",
            "text": "Start the experiment; its gates are made from its policy and KPIs.",
            "url": "",
        }
    return {
        "icon": "inconclusive",
        "title": "No gate is read yet",
        "text": f"The first slot after the first rows reads them. Send rows to /api/experiments/{e.key}/kpis.",
        "url": "",
    }


# What is recommended ---------------------------------------------------------------------------------------------------


def verdicts(d: Dossier, *, answer: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """One banner for each proposal that waits, else the one that says why there is nothing to answer."""
    waiting = sorted(d.proposals, key=lambda r: (r.code != "unsafe", r.variant_id is not None, r.pk))
    if waiting and d.e.status in listing.OPEN:
        shown = [_proposal(d, r, answer=answer, i=i) for i, r in enumerate(waiting)]
    else:
        last = Decision.objects.filter(experiment=d.e).select_related("recommendation__variant").order_by("-pk").first()
        shown = [_decided(d, last) if last is not None and d.e.status in listing.CLOSED else _nothing(d)]
    shown[0]["replaced"] = answer.get("replaced") if answer else None
    return shown


def _heading(action: str, variant: str | None, *, several: bool) -> str:
    verb = action.capitalize()
    if action == "review":
        return "Review it"
    if action == "hold":
        return "Hold"
    if variant and (several or action == "scale"):
        return f"{verb} the variant {variant}"
    return f"{verb} it: keep control" if action == "delete" else f"{verb} it"


def _because(d: Dossier, rationale: Sequence[str], blockers: Sequence[str], action: str) -> list[dict[str, str]]:
    icon = {"scale": "pass", "delete": "fail", "review": "review"}.get(action, "inconclusive")
    return [
        *({"icon": icon, "tone": "", "text": line} for line in rationale),
        *(
            {"icon": "stale" if "old" in line or "stale" in line else "no_data", "tone": "late", "text": line}
            for line in blockers
        ),
    ]


def _proof(d: Dossier, code: str, variant: str | None, *, uid: str) -> dict[str, Any]:
    gate = gate_presenter.telling(d.gates, code=code, variant=variant)
    if gate is None:
        return {"kpi": "", "estimate": "", "range": "", "interval": ""}
    text, spread = gate_presenter.value_text(gate, d.metrics)
    name = gate_presenter.name_of(gate, d.metrics)
    if why := gate_presenter.distrust(d.gates, gate, code=code):
        return {"kpi": name, "estimate": "not trusted", "range": f"{why}, so this is not a result", "interval": ""}
    return {"kpi": name, "estimate": text, "range": spread, "interval": gate_presenter.drawn(gate, d.metrics, uid=uid)}


def _proposal(d: Dossier, r: Recommendation, *, answer: Mapping[str, Any] | None, i: int) -> dict[str, Any]:
    e, several = d.e, len(d.treatments) > 1
    variant = r.variant.key if r.variant else d.said.get("variant")
    suspended = _suspended(d, r)
    within = timedelta(hours=e.team.answer_within_h)
    left = (r.proposed_at + within - d.now).total_seconds()
    uid = "decide" if i == 0 else f"decide-{r.pk}"
    stable = (
        f", {words.duration((r.proposed_at - r.knowable_at).total_seconds())} after the first stable read could be known"
        if r.knowable_at
        else ""
    )
    mine = answer if answer and answer.get("proposal") in (None, r.pk) else None
    banner = {
        "id": uid,
        "tone": words.TONES[r.action],
        "icon": r.action,
        "heading": _heading(r.action, variant, several=several),
        "tag": {"icon": "stale", "text": "Suspended"}
        if suspended
        else {"icon": "clock", "text": "Waiting for an answer"},
        "said": f"{words.CODES.get(r.code, r.code)} · proposed {words.instant(r.proposed_at, d.now)}{stable}",
        **_proof(d, r.code, variant, uid=f"p{r.pk}"),
        "because": _because(
            d, r.rationale, [*r.blockers, *(suspended.get("blockers") or [] if suspended else [])], r.action
        ),
        **_digest(d, r.evidence_digest, r.slot),
        "late": left < 6 * 3600,
        "left": f"{words.duration(left)} left" if left > 0 else f"{words.duration(-left)} overdue",
        "clock": listing.clock(d.now - r.proposed_at, within, uid=f"k{r.pk}", width=300),
        "stable": f"Proposed {words.instant(r.proposed_at, d.now)}",
        "promised": f"Promised by {words.instant(r.proposed_at + within, d.now)}",
        "answer": None,
        "aside": None,
    }
    if suspended:
        banner["aside"] = _not_now(d)
    elif not d.principal.may(Scope.REVIEW, e.team_id):
        lines = ["Your role in the team may look and not decide. An approver of the team answers this."]
        banner["aside"] = {"title": "Waits for an approver", "lines": lines}
    else:
        banner["answer"] = _answer(d, r, variant, mine)
    return banner


def _suspended(d: Dossier, r: Recommendation) -> Mapping[str, Any] | None:
    """What the newest slot says of this proposal when it suspends it: its inputs have died, or were restated."""
    told = [*(d.shown.get("variants") or []), d.said]
    mine = (t for t in told if t.get("state") == "suspended" and t.get("evidence_digest") == r.evidence_digest)
    return next(mine, None)


def _not_now(d: Dossier) -> dict[str, Any]:
    """Beside a suspended proposal; what blocks it stands in its reasons."""
    if d.cursor and d.cursor.unjudgeable:
        lines = ["It cannot be judged just now, so it cannot be answered.",
                 "When the cause is mended it is judged again by itself, and this form is back."]  # fmt: skip
        return {"title": "Not now", "lines": lines, "url": d.url("experiment") + "#gates", "label": "See the gates"}
    if gate_presenter.late(d.gates):
        lines = ["Its inputs are late, so it cannot be answered: a proposal is only as good as its newest data.",
                 "When the data is back it is judged again, and this form with it."]  # fmt: skip
        return {
            "title": "Not now",
            "lines": lines,
            "url": d.url("experiment") + "#freshness",
            "label": "See the freshness",
        }
    lines = ["What it rests on changed or is no longer whole, so it cannot be answered.",
             "It is judged again at every look; once the gates give the same answer again, the form is back."]  # fmt: skip
    return {"title": "Not now", "lines": lines, "url": d.url("experiment") + "#gates", "label": "See the gates"}


def _answer(d: Dossier, r: Recommendation, variant: str | None, sent: Mapping[str, Any] | None) -> dict[str, Any]:
    whole = r.variant_id is None or len(d.treatments) < 2
    then = (
        _THEN[r.action]
        if whole or r.action != "delete"
        else "This variant is dropped; the rest of the experiment runs on."
    )
    instead = [to for to in ("scale", "delete", "stop", "hold") if to != r.action]
    sent = sent or {}
    accept = {"scale": "Accept and scale", "delete": "Accept and delete", "review": "Mark as seen"}[r.action]
    return {
        "url": d.url("decide"),
        "accept": f"Accept: {r.action}" if r.action != "review" else "Accept: I have looked",
        "accept_then": then.format(variant=variant or "that wins"),
        "accept_button": accept,
        "options": [
            {"value": "", "label": "Choose what is done instead", "here": not sent.get("override_to")},
            *({"value": to, "label": _INSTEAD[to], "here": to == sent.get("override_to")} for to in instead),
        ],
        "to_error": sent.get("to_error", ""),
        "override": sent.get("action") == "override",
        "reason": sent.get("reason", ""),
        "reason_error": sent.get("reason_error", ""),
        "error": sent.get("error", ""),
        "who": d.principal.name,
    }


def _digest(d: Dossier, digest: str, slot: datetime | None) -> dict[str, str]:
    if not digest:
        return {"digest": "", "short": "", "evidence_url": "", "as_of": ""}
    short = f"{digest[:11]}…{digest[-4:]}"
    as_of = f"as of slot {words.instant(slot, d.now)}" if slot else ""
    return {"digest": digest, "short": short, "evidence_url": d.url("evidence", digest), "as_of": as_of}


def _slot_of(d: Dossier, digest: str) -> datetime | None:
    """The slot that evidence proves: the one on record with it, and not the newest judged, at which nothing had changed."""
    if not digest:
        return None
    found = Evaluation.objects.filter(experiment=d.e, evidence_digest=digest).order_by("-slot", "-fold")
    return found.values_list("slot", flat=True).first()


def _decided(d: Dossier, answer: Decision) -> dict[str, Any]:
    r = answer.recommendation
    verb = {"scaled": "scale", "deleted": "delete"}.get(d.e.status, "hold")
    how = "accepted" if answer.action == "accept" else "overridden"
    took = words.duration((answer.at - r.proposed_at).total_seconds())
    lines = [{"icon": "pass", "tone": "", "text": f"Answered {took} after it was proposed, by {answer.by}."}]
    if answer.reason:
        lines.append({"icon": "user", "tone": "", "text": f"“{answer.reason}”"})
    if revised := (d.cursor.revisions if d.cursor else {}).get(str(answer.pk)):
        lines.insert(0, {"icon": "review", "tone": "review", "text": words.on_older_data(revised)})
    lines += [{"icon": "info", "tone": "", "text": line} for line in r.rationale]
    variant = r.variant.key if r.variant else d.said.get("variant")
    return {
        "id": "decide",
        "tone": words.TONES[verb],
        "icon": f"s-{d.e.status}",
        "heading": f"{words.STATUSES[d.e.status]}, {how}",
        "tag": {"icon": "pass", "text": "Decided"},
        "said": f"{r.action.capitalize()} was proposed {words.instant(r.proposed_at, d.now)}, answered {words.instant(answer.at, d.now)}",
        **_proof(d, r.code, variant, uid="p0"),
        "because": lines,
        **_digest(d, answer.evidence_digest, r.slot),
        "aside": {
            "title": "What happened then",
            "lines": [
                f"Ended {words.instant(d.e.ended_at, d.now)}.",
                "The answer, the evidence and every row stay readable.",
            ],
            "url": d.url("report"),
            "label": "Report on one page",
        },
    }


def _nothing(d: Dossier) -> dict[str, Any]:
    e = d.e
    code, action = d.said.get("code", ""), d.said.get("action", "hold")
    blockers, rationale = d.said.get("blockers") or [], d.said.get("rationale") or []
    if e.status == "draft":
        heading, rationale, blockers = (
            "Not started",
            ["Start it, and it is judged at the first slot after its first rows."],
            [],
        )
    elif e.status == "paused":
        heading = "Paused"
        rationale, blockers = ["Rows still arrive and are kept; gates rest until it is started again."], []
    elif e.status in listing.CLOSED:
        heading = f"{words.STATUSES[e.status]} without an answer"
        rationale = rationale or ["It ended before a proposal was answered."]
    elif not d.said and d.cursor and d.cursor.unjudgeable:
        heading, rationale = "Hold, cannot be judged", [d.cursor.unjudgeable["reason"]]
    elif not d.said:
        heading = "Hold, no data"
        rationale = [f"No slot was judged yet. Send the first rows to /api/experiments/{e.key}/kpis."]
    else:
        heading = f"{action.capitalize()}, {words.CODES.get(code, code).lower()}"
    aside = _wait(d)
    warnings = [{"icon": "late", "tone": "late", "text": warning} for warning in d.warnings]
    return {
        "id": "decide",
        "tone": words.TONES.get(action, "hold") if e.status == "running" else "hold",
        "icon": action if e.status == "running" else "hold",
        "heading": heading,
        "tag": {"icon": "clock", "text": "Nothing to answer"},
        "said": f"read{_as_of(d)}" if d.said else "",
        **_proof(d, code, d.said.get("variant"), uid="p0"),
        "because": [*_because(d, rationale, blockers, action), *warnings],
        **_digest(d, proven := d.said.get("evidence_digest") or "", _slot_of(d, proven)),
        "aside": aside,
    }


def _wait(d: Dossier) -> dict[str, Any] | None:
    """What a person can do while there is nothing to answer."""
    e = d.e
    if e.status in listing.CLOSED:
        return {
            "title": "It is over",
            "lines": ["Its rows, gates and history stay readable."],
            "url": d.url("report"),
            "label": "Report on one page",
        }
    if e.status == "draft":
        return {
            "title": "Next",
            "lines": ["Check the plan below, then start it."],
            "url": d.url("move", "running"),
            "label": "Start it",
        }
    lines = []
    if e.started_at and e.status == "running":
        least, most = d.body.get("min_days", 7), d.body.get("max_days", 28)
        first, last = listing.ran_until(d.plan, least), listing.ran_until(d.plan, most)
        lines.append(f"Not before {words.day(first)} ({least} days)." if first > d.now else f"{least} days are in.")
        lines.append(f"By {words.day(last)} at the latest it asks for a person ({most} days).")
        previous = Decision.objects.filter(experiment=e).order_by("-pk").first()
        if previous is not None:
            lines.append(
                f"Last answered {words.instant(previous.at, d.now)} by {previous.by}: {previous.action}{' to ' + previous.override_to if previous.override_to else ''}."
            )
    return {"title": "What it waits for", "lines": lines or ["Start it again when it should be judged on."]}


# Pictures --------------------------------------------------------------------------------------------------------------


def _uplift(d: Dossier, goal: Kpi, treatment: Variant, *, several: bool, i: int) -> dict[str, Any] | None:
    found = d.facts.effects.get((d.e.pk, treatment.key), [])
    if not found:
        return None
    mine = (g for g in d.gates if g["kind"] == "uplift" and g.get("metric") == goal.metric)
    gate = next((g for g in mine if g.get("variant") in (None, treatment.key)), None)
    say, name = gate_presenter.sayer(gate, d.metrics), goal.name or goal.metric
    points, days = [r.point for r in found], [history.day_text(r.day) for r in found]
    last = points[-1]
    spread = gate_presenter.spread(say, last)
    trusted = not gate_presenter.split_is_wrong(d.gates)
    draw: dict[str, Any] = {
        "days": days,
        "posts": gate_presenter.posts(gate) if gate else [],
        "events": _events(d, [r.day for r in found]),
        "say": say,
        "title": f"Uplift of {name}, {treatment.key}: {say(last.estimate)} {spread}",
        "desc": "Estimate and always-valid interval at the last look of each day",
    }
    better = "higher is better" if goal.direction == "increase" else "lower is better, up is good here"
    return {
        "tone": {"scale": "scale", "delete": "delete", "review": "review"}.get(d.said.get("action", ""), "hold")
        if trusted
        else "review",
        "title": f"Uplift of {name}" + (f", {treatment}" if several else ""),
        "what": f"{goal.metric}, {better}",
        "estimate": say(last.estimate) if trusted else "not trusted",
        "range": spread if trusted else "the split is wrong",
        "wide": svg(charts.uplift(points, uid=f"u{i}w", **draw)),
        "narrow": svg(charts.uplift(points, uid=f"u{i}n", width=340, height=220, **draw)),
        "table": {
            "summary": "Uplift as a table" + (f", {treatment}" if several else ""),
            "heads": ["Day", "Lower", "Estimate", "Upper", "Units"],
            "rows": [[history.day_text(r.day), *(say(value) for value in r.point), words.count(r.n)] for r in found],
        },
    }


def _events(d: Dossier, days: Sequence[date]) -> list[tuple[int, str]]:
    stable = next((r.first_stable_at for r in d.proposals if r.first_stable_at), None)
    return [(days.index(stable.date()), "stable read")] if stable and stable.date() in days else []


_CSS = ("control", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def _kpi(d: Dossier, kpi: Kpi, ages: Mapping[str, freshness.Age], i: int) -> dict[str, Any]:
    arms = [*([d.control] if d.control else []), *(v for v in d.arms if not v.control)]
    found = {v.key: d.series.get((d.e.pk, kpi.metric, v.key), []) for v in arms}
    days = sorted({day.day for row in found.values() for day in row})
    by_day = {key: {x.day: x.value for x in row} for key, row in found.items()}
    labels = [history.day_text(day) for day in days]

    def say(value: float) -> str:
        return words.figure(value, kpi.unit, kpi.kind)

    lines = [
        (_CSS[min(j + (0 if d.control else 1), 8)], [by_day[v.key].get(day) for day in days])
        for j, v in enumerate(arms)
    ]
    limits = []
    target = kpi.target
    if target and target.at_least is not None:
        limits.append(Post(target.at_least, f"at least {say(target.at_least)}", "scale", "right"))
    if target and target.at_most is not None:
        limits.append(Post(target.at_most, f"at most {say(target.at_most)}", "delete", "right"))
    draw: dict[str, Any] = {
        "days": labels,
        "show": lambda value: words.tick(value, kpi.unit, kpi.kind),
        "limits": limits,
        "title": f"{kpi.name or kpi.metric} by day",
        "desc": "One line for each variant",
    }
    better = {"increase": "higher is better", "decrease": "lower is better"}.get(
        kpi.direction or "", "no way is better"
    )
    age = ages.get(kpi.metric)
    return {
        "name": kpi.name or kpi.metric,
        "role": words.ROLES[kpi.role],
        "tone": "scale" if kpi.role == "goal" else "hold",
        "what": ", ".join(filter(None, (kpi.metric, kpi.unit, better))),
        "age": freshness.text(age, now=d.now) if age and d.e.status not in listing.CLOSED else None,
        "trip": _trip(d, kpi, arms, found),
        "wide": svg(charts.values(lines, uid=f"v{i}w", **draw)) if days else "",
        "narrow": svg(charts.values(lines, uid=f"v{i}n", width=340, **draw)) if days else "",
        "legend": [{"css": css, "text": v.name or v.key} for (css, _), v in zip(lines, arms, strict=True)],
        "post": f"/api/experiments/{d.e.key}/kpis",
        "table": {
            "summary": f"{kpi.name or kpi.metric} as a table",
            "heads": ["Day", *(v.name or v.key for v in arms)],
            "rows": [
                [history.day_text(day), *("none" if (x := by_day[v.key].get(day)) is None else say(x) for v in arms)]
                for day in days
            ],
        },
    }


def _trip(
    d: Dossier, kpi: Kpi, arms: Sequence[Variant], found: Mapping[str, Sequence[history.Day]]
) -> list[dict[str, str]]:
    out = []
    read = any(g.get("metric") == kpi.metric for g in d.gates) and d.e.status in listing.OPEN
    to = gate_presenter.read_to(d.gates, kpi.metric)
    for v in arms:
        newest = found[v.key][-1] if found[v.key] else None
        value = None if newest is None else newest.value if newest.so_far is None else newest.so_far
        at = d.newest.get((kpi.metric, v.key))
        ahead = read and at is not None and (to is None or at > to)
        note = f"newest {words.instant(at, d.now)}, not judged yet" if ahead else ""
        out.append({"label": v.name or v.key, "figure": words.figure(value, kpi.unit, kpi.kind), "note": note})
    several = len(d.treatments) > 1
    for g in d.gates:
        if g.get("metric") == kpi.metric and g["kind"] in ("uplift", "guard"):
            text, _ = gate_presenter.value_text(g, d.metrics)
            label = "Effect, + is better" if kpi.direction == "decrease" else "Uplift"
            out.append({"label": f"{label}, {g['variant']}" if several else label, "figure": text})
    return out


def _split(d: Dossier) -> str:
    if len(d.arms) < 2:
        return "One variant: there is nothing to split."
    total = sum(v.weight for v in d.arms)
    planned = "/".join(f"{v.weight / total * 100:.0f}" for v in d.arms)
    gate = next((g for g in d.gates if g["kind"] == "srm"), None)
    return (
        f"Planned {planned}. {gate['reason']}"
        if gate and gate.get("reason")
        else f"Planned {planned}; nothing counted yet."
    )


def _shares(d: Dossier, goal: Kpi | None) -> dict[str, Any] | None:
    """Each variant's share of the units that were in by the end of each day; None while there is nothing to split."""
    if goal is None or len(d.arms) < 2:
        return None
    units = {v.key: {x.day: x.units for x in d.series.get((d.e.pk, goal.metric, v.key), [])} for v in d.arms}
    days = sorted(day for day in set.intersection(*map(set, units.values())) if any(of[day] for of in units.values()))
    if not days:
        return None
    whole = {day: sum(of[day] for of in units.values()) for day in days}
    arms = sorted(d.arms, key=lambda v: not v.control)
    lines = [
        (_CSS[min(j + (0 if d.control else 1), 8)], [units[v.key][day] / whole[day] for day in days])
        for j, v in enumerate(arms)
    ]
    labels, weights = [history.day_text(day) for day in days], sum(v.weight for v in arms)
    draw: dict[str, Any] = {
        "days": labels,
        "show": lambda share: words.share(share, 2),
        "limits": [
            Post(share, f"planned {words.share(share)}", "hold", "right")
            for share in sorted({v.weight / weights for v in arms})
        ],
        "title": "Share of units by the end of each day",
        "desc": "One line for each variant",
    }
    return {
        "what": f"Units of {goal.name or goal.metric}, counted from the start",
        "wide": svg(charts.values(lines, uid="xw", width=720, **draw)),
        "narrow": svg(charts.values(lines, uid="xn", width=340, **draw)),
        "legend": [{"css": css, "text": v.name or v.key} for (css, _), v in zip(lines, arms, strict=True)],
        "table": {
            "summary": "The split as a table",
            "heads": ["Day", *(head for v in arms for head in (f"{v.name or v.key}, units", "share"))],
            "rows": [
                [label, *(text for v, (_, shares) in zip(arms, lines, strict=True)
                          for text in (words.count(units[v.key][day]), words.share(shares[i], 2)))]
                for i, (label, day) in enumerate(zip(labels, days, strict=True))
            ],
        },
    }  # fmt: skip


def _variants(d: Dossier, goal: Kpi | None) -> list[dict[str, Any]]:
    total = sum(v.weight for v in d.arms) or 1
    counted: dict[str, int] = {}
    if goal:
        for v in d.arms:
            row = d.series.get((d.e.pk, goal.metric, v.key), [])
            counted[v.key] = row[-1].units if row else 0
    units = sum(counted.values())
    pictures: dict[int, Asset] = {}
    for kept in Asset.objects.filter(experiment=d.e).defer("body").order_by("pk"):
        pictures[kept.variant_id] = kept
    out = []
    for i, v in enumerate(d.arms):
        planned, n = v.weight / total, counted.get(v.key, 0)
        share = n / units if units else 0.0
        role = "control" if v.control else "treatment" if d.control else "the only one"
        facts = [
            {
                "label": "Units",
                "text": f"{words.count(n)} ({words.share(share, 2)}, planned {words.share(planned)})"
                if units
                else "none yet",
            }
        ]
        if goal and n:
            row = d.series[d.e.pk, goal.metric, v.key]
            facts.append(
                {
                    "label": goal.name or goal.metric,
                    "text": words.figure(row[-1].so_far, goal.unit, goal.kind),
                }
            )
        if v.dropped_at:
            facts.append({"label": "Dropped", "text": words.instant(v.dropped_at, d.now)})
        title = f"{v.key}: {words.share(share, 2)} of units, planned {words.share(planned)}"
        picture = pictures.get(v.pk)
        out.append(
            {
                "key": v.key,
                "name": v.name or v.key,
                "role": "dropped" if v.dropped_at else role,
                "tone": "hold" if v.control else "scale",
                "facts": facts,
                "svg": svg(
                    charts.meter(
                        share, limit=planned, full=1, uid=f"w{i}", title=title, desc="share of units", width=300
                    )
                )
                if units
                else "",
                "image": reverse("asset", args=[picture.pk]) if picture else "",
                "alt": picture.alt if picture else "",
                "upload_url": d.url("upload", v.key),
            }
        )
    return out


# What happened ---------------------------------------------------------------------------------------------------------


def trail(d: Dossier) -> list[dict[str, Any]]:
    """Status, recommendations, answers, corrections, newest first."""
    e, now = d.e, d.now
    told: list[tuple[datetime, dict[str, str]]] = []
    if e.started_at:
        detail = "From here on rows are judged."
        told.append((e.started_at, {"icon": "play", "tone": "", "what": "Started", "detail": detail}))
    told.append((e.created_at, {"icon": "doc", "tone": "", "what": "Created", "detail": _made_by(e)}))
    for pause in Pause.objects.filter(experiment=e).order_by("paused_at"):
        told.append((pause.paused_at, {"icon": "s-paused", "tone": "hold", "what": "Paused", "detail": ""}))
        if pause.resumed_at:
            told.append((pause.resumed_at, {"icon": "play", "tone": "", "what": "Resumed", "detail": ""}))
    for r in (
        Recommendation.objects.filter(experiment=e)
        .select_related("variant", "policy_version__policy")
        .order_by("-pk")[:TRAIL]
    ):
        told += _told(r)
    for a in Decision.objects.filter(experiment=e).select_related("recommendation__variant").order_by("-pk")[:TRAIL]:
        what = f"{_answered(a)} by {a.by}"
        detail = f"{'Decided ' + a.override_to + ' instead. ' if a.override_to else ''}{'“' + a.reason + '”' if a.reason else ''}"
        told.append(
            (
                a.at,
                {
                    "icon": "user",
                    "tone": words.TONES.get(a.override_to or a.recommendation.action, "hold"),
                    "what": what,
                    "detail": detail,
                },
            )
        )
    told += _policy_changes(e, d)
    corrections = Entry.objects.filter(
        experiment_id=e.pk, content_type__model="experimentkpi", action__gte=Entry.Action.UPDATE
    )
    for entry in corrections.order_by("-id")[:20]:
        rows = (entry.changes or {}).get("rows") or [None, None]
        what = "Rows removed" if entry.action == Entry.Action.DELETE else "Data corrected"
        told.append(
            (
                entry.timestamp,
                {
                    "icon": "edit",
                    "tone": "late",
                    "what": what,
                    "detail": f"{rows[1] or rows[0]} rows, by {entry.actor_name}.",
                },
            )
        )
    if e.ended_at:
        told.append(
            (
                e.ended_at,
                {
                    "icon": f"s-{e.status}",
                    "tone": words.TONES.get({"scaled": "scale", "deleted": "delete"}.get(e.status, ""), ""),
                    "what": words.STATUSES[e.status],
                    "detail": "The experiment ended.",
                },
            )
        )
    told.sort(key=lambda item: item[0], reverse=True)
    return [{"at": at.isoformat(), "when": words.instant(at, now), **line} for at, line in told[:TRAIL]]


def _policy_changes(e: Experiment, d: Dossier) -> list[tuple[datetime, dict[str, str]]]:
    """Versions of its policy that went live while it was open, and when another policy was chosen for it or its team."""
    version = d.cursor.policy_version if d.cursor else None
    began, ended = e.created_at, e.ended_at or d.now
    out = []
    if version:
        live = PolicyVersion.objects.filter(policy=version.policy_id, activated_at__range=(began, ended))
        for v in live.order_by("-activated_at")[:TRAIL]:
            what = f"Policy {version.policy.name}, version {v.number} went live"
            out.append((v.activated_at, what, f"By {v.activated_by or 'the portal'}. It judges from the next slot on."))
    chosen = Entry.objects.filter(
        Q(experiment_id=e.pk) | Q(experiment_id=None, team_id=e.team_id),
        content_type__app_label="gates",
        content_type__model="policybinding",
        timestamp__range=(began, ended),
    )
    for entry in chosen.order_by("-id")[:TRAIL]:
        whose = "the experiment" if entry.experiment_id else "its team"
        what = "Policy no longer set" if entry.action == Entry.Action.DELETE else "Policy chosen"
        out.append((entry.timestamp, what, f"For {whose}, by {entry.actor_name}."))
    return [(at, {"icon": "doc", "tone": "", "what": what, "detail": said}) for at, what, said in out if at]


def _made_by(e: Experiment) -> str:
    first = Entry.objects.filter(
        experiment_id=e.pk, content_type__model="experiment", action=Entry.Action.CREATE
    ).first()
    if first is None:
        return ""
    return (
        f"By {first.actor_name}."
        if first.actor_kind == "user"
        else f"With the key {first.actor_name}."
        if first.actor_kind == "key"
        else ""
    )


def _told(r: Recommendation) -> list[tuple[datetime, dict[str, str]]]:
    variant = f" {r.variant.key}" if r.variant else ""
    version = r.policy_version
    detail = f"{r.rationale[0] if r.rationale else ''} Policy {version.policy.name}, version {version.number}."
    out = [
        (
            r.proposed_at,
            {
                "icon": r.action,
                "tone": words.TONES[r.action],
                "what": f"{r.action.capitalize()}{variant} proposed: {words.CODES.get(r.code, r.code).lower()}",
                "detail": detail,
            },
        )
    ]
    if r.superseded_at:
        out.append(
            (
                r.superseded_at,
                {
                    "icon": "edit",
                    "tone": "late",
                    "what": f"{r.action.capitalize()}{variant} superseded",
                    "detail": words.SUPERSEDED.get(r.superseded_because, "Why was not recorded then."),
                },
            )
        )
    if r.withdrawn_at:
        out.append(
            (
                r.withdrawn_at,
                {
                    "icon": "fail",
                    "tone": "hold",
                    "what": f"{r.action.capitalize()}{variant} withdrawn",
                    "detail": "Something more urgent took its place.",
                },
            )
        )
    return out


# Evidence --------------------------------------------------------------------------------------------------------------


def _evidence(d: Dossier) -> dict[str, Any] | None:
    digest = next((r.evidence_digest for r in d.proposals), "") or d.said.get("evidence_digest") or ""
    if not digest:
        last = (
            Recommendation.objects.filter(experiment=d.e)
            .order_by("-pk")
            .values_list("evidence_digest", flat=True)
            .first()
        )
        digest = last or ""
    if not digest:
        return None
    version = d.cursor.policy_version if d.cursor else None
    facts: list[dict[str, Any]] = [{"label": "Digest", "text": digest, "code": True}]
    if slot := _slot_of(d, digest):
        facts.append({"label": "Of the slot", "text": words.instant(slot, d.now)})
    if version:
        url = reverse("policy_version", args=[version.policy_id, version.number])
        facts.append({"label": "Policy", "text": f"{version.policy.name}, version {version.number}", "url": url})
    plan = [words.plural(len(d.arms), "variant"), words.plural(len(d.kpis), "KPI")]
    if d.e.expected_units_per_day:
        plan.append(f"{words.count(d.e.expected_units_per_day)} units a day expected")
    facts.append({"label": "Plan", "text": ", ".join(plan)})
    facts += [{"label": f"Planned for {o.metric}", "text": words.outlook(o)} for o in d.outlook]
    if d.cursor and d.cursor.judged_to:
        facts.append({"label": "Judged to", "text": words.instant(d.cursor.judged_to, d.now)})
        facts.append({"label": "Judged late", "text": words.plural(d.cursor.missed_slots, "slot")})
    stored = Evidence.objects.filter(experiment=d.e, digest=digest).exists()
    return {
        "facts": facts,
        "url": d.url("evidence", digest) if stored else "",
        "rows_url": d.url("rows_csv"),
        "replay_url": d.url("replay", digest) if stored else "",
        "replayed": "",
    }


def evidence_body(experiment: Experiment, digest: str) -> bytes | None:
    """The canonical JSON of one evidence, as it was hashed. Raises EvidenceRefused when it is not that any more."""
    found = Evidence.objects.filter(experiment=experiment, digest=digest).first()
    return None if found is None else found.read()


def replayed(experiment: Experiment, digest: str, *, now: datetime) -> dict[str, Any] | None:
    """Whether the evidence, computed anew, gives the same bytes; None when there is no such evidence."""
    try:
        body = evidence_body(experiment, digest)
        if body is None:
            return None
        again = evidence.replay(body)
    except evidence.EvidenceRefused as refusal:
        return {"same": False, "text": f"Not replayed: {refusal}"}
    same = again == body and evidence.digest(again) == digest
    text = (
        f"Replayed {now:%H:%M:%SZ}: same bytes"
        if same
        else f"Replayed {now:%H:%M:%SZ}: the bytes differ; tell an admin"
    )
    return {"same": same, "text": text}


def rows(experiment: Experiment) -> list[list[object]]:
    """Every row as it was stored, for a spreadsheet."""
    head = ["metric", "variant", "ts", "value", "n", "variance", "denominator_value", "denominator_variance", "covariance",
            "revision", "first_received_at", "received_at"]  # fmt: skip
    stored = ExperimentKpi.objects.filter(experiment_id=experiment.pk).order_by("ts", "metric", "variant")
    return [list(head), *(list(row) for row in stored.values_list(*head)[: MOST_OF_ONE + 1])]
