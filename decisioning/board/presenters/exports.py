"""Tables for a spreadsheet: the headings, then one line a row, with values as they are stored and nothing rounded."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db.models import Count
from django.http import QueryDict

from decisioning.access.models import ApiKey
from decisioning.access.principal import Principal
from decisioning.board.downloads import MOST, MOST_OF_ONE
from decisioning.board.presenters import freshness, records, slo, webhooks
from decisioning.board.presenters.board.filters import matching
from decisioning.board.presenters.experiment.context import ExperimentContext
from decisioning.board.presenters.experiment.timeline import timeline
from decisioning.board.presenters.history import effects
from decisioning.board.presenters.page_data import policies_of
from decisioning.ledger.models import Channel, Delivery
from experiments.models import Experiment
from gates import backtests, wording
from gates.engine.compiled import compile_plan
from gates.engine.narration import in_words
from gates.models import Cursor, PolicyVersion
from telemetry.models import ExperimentKpi, QuarantinedEvent, Source
from telemetry.refresh import failure_shares, fed

type Table = list[Sequence[object]]


def _table(heads: str, rows: Iterable[Sequence[object]]) -> Table:
    return [heads.split(), *rows]


# The portal ------------------------------------------------------------------------------------------------------------


_OF_AN_EXPERIMENT: Mapping[str, Callable[[Experiment, Mapping[str, Any]], object]] = {
    "id": lambda e, _: e.pk,
    "key": lambda e, _: e.key,
    "name": lambda e, _: e.name,
    "team": lambda e, _: e.team.key,
    "owner": lambda e, _: e.owner,
    "status": lambda e, _: e.status,
    "started_at": lambda e, _: e.started_at,
    "ended_at": lambda e, _: e.ended_at,
    "action": lambda _, said: said.get("action"),
    "code": lambda _, said: said.get("code"),
    "rationale": lambda _, said: " ".join(said.get("rationale") or []),
}
"""Columns of the board: of the experiment and of what is recommended of it, in words."""


def of_board(_who: Principal, params: QueryDict, now: datetime) -> Table:
    """The experiments a query asks for."""
    found = matching(params, now=now).select_related("team", "cursor").defer("cursor__state").order_by("-id")
    experiments = list(found[: MOST + 1])
    said_of = {
        e.pk: ((e.cursor.shown if hasattr(e, "cursor") else None) or {}).get("recommendation") or {}
        for e in experiments
    }
    reader = wording.reader(said_of.values(), now)
    return _table(
        " ".join(_OF_AN_EXPERIMENT),
        (
            [cell(e, said) for cell in _OF_AN_EXPERIMENT.values()]
            for e in experiments
            for said in [in_words(said_of[e.pk], reader)]
        ),
    )


def of_refresh_log(_who: Principal, params: QueryDict, _now: datetime) -> Table:
    heads = "id run_id job_name source started_at finished_at status rows refused ignored error"
    return _table(heads, records.runs_asked(params).values_list(*heads.split())[: MOST + 1])


def of_audit(_who: Principal, params: QueryDict, _now: datetime) -> Table:
    return _table(
        "id at actor_kind actor address action model object experiment_id changes",
        (
            [e.pk, e.timestamp.isoformat(), e.actor_kind, e.actor_name, e.remote_addr, e.get_action_display(),
             e.content_type.model, e.object_repr, e.experiment_id, json.dumps(e.changes, ensure_ascii=False)]
            for e in records.entries_asked(params)[: MOST + 1]
        ),
    )  # fmt: skip


def of_freshness(_who: Principal, _params: QueryDict, now: datetime) -> Table:
    found = sorted(freshness.ages(None, now=now), key=lambda a: a.badness, reverse=True)[: MOST + 1]
    p95, came = freshness.latencies(found, now=now), freshness.refreshed(found, now=now)

    return _table(
        "experiment metric role state age_s data_watermark due_at stale_at telemetry_p95_s last_refresh_at source "
        "last_run_status last_run_error",
        (
            [a.experiment_key, a.metric, a.role, a.state, a.age_s, a.watermark, a.due_at,
             a.stale_at if a.watermark else None, p95.get((a.experiment_id, a.metric)), last.at, last.source, last.status, last.error]
            for a in found
            for last in [came[a.experiment_id, a.metric]]
        ),
    )  # fmt: skip


def of_sources(_who: Principal, _params: QueryDict, now: datetime) -> Table:
    found = list(Source.objects.select_related("team").order_by("key")[: MOST + 1])
    shares, feeds = failure_shares(found, now=now), fed(found, now=now)
    return _table(
        "key team kind path url_env metrics schedule_s enabled failures failure_share data_watermark last_refresh_at due_at "
        "freshness telemetry_p95_s",
        (
            [s.key, s.team.key, s.kind, s.path, s.url_env, " ".join(s.metrics), s.schedule_s, s.enabled, s.failures,
             shares[s.pk], s.read_to, s.last_refresh_at, s.due_at, of and of.state, of and of.p95_s]
            for s in found
            for of in [feeds.get(s.pk)]
        ),
    )  # fmt: skip


def of_quarantine(_who: Principal, _params: QueryDict, _now: datetime) -> Table:
    held = QuarantinedEvent.objects.select_related("team").order_by("-id")[: MOST + 1]
    return _table(
        "id received_at team type source event_id reason replayed_at body",
        (
            [e.pk, e.received_at, e.team.key, e.type, e.source, e.event_id, e.reason, e.replayed_at,
             json.dumps(e.body, ensure_ascii=False)]
            for e in held
        ),
    )  # fmt: skip


def of_promises(who: Principal, _params: QueryDict, now: datetime) -> Table:
    return _table(
        "promise value target holds budget_left told",
        (
            [p.name, p.value, p.limit, p.holds, p.budget_left, "; ".join(f"{label}: {text}" for label, text in p.facts)]
            for p in slo.levels(slo.figures(who, now=now))
        ),
    )


def of_policies(_who: Principal, _params: QueryDict, _now: datetime) -> Table:
    judged = Cursor.objects.filter(policy_version__isnull=False).values_list("policy_version")
    used = dict(judged.annotate(n=Count("pk")).order_by())
    versions = PolicyVersion.objects.select_related("policy__team").order_by("policy__name", "policy_id", "number")
    return _table(
        "policy team version author created_at activated_at activated_by judges body",
        (
            [v.policy.name, v.policy.team.key if v.policy.team else None, v.number, v.author, v.created_at, v.activated_at,
             v.activated_by, used.get(v.pk, 0), json.dumps(v.body)]
            for v in versions[: MOST + 1]
        ),
    )  # fmt: skip


def of_backtest(version: PolicyVersion) -> Table:
    """Every variant of every recorded experiment, also those in which nothing changes, then every answer of people and every
    stretch of time in which the versions differ; empty without a finished backtest."""
    newest = backtests.newest(version)
    found: Mapping[str, Any] = (newest.result if newest else None) or {}

    def said(decided: Mapping[str, Any] | None) -> list[object]:
        return [decided["action"], decided["code"]] if decided else ["hold", ""]

    experiments = found.get("experiments", [])
    return _table(
        "experiment variant live_action live_code candidate_action candidate_code days_saved kind person begin end",
        [
            *(
                [e["experiment"], v["variant"], *said(v["live"]), *said(v["candidate"]), v["days_saved"], "variant"]
                + [None] * 3
                for e in experiments
                for v in e["variants"]
            ),
            *(
                [
                    e["experiment"],
                    a["variant"],
                    a["live"],
                    None,
                    a["candidate"],
                    None,
                    None,
                    "answer",
                    a["person"],
                    a["at"],
                    None,
                ]
                for e in experiments
                for a in e["answers"]
            ),
            *(
                [e["experiment"], None, *s["live"], *s["candidate"], None, "stretch", None, s["begin"], s["end"]]
                for e in experiments
                for s in e["stretches"]
            ),
        ],
    )


# Keys and receivers ----------------------------------------------------------------------------------------------------


def of_keys(_who: Principal, _params: QueryDict, _now: datetime) -> Table:
    return _table(
        "key team owner made_by scopes agent rate created_at expires_at revoked_at last_used_at problem",
        (
            [str(k), k.team.key, str(k.owner or ""), str(k.made_by or ""), " ".join(k.scopes), k.agent, k.rate, k.created_at,
             k.expires_at, k.revoked_at, k.last_used_at, k.problem]  # type: ignore[attr-defined] # annotated by judged()
            for k in ApiKey.objects.judged().select_related("team", "owner", "made_by").order_by("-id")[: MOST + 1]
        ),
    )  # fmt: skip


def of_webhooks(who: Principal, _params: QueryDict, _now: datetime) -> Table:
    found, teams = Channel.objects.select_related("team").order_by("-id"), webhooks.may_see(who)
    if teams is not None:
        found = found.filter(team__in=teams)
    return _table(
        "name team kind events enabled failures failing_since disabled_reason created_at created_by",
        (
            [c.name, c.team.key, c.kind, " ".join(c.events), c.enabled, c.failures, c.failing_since, c.disabled_reason,
             c.created_at, c.created_by]
            for c in found[: MOST + 1]
        ),
    )  # fmt: skip


def of_deliveries(channel: Channel, params: QueryDict) -> Table:
    found = Delivery.objects.select_related("message").filter(channel=channel).order_by("-id")
    if (state := params.get("state", "")) in webhooks.STATES:
        found = found.filter(state=state)
    return _table(
        "message type happened_at experiment state attempts next_at last_status last_error delivered_at",
        (
            [f"msg_{d.message_id}", d.message.type, d.message.created_at, d.message.data.get("experiment"), d.state, d.attempts,
             d.next_at, d.last_status, d.last_error, d.delivered_at]
            for d in found[: MOST + 1]
        ),
    )  # fmt: skip


# One experiment --------------------------------------------------------------------------------------------------------


def of_gates(context: ExperimentContext) -> Table:
    def figures(gate: Mapping[str, Any]) -> list[object]:
        names = ("estimate", "lower", "upper", "running_lower", "running_upper", "n", "p")
        return [(gate.get("reading") or {}).get(name) for name in names]

    def better_when(gate: Mapping[str, Any]) -> str | None:
        kpi = context.metrics.get(gate.get("metric") or "")
        return {"increase": "higher", "decrease": "lower"}.get(kpi.direction or "") if kpi else None

    def change(gate: Mapping[str, Any]) -> float | None:
        """As it was measured; in `estimate` and the bounds up is good."""
        estimate = (gate.get("reading") or {}).get("estimate")
        return -estimate if estimate is not None and better_when(gate) == "lower" else estimate

    return _table(
        "gate kind variant metric better_when verdict since estimate lower upper running_lower running_upper n p change reason",
        (
            [g["gate"], g["kind"], g.get("variant"), g.get("metric"), better_when(g), g["verdict"], g.get("since"), *figures(g),
             change(g), g.get("reason")]
            for g in context.gates
        ),
    )  # fmt: skip


def of_effects(context: ExperimentContext) -> Table:
    """Every goal's and guardrail's effect on each treatment, as the gates read it at the last look of each day."""
    compiled = next((compile_plan(policy, context.plan) for policy in policies_of(context.data).values()), None)
    read = (
        [
            (c, effects({context.experiment.pk: compiled}, now=context.now, of={context.experiment.pk: c}))
            for c in compiled.comparisons
        ]
        if compiled and compiled.control
        else []
    )
    return _table(
        "gate metric better_when role variant day estimate lower upper change n",
        (
            [c.gate.name, c.kpi.metric, "lower" if c.kpi.direction == "decrease" else "higher", c.kpi.role, variant, r.day,
             r.point.estimate, r.point.lower, r.point.upper, -r.point.estimate if c.kpi.direction == "decrease" else r.point.estimate, r.n]
            for c, found in read
            for (_, variant), readings in sorted(found.items())
            for r in readings
        ),
    )  # fmt: skip


def of_days(context: ExperimentContext) -> Table:
    """Every KPI of every variant day by day, and the units that were in by the end of each day."""
    return _table(
        "metric variant day value units_so_far value_so_far",
        (
            [metric, variant, day.day, day.value, day.units, day.so_far]
            for (_, metric, variant), days in sorted(context.series.items())
            for day in days
        ),
    )


def of_timeline(context: ExperimentContext) -> Table:
    return _table("at what detail", ([line["at"], line["what"], line["detail"]] for line in timeline(context)))


def of_rows(context: ExperimentContext) -> Table:
    """Every row as it was stored."""
    heads = ("metric variant ts value n variance denominator_value denominator_variance covariance revision "
             "first_received_at received_at")  # fmt: skip
    stored = ExperimentKpi.objects.filter(experiment_id=context.experiment.pk).order_by("ts", "metric", "variant")
    return _table(heads, stored.values_list(*heads.split())[: MOST_OF_ONE + 1])
