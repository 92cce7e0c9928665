"""The board's list: what needs a person, what is in progress, what is closed; a constant number of queries."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import msgspec
from django.db import connection
from django.db.models import DateTimeField, Exists, ExpressionWrapper, F, OuterRef, Q, QuerySet, Value
from django.http import QueryDict
from django.urls import reverse
from django.utils.safestring import SafeString

from decisioning.access.models import Team
from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope
from decisioning.board import charts, words
from decisioning.board.charts import Point
from decisioning.board.downloads import MOST
from decisioning.board.presenters import freshness, history
from decisioning.board.presenters import gates as gate_presenter
from decisioning.board.presenters.frame import options, query
from decisioning.board.presenters.records import NO_TEAM
from experiments.models import Asset, Experiment
from gates.engine.machine import judge
from gates.engine.plan import DAY, Clock, Kpi, Plan, from_us, to_us
from gates.engine.policy import Policy
from gates.loading import Unjudgeable, policy_of
from gates.models import Cursor, Decision, PolicyVersion, Recommendation

PAGE = 25  # a lane: what is on the page is what costs
OPEN = ("draft", "running", "paused")
CLOSED = ("scaled", "deleted", "stopped")
PROPOSALS = ("scale", "delete", "review")
RECENTLY = timedelta(days=7)
_URGENT = {"unsafe": 0, "harm": 1}
_SORTS = {"name": ("name",), "-name": ("-name",), "started": ("started_at", "id"), "-started": ("-started_at", "-id")}


@dataclass
class Facts:
    """What the rows of one page are made of, each kind read with one query."""

    experiments: dict[int, Experiment]
    proposals: dict[int, list[Recommendation]] = field(default_factory=dict)
    cursors: dict[int, Cursor] = field(default_factory=dict)
    plans: dict[int, Plan] = field(default_factory=dict)
    decisions: dict[int, Decision] = field(default_factory=dict)
    ages: dict[int, freshness.Age] = field(default_factory=dict)
    metrics: dict[str, Kpi] = field(default_factory=dict)
    effects: history.Effects = field(default_factory=dict)
    pictures: dict[int, dict[str, Asset]] = field(default_factory=dict)
    now: datetime = field(kw_only=True)


def open_proposals() -> QuerySet[Recommendation]:
    """Proposals that wait for a person."""
    return Recommendation.objects.filter(
        answered_at__isnull=True,
        superseded_at__isnull=True,
        withdrawn_at__isnull=True,
        action__in=PROPOSALS,
        experiment__status__in=OPEN,
    )


def matching(params: QueryDict, *, now: datetime) -> QuerySet[Experiment]:
    """The experiments a query asks for, whatever lane they are in."""
    found = Experiment.objects.all()
    if text := params.get("q", "").strip():
        found = found.filter(
            Q(name__icontains=text) | Q(key__icontains=text) | Q(hypothesis__icontains=text) | Q(owner__icontains=text)
        )
    if team := params.get("team"):
        found = found.filter(team__key=team)
    if (state := params.get("status")) in words.STATUSES:
        found = found.filter(status=state)
    if params.get("view") == "closed":
        found = found.filter(status__in=CLOSED)
    if owner := params.get("owner"):
        found = found.filter(owner=owner)
    if (action := params.get("recommendation")) in (*PROPOSALS, "hold"):
        waiting = Exists(open_proposals().filter(experiment=OuterRef("pk"), action=action))
        found = found.filter(Q(waiting) | Q(cursor__shown__recommendation__action=action))
    if (state := params.get("freshness")) in freshness.STATES:
        found = found.filter(pk__in=freshness.in_state(state, now=now))
    if (hours := params.get("due", "").removesuffix("h")).isdecimal() and len(hours) < 5:
        limit = now + timedelta(hours=int(hours))
        due = open_proposals().filter(experiment=OuterRef("pk"))
        due = due.annotate(
            due_at=ExpressionWrapper(
                F("proposed_at") + F("team__answer_within_h") * Value(timedelta(hours=1)), output_field=DateTimeField()
            )
        )
        found = found.filter(Exists(due.filter(due_at__lte=limit)))
    return found


def board(principal: Principal, params: QueryDict, *, now: datetime) -> dict[str, Any]:
    wanted = matching(params, now=now)
    filtered = params.get("view") == "closed" or any(
        params.get(f) for f in ("q", "team", "status", "owner", "recommendation", "freshness", "due")
    )
    everyone, newest = _waiting()
    here = set(wanted.filter(pk__in=everyone).values_list("pk", flat=True)) if filtered else everyone.keys()
    waiting = {pk: due for pk, due in everyone.items() if pk in here}
    ids = list(waiting)
    lanes = {
        "needs": _number(params, "needs"),
        "progress": _number(params, "progress"),
        "closed": _number(params, "closed"),
    }
    sort = _SORTS.get(params.get("sort", ""), ())
    progress = wanted.filter(status__in=OPEN).exclude(pk__in=ids).order_by(*sort or ("-started_at", "-id"))
    closed = wanted.filter(status__in=CLOSED)
    if not filtered:
        closed = closed.filter(ended_at__gte=now - RECENTLY)
    closed = closed.order_by(*sort or ("-ended_at", "-id"))
    slices = {
        "needs": ids[lanes["needs"] * PAGE : (lanes["needs"] + 1) * PAGE + 1],
        "progress": list(progress.values_list("pk", flat=True)[lanes["progress"] * PAGE :][: PAGE + 1]),
        "closed": list(closed.values_list("pk", flat=True)[lanes["closed"] * PAGE :][: PAGE + 1]),
    }
    facts = gather([pk for lane in slices.values() for pk in lane[:PAGE]], waiting=slices["needs"][:PAGE], now=now)
    needs = [_case(pk, facts, first=i == 0 and not lanes["needs"]) for i, pk in enumerate(slices["needs"][:PAGE])]
    rows = {lane: [_row(pk, facts, lane=lane) for pk in slices[lane][:PAGE]] for lane in ("progress", "closed")}
    hidden_needs = len(everyone) - len(ids)
    shown = len(ids) + len(rows["progress"]) + len(rows["closed"])
    return {
        "lead": _lead(params, waiting, any_shown=bool(shown), filtered=filtered, now=now),
        "may_create": principal.may(Scope.WRITE),
        "views": _views(params, principal),
        "search": params.get("q", ""),
        "hidden": [
            {"name": n, "value": v} for n, v in params.items() if n not in ("q", "needs", "progress", "closed") and v
        ],
        "filters": _filters(params),
        "filtered": any(params.get(f) for f in ("team", "status", "owner", "recommendation", "freshness")),
        "filter_note": _filter_note(params),
        "note": _note(shown, hidden_needs) if filtered else "",
        "csv": reverse("board_csv") + query(params, needs=None, progress=None, closed=None),
        "news_since": newest,
        "needs": needs,
        "needs_pages": _pages(params, "needs", lanes["needs"], slices["needs"]),
        "calm": None if ids or filtered or not shown else _calm(),
        "lanes": [
            lane
            for lane in (
                _lane("progress", rows["progress"], params, lanes["progress"], slices["progress"]),
                _lane("closed", rows["closed"], params, lanes["closed"], slices["closed"], everything=filtered),
            )
            if lane["rows"]
        ],
        "empty": None if shown else _empty(params, hidden_needs, principal, filtered=filtered),
    }


def newer_than(since: int) -> int:
    return open_proposals().filter(pk__gt=since).count()


def waits_next(principal: Principal) -> tuple[int, Experiment | None]:
    """How many experiments wait for this person's answer, and the one that is to be answered first."""
    waiting, _ = _waiting()
    mine = Experiment.objects.filter(pk__in=waiting).only("key", "name", "team_id").in_bulk()
    ids = [pk for pk in waiting if principal.may(Scope.REVIEW, mine[pk].team_id)]
    return len(ids), mine[ids[0]] if ids else None


def _waiting() -> tuple[dict[int, datetime], int]:
    """Experiments that need a person, safety first, then by when they are due; and the number of the newest proposal.

    A page asks later whether there is a newer one. A suspended proposal needs nobody yet.
    """
    state = "experiment__cursor__shown__recommendation__state"
    rows = open_proposals().values_list("experiment_id", "code", "proposed_at", "team__answer_within_h", "pk", state)
    best: dict[int, tuple[int, datetime, int]] = {}
    newest = 0
    for experiment, code, proposed_at, within, pk, said in rows:
        newest = max(newest, pk)
        if said != "suspended":
            rank = (_URGENT.get(code, 2), proposed_at + timedelta(hours=within), pk)
            best[experiment] = min(best.get(experiment, rank), rank)
    due = {experiment: rank[1] for experiment, rank in sorted(best.items(), key=lambda item: item[1])}
    return due, newest


def gather(ids: Sequence[int], *, now: datetime, waiting: Sequence[int] | None = None) -> Facts:
    """Everything the rows of these experiments need; proposals of those that are waiting (None: of all)."""
    facts = Facts({e.pk: e for e in Experiment.objects.select_related("team").filter(pk__in=ids)}, now=now)
    asked = ids if waiting is None else waiting
    for r in open_proposals().filter(experiment__in=asked).select_related("variant").order_by("pk"):
        facts.proposals.setdefault(r.experiment_id, []).append(r)
    facts.cursors = {c.pk: c for c in Cursor.objects.filter(pk__in=ids).defer("state")}
    versions = {c.policy_version_id for c in facts.cursors.values() if c.policy_version_id}
    held = PolicyVersion.objects.select_related("policy").in_bulk(versions)
    for cursor in facts.cursors.values():
        cursor.policy_version = held.get(cursor.policy_version_id or 0)
    for picture in Asset.objects.filter(experiment__in=ids).select_related("variant").defer("body").order_by("pk"):
        facts.pictures.setdefault(picture.experiment_id, {})[picture.variant.key] = picture  # the newest of each
    facts.plans = _plans(ids)
    facts.metrics = {kpi.metric: kpi for plan in facts.plans.values() for kpi in plan.kpis}
    closed = [pk for pk, e in facts.experiments.items() if e.status in CLOSED]
    for d in Decision.objects.filter(experiment__in=closed).select_related("recommendation").order_by("pk"):
        facts.decisions[d.experiment_id] = d
    facts.ages = freshness.worst(ids, now=now)
    courts = {pk: judge(policy, facts.plans[pk]) for pk, policy in policies_of(facts).items()}
    facts.effects = history.effects(courts, now=now)
    return facts


_PLANS = """
SELECT e.id, json_build_object(
  'started_at', (extract(epoch FROM coalesce(e.started_at, e.created_at)) * 1000000)::bigint,
  'created_at', (extract(epoch FROM e.created_at) * 1000000)::bigint,
  'ended_at', (extract(epoch FROM e.ended_at) * 1000000)::bigint,
  'expected_units_per_day', e.expected_units_per_day,
  'pauses', (
    SELECT coalesce(json_agg(json_build_array((extract(epoch FROM p.paused_at) * 1000000)::bigint,
      (extract(epoch FROM p.resumed_at) * 1000000)::bigint) ORDER BY p.paused_at), '[]')
    FROM pauses p WHERE p.experiment_id = e.id),
  'variants', (
    SELECT coalesce(json_agg(json_build_object('key', v.key, 'weight', v.weight, 'control', v.control, 'position', v.position,
      'dropped_at', (extract(epoch FROM v.dropped_at) * 1000000)::bigint) ORDER BY v.position), '[]')
    FROM variants v WHERE v.experiment_id = e.id),
  'kpis', (
    SELECT coalesce(json_agg(json_strip_nulls(json_build_object('metric', m.key, 'role', t.role, 'kind', m.kind, 'direction', m.direction,
      'temporality', m.temporality, 'expected_every_s', m.expected_every_s, 'freshness_target_s', m.freshness_target_s,
      'counts_assignment', m.counts_assignment, 'minimum_effect', t.minimum_effect, 'max_harm', t.max_harm, 'unit', m.unit, 'name', m.name,
      'target', CASE WHEN num_nonnulls(t.target_at_least, t.target_at_most) > 0
        THEN json_build_object('at_least', t.target_at_least, 'at_most', t.target_at_most) END,
      'baseline', CASE WHEN t.baseline_mean IS NOT NULL AND t.baseline_stddev <> 0
        THEN json_build_object('mean', t.baseline_mean, 'stddev', t.baseline_stddev) END)) ORDER BY t.position), '[]')
    FROM target_kpis t JOIN metrics m ON m.id = t.metric_id WHERE t.experiment_id = e.id))::text
FROM experiments e WHERE e.id = ANY (%s)
"""


def _plans(ids: Sequence[int]) -> dict[int, Plan]:
    """Plans as gates.loading gives them, by one query; without answers, which no figure here depends on."""
    with connection.cursor() as cursor:
        cursor.execute(_PLANS, [list(ids)])
        return {pk: _plan(text.encode()) for pk, text in cursor.fetchall()}


def _plan(text: bytes) -> Plan:
    """One that cannot be read is shown without its variants and KPIs: its page says why it is suspended."""
    try:
        return Plan.from_json(text)
    except msgspec.ValidationError:
        bare = {**msgspec.json.decode(text), "variants": [], "kpis": [], "expected_units_per_day": None}
        return msgspec.convert(bare, Plan)


def ran_days(plan: Plan, at: datetime) -> int:
    """The age as the gates count it: whole days since the start, pauses not counted."""
    return max(Clock(plan).days(to_us(at)), 0)


def ran_until(plan: Plan, days: int) -> datetime:
    """When it will have run so many days if it is not paused again; the earliest there can be of one that is paused now."""
    clock = Clock(plan)
    at = clock.wall(days * DAY)
    return from_us(clock.started_at + days * DAY if at is None else at)


def policies_of(facts: Facts) -> dict[int, Policy]:
    """By experiment: the policy that judged its newest slot, where it can still be read."""
    parsed: dict[int, Policy] = {}
    for cursor in facts.cursors.values():
        version = cursor.policy_version
        if version is not None and version.pk not in parsed:
            with suppress(Unjudgeable):
                parsed[version.pk] = policy_of(version)
    return {pk: parsed[c.policy_version_id] for pk, c in facts.cursors.items() if c.policy_version_id in parsed}


def _goal(facts: Facts, pk: int) -> Kpi | None:
    return next((kpi for kpi in facts.plans[pk].kpis if kpi.role == "goal"), None)


def _body(version: PolicyVersion | None) -> Mapping[str, Any]:
    return version.body if version else {}


def trend(facts: Facts, pk: int, variant: str | None) -> list[Point]:
    """The first goal's effect for one treatment (the first one by default), day by day."""
    treatments = [v.key for v in facts.plans[pk].treatments]
    chosen = variant if variant in treatments else next(iter(treatments), "")
    return [reading.point for reading in facts.effects.get((pk, chosen), [])]


def shown_of(facts: Facts, pk: int) -> Mapping[str, Any]:
    cursor = facts.cursors.get(pk)
    return (cursor.shown if cursor else None) or {}


def _pictures(facts: Facts, pk: int, variant: str | None) -> list[dict[str, str]]:
    """What the control and one treatment (the first by default) look like, where somebody has uploaded it."""
    plan, kept = facts.plans[pk], facts.pictures.get(pk, {})
    chosen = variant or next((v.key for v in plan.subjects), "")
    shown = [v.key for v in plan.variants if v.control or v.key == chosen]
    return [
        {
            "url": reverse("asset", args=[kept[key].pk]),
            "small": reverse("asset_small", args=[kept[key].pk]),
            "alt": kept[key].alt,
            "variant": key,
        }
        for key in shown
        if key in kept
    ]


def _spark(facts: Facts, pk: int, variant: str | None, *, uid: str) -> SafeString:
    points = trend(facts, pk, variant)
    if not points:
        return gate_presenter.svg("")
    gate = next((g for g in shown_of(facts, pk).get("gates") or [] if g["kind"] == "uplift"), None)
    say, last = gate_presenter.sayer(gate, facts.metrics), points[-1]
    title = f"So far: {say(last.estimate)} {gate_presenter.spread(say, last)}"
    if gate_presenter.split_is_wrong(shown_of(facts, pk).get("gates") or []):
        title = "So far: not trusted, the split is wrong"
    return gate_presenter.svg(
        charts.sparkline(points, uid=uid, title=title, desc="The effect day by day, against zero")
    )


def _case(pk: int, facts: Facts, *, first: bool) -> dict[str, Any]:
    e, r = facts.experiments[pk], _foremost(facts.proposals[pk])
    shown = shown_of(facts, pk)
    gates = shown.get("gates") or []
    variant = r.variant.key if r.variant else (shown.get("recommendation") or {}).get("variant")
    gate = gate_presenter.telling(gates, code=r.code, variant=variant)
    text, spread = gate_presenter.value_text(gate, facts.metrics) if gate else ("", "")
    distrust = gate_presenter.distrust(gates, gate, code=r.code)
    due = r.proposed_at + timedelta(hours=e.team.answer_within_h)
    left = (due - facts.now).total_seconds()
    safety = r.code in _URGENT
    age = facts.ages.get(pk)
    return {
        "tone": words.TONES[r.action],
        "next": first,
        "safety": safety,
        "icon": r.action,
        "verb": r.action.capitalize(),
        "why": words.CODES.get(r.code, r.code)
        + (f": {r.variant}" if r.variant and len(facts.plans[pk].variants) > 2 else ""),
        "name": e.name,
        "url": reverse("experiment", args=[e.key]),
        "hypothesis": e.hypothesis,
        "reason": r.rationale[0] if r.rationale else "",
        "revised": _revised(facts, pk),
        "chips": gate_presenter.chips(gates, facts.metrics),
        "meta": [e.team.name, e.owner, _day_of(e, facts, pk)],
        "kpi": gate_presenter.name_of(gate, facts.metrics) if gate else "",
        "estimate": "not trusted" if distrust else text,
        "range": distrust or spread,
        "interval": gate_presenter.drawn(gate, facts.metrics, uid=f"i{pk}") if gate and not distrust else "",
        "pictures": _pictures(facts, pk, variant),
        "spark": _spark(facts, pk, variant, uid=f"s{pk}"),
        "age": freshness.text(age, now=facts.now) if age else None,
        "late": left < 6 * 3600,
        "left": "Act now"
        if safety
        else f"{words.duration(left)} left"
        if left > 0
        else f"{words.duration(-left)} overdue",
        "clock": clock(facts.now - r.proposed_at, timedelta(hours=e.team.answer_within_h), uid=f"c{pk}"),
        "since": f"of {e.team.answer_within_h} h since the proposal, {words.instant(r.proposed_at, facts.now)}",
    }


def clock(used: timedelta, promised: timedelta, *, uid: str, width: int = 168) -> SafeString:
    """How much of the answer's time is used."""
    hours, full = used.total_seconds() / 3600, promised.total_seconds() / 3600
    left = f"{hours:.1f} of {full:g} hours used"
    return gate_presenter.svg(
        charts.meter(hours, limit=full, full=full, uid=uid, title="Time to answer", desc=left, width=width)
    )


def _foremost(found: Sequence[Recommendation]) -> Recommendation:
    return min(found, key=lambda r: (_URGENT.get(r.code, 2), r.pk))


def _day_of(e: Experiment, facts: Facts, pk: int) -> str:
    if e.started_at is None:
        return "not started"
    cursor = facts.cursors.get(pk)
    most = _body(cursor.policy_version if cursor else None).get("max_days", 28)
    return f"day {ran_days(facts.plans[pk], facts.now)} of {most}"


def _row(pk: int, facts: Facts, *, lane: str) -> dict[str, Any]:
    e = facts.experiments[pk]
    shown = shown_of(facts, pk)
    gates = shown.get("gates") or []
    said = shown.get("recommendation") or {}
    variant = said.get("variant")
    gate = gate_presenter.telling(gates, code="", variant=variant)
    text, spread = gate_presenter.value_text(gate, facts.metrics) if gate else ("", "")
    goal = _goal(facts, pk)
    pill, reason = _said_closed(e, facts) if lane == "closed" else _said_open(e, said, facts)
    left, since = _last(e, said, facts) if lane == "progress" else _ended(e, facts)
    age = facts.ages.get(pk) if e.status in ("running", "paused") else None
    invalid = said.get("code") == "invalid" or gate_presenter.split_is_wrong(gates)
    return {
        "name": e.name,
        "url": reverse("experiment", args=[e.key]),
        "hypothesis": e.hypothesis,
        "status": words.status(e.status),
        "team": e.team.name,
        "owner": e.owner,
        "pill": pill,
        "reason": reason,
        "revised": _revised(facts, pk),
        "chips": gate_presenter.chips(gates, facts.metrics),
        "kpi": (goal.name or goal.metric) if goal else "Goal KPI",
        "tone": {"scaled": "scale", "deleted": "delete"}.get(e.status, "hold"),
        "pictures": _pictures(facts, pk, variant),
        "spark": _spark(facts, pk, variant, uid=f"s{pk}"),
        "estimate": "not trusted" if invalid and text else text,
        "range": "" if invalid else spread,
        "age": freshness.text(age, now=facts.now) if age else None,
        "no_age": "Ended" if lane == "closed" else "Not started",
        "left": left,
        "since": since,
    }


def _said_open(e: Experiment, said: Mapping[str, Any], facts: Facts) -> tuple[dict[str, Any], str]:
    reasons = [*(said.get("blockers") or []), *(said.get("rationale") or [])]
    first = reasons[0] if reasons else ""
    if e.status == "draft":
        return words.pill("hold", "Not started"), "Start it, and it is judged as soon as rows arrive."
    if e.status == "paused":
        return words.pill(
            "hold", "Hold, paused"
        ), "Rows still arrive and are kept; gates rest until it is started again."
    if (cursor := facts.cursors.get(e.pk)) and cursor.unjudgeable:
        action = said.get("action", "hold")
        how = "suspended" if said.get("state") == "suspended" else "cannot be judged"
        return words.pill(action, f"{action.capitalize()}, {how}", line=True), cursor.unjudgeable["reason"]
    if not said:
        return words.pill("hold", "Hold, no data"), "No slot was judged yet: send the first rows."
    action, code = said["action"], said["code"]
    why = words.CODES.get(code, code).lower()
    if said.get("state") == "suspended":
        return words.pill(action, f"{action.capitalize()}, suspended", line=True), first
    return words.pill(action, f"{action.capitalize()}, {why}"), first


def _revised(facts: Facts, pk: int) -> str:
    """Said of an experiment that runs on: that an answer of people would now be another; of several, the newest."""
    cursor = facts.cursors.get(pk)
    revisions = cursor.revisions if cursor and facts.experiments[pk].status in OPEN else {}
    return words.on_older_data(revisions[max(revisions, key=int)]) if revisions else ""


def _said_closed(e: Experiment, facts: Facts) -> tuple[dict[str, Any], str]:
    d = facts.decisions.get(e.pk)
    verb = {"scaled": "scale", "deleted": "delete"}.get(e.status, "hold")
    if d is None:
        return words.pill(verb, words.STATUSES[e.status], line=True), "Ended without a proposal that was answered."
    accepted = d.action == "accept"
    said = (
        f"Accepted by {d.by}, on the evidence as proposed.{f' “{d.reason}”' if d.reason else ''}"
        if accepted
        else f"{d.recommendation.action.capitalize()} was proposed. {d.by}: “{d.reason}”"
    )
    cursor = facts.cursors.get(e.pk)
    if cursor and (revised := cursor.revisions.get(str(d.pk))):
        said = words.on_older_data(revised)
    return words.pill(verb, f"{words.STATUSES[e.status]}, {'accepted' if accepted else 'overridden'}"), said


def _last(e: Experiment, said: Mapping[str, Any], facts: Facts) -> tuple[str, str]:
    if e.started_at is None:
        return "no date", f"draft since {words.day(e.created_at)}"
    plan = facts.plans[e.pk]
    ran = ran_days(plan, facts.now)
    if e.status == "paused":
        return "not counting", f"ran {words.plural(ran, 'day')}"
    cursor = facts.cursors.get(e.pk)
    body = _body(cursor.policy_version if cursor else None)
    least, most = body.get("min_days", 7), body.get("max_days", 28)
    suspended = said.get("state") == "suspended"
    if suspended and not gate_presenter.late(shown_of(facts, e.pk).get("gates") or []):
        return "when it holds again", f"day {ran} of {most}"
    if suspended or said.get("code") in ("stale", "no_data"):
        return "when data is back", f"day {ran} of {most}"
    left = _days_left(facts, e.pk)
    if left is not None and left < most - ran:
        when = words.day(facts.now + timedelta(days=max(left, least - ran)))[:-5]
        return f"about {when}", f"if the effect stays; day {ran} of {most}"
    if ran < least:
        return f"not before {words.day(ran_until(plan, least))[:-5]}", f"day {ran} of at least {least}"
    return f"by {words.day(ran_until(plan, most))[:-5]}", f"day {ran} of {most}"


def _days_left(facts: Facts, pk: int) -> float | None:
    """Days until the last goal is decided if its effect stays; None when that cannot be said."""
    found = [
        g["limits"].get("days_left")
        for g in shown_of(facts, pk).get("gates") or []
        if g["kind"] == "uplift" and g.get("limits")
    ]
    known = [float(days) for days in found if days is not None]
    return max(known) if known and len(known) == len(found) else None


def _ended(e: Experiment, facts: Facts) -> tuple[str, str]:
    d = facts.decisions.get(e.pk)
    if d is None or e.ended_at is None:
        return words.instant(e.ended_at, facts.now), ""
    took = (d.at - d.recommendation.proposed_at).total_seconds()
    return words.instant(e.ended_at, facts.now), f"{words.duration(took)} after the proposal"


def _lead(
    params: QueryDict, waiting: Mapping[int, datetime], *, any_shown: bool, filtered: bool, now: datetime
) -> dict[str, str]:
    if params.get("view") == "closed" and any_shown:
        return {"title": "What has ended", "text": "With the answer that ended it, newest first."}
    if filtered and not any_shown:
        return {"title": "Nothing matches", "text": "Take a word or a filter away to see more."}
    if filtered and not waiting:
        return {"title": "Nothing here needs you", "text": "No open proposal fits this search or filter."}
    if not waiting and not any_shown:
        return {
            "title": "Nothing here yet",
            "text": "Experiments that need a decision come first here, then what runs, then what ended.",
        }
    if not waiting:
        return {
            "title": "Nothing needs you",
            "text": "Every proposal has its answer. What runs is listed below with what it waits for.",
        }
    title = f"{words.plural(len(waiting), 'decision')} {'needs' if len(waiting) == 1 else 'need'} you"
    soonest = min(waiting.values())
    left = (soonest - now).total_seconds()
    when = words.instant(soonest, now)
    if left <= 0:
        return {"title": title, "text": f"The oldest promise ran out at {when}, {words.duration(-left)} ago."}
    return {"title": title, "text": f"The next promise runs out at {when}, in {words.duration(left)}."}


def _views(params: QueryDict, principal: Principal) -> list[dict[str, Any]]:
    asked = {
        name: value for name, value in params.items() if value and name not in ("needs", "progress", "closed", "sort")
    }
    ready: list[tuple[str, dict[str, str]]] = [
        ("Everything", {}),
        ("Due within 6 h", {"due": "6h"}),
        ("Stale data", {"freshness": "stale"}),
        ("Deletes", {"recommendation": "delete"}),
        ("All closed", {"view": "closed"}),
    ]
    teams = Team.objects.filter(pk__in=principal.teams).order_by("name")[:3] if len(principal.teams) > 1 else []
    ready[2:2] = [(f"Team {t.name}", {"team": t.key}) for t in teams]
    return [{"label": label, "query": f"?{urlencode(wanted)}", "here": wanted == asked} for label, wanted in ready]


def _filters(params: QueryDict) -> list[dict[str, Any]]:
    teams = [(t.key, t.name) for t in Team.objects.order_by("name")]
    owners = [(o, o) for o in Experiment.objects.order_by("owner").values_list("owner", flat=True).distinct()[:200]]
    actions = [(a, a.capitalize()) for a in (*PROPOSALS, "hold")]
    return [
        {"name": name, "label": label, "options": options(choices, params.get(name, ""))}
        for name, label, choices in (
            ("team", "Team", teams),
            ("status", "Status", words.STATUSES),
            ("recommendation", "Recommendation", actions),
            ("freshness", "Data", [(s, s.capitalize()) for s in freshness.STATES]),
            ("owner", "Owner", owners),
        )
    ]


def _filter_note(params: QueryDict) -> str:
    said = [f"{n} is {params[n]}" for n in ("team", "status", "recommendation", "freshness", "owner") if params.get(n)]
    return f" · {', '.join(said)}" if said else ""


def _note(shown: int, hidden: int) -> str:
    note = f"{words.plural(shown, 'experiment')} shown."
    if hidden == 1:
        return f"{note} 1 decision that waits for you is outside this filter."
    return f"{note} {hidden} decisions that wait for you are outside this filter." if hidden > 1 else note


def _number(params: QueryDict, name: str) -> int:
    text = params.get(name, "")
    return max(int(text) - 1, 0) if text.isdecimal() and len(text) < 6 else 0


def _pages(params: QueryDict, lane: str, at: int, found: Sequence[int]) -> dict[str, Any] | None:
    more = len(found) > PAGE
    if not at and not more:
        return None
    first = at * PAGE + 1
    return {
        "note": f"{first} to {first + min(len(found), PAGE) - 1}",
        "newest": "",
        "newer": f"{query(params, **{lane: at if at > 1 else None})}#lane-{lane}" if at else "",
        "older": f"{query(params, **{lane: at + 2})}#lane-{lane}" if more else "",
        "numbered": True,
    }


def _lane(
    lane: str, rows: list[dict[str, Any]], params: QueryDict, at: int, found: Sequence[int], *, everything: bool = False
) -> dict[str, Any]:
    closed = lane == "closed"
    last = "Decided" if closed else "Ready"
    return {
        "id": lane,
        "title": "Closed" if closed else "In progress",
        "note": ("Newest first." if everything else "Ended in the last 7 days.")
        if closed
        else "No decision is possible yet; each says what it waits for.",
        "last": last,
        "rows": rows,
        "pages": _pages(params, lane, at, found),
        "heads": [
            {"class": "w-name", "sort": _sort("Experiment", "name", params)},
            {"class": "w-rec", "label": "Decision" if closed else "Recommendation"},
            {"class": "w-gates", "label": "Gates"},
            {"class": "w-kpi", "label": "Goal KPI"},
            {"class": "w-age", "label": "Data age"},
            {"class": "", "label": last} if closed else {"class": "", "sort": _sort(last, "started", params)},
        ],
    }


def _sort(label: str, name: str, params: QueryDict) -> dict[str, str]:
    now = params.get("sort", "")
    up = now == name
    return {
        "label": label,
        "query": query(params, sort=f"-{name}" if up else name, progress=None, closed=None),
        "icon": {name: "up", f"-{name}": "down"}.get(now, "sort"),
        "aria": {name: "ascending", f"-{name}": "descending"}.get(now, ""),
    }


def _calm() -> dict[str, str]:
    return {
        "icon": "pass",
        "title": "Nothing needs you",
        "text": "No proposal is open. What runs is below, each with what it waits for.",
    }


def _empty(params: QueryDict, hidden: int, principal: Principal, *, filtered: bool) -> dict[str, Any]:
    if filtered:
        outside = f" {words.plural(hidden, 'decision')} still wait outside of it." if hidden > 0 else ""
        return {
            "icon": "search",
            "title": "No experiment matches",
            "text": f"Nothing fits this filter.{outside}",
            "url": reverse("board"),
            "label": "Show everything",
        }
    may = principal.may(Scope.WRITE)
    if not principal.teams and not principal.is_admin:
        return {
            "icon": "user",
            "title": "You are in no team yet",
            "text": NO_TEAM,
            "url": reverse("profile"),
            "label": "Your profile",
        }
    return {
        "icon": "inconclusive",
        "title": "No experiments yet",
        "text": "Name an idea, its hypothesis and one KPI; the dashboard, the gates and the log come with it."
        if may
        else "As soon as somebody in your team creates one, it is listed here.",
        "url": reverse("experiment_new") if may else "",
        "label": "Create the first",
        "go": False,
    }


def csv_rows(params: QueryDict, *, now: datetime) -> list[list[object]]:
    """The experiments a query asks for, one a line."""
    rows: list[list[object]] = [
        ["id", "key", "name", "team", "owner", "status", "started_at", "ended_at", "action", "code", "rationale"]
    ]
    found = matching(params, now=now).select_related("team", "cursor").defer("cursor__state").order_by("-id")
    for e in found[: MOST + 1]:
        said = ((e.cursor.shown if hasattr(e, "cursor") else None) or {}).get("recommendation") or {}
        rows.append(
            [
                e.pk,
                e.key,
                e.name,
                e.team.key,
                e.owner,
                e.status,
                e.started_at,
                e.ended_at,
                said.get("action"),
                said.get("code"),
            ]
        )
        rows[-1].append(" ".join(said.get("rationale") or []))
    return rows
