"""Policies: what a team wants proved before it scales or deletes, as data. Pure.

A body is the JSON of docs/gates.md section 4; `gates.engine.policy_checks` says what is wrong with one, and makes the typed `Policy`.
`derive` makes the gates of one plan out of policy and KPIs, `sentence` reads one gate rule aloud.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from gates.engine.plan import Kpi, Plan

GateKind = Literal["uplift", "guard", "threshold", "density", "target", "freshness", "srm", "doubt"]
Effect = Literal["relative", "difference"]
FromPlan = Literal["plan"]
Body = dict[str, Any]

TARGET_DAYS = 7
SRM_ALARM = 1_000.0

DEFAULT_BODY: Body = {
    "alpha": 0.05,
    "slot_s": 300,
    "look_s": 3600,
    "closed_after_s": 1800,
    "persist": 4,
    "min_days": 7,
    "max_days": 28,
    "min_units": 1000,
    "max_relative_se": 0.1,
    "planned_units": 100_000,
    "require": "all",
    "snooze_days": 7,
    "doubt_above": 0.5,
    "srm_tolerance": 0.001,
    "gates": [
        {
            "name": "{metric}_uplift",
            "kind": "uplift",
            "for": "goal",
            "effect": "relative",
            "scale_above": 0.0,
            "delete_below": "plan",
        },
        {"name": "{metric}_guard", "kind": "guard", "for": "guardrail", "effect": "relative", "max_harm": "plan"},
        {"name": "density", "kind": "density", "at_least": 0.95},
    ],
}
QUICK_BODY: Body = {**DEFAULT_BODY, "min_days": 1, "look_s": 900, "closed_after_s": 300}


class GateRule(msgspec.Struct, frozen=True, rename={"for_": "for"}, omit_defaults=True):
    """One entry of a body's `gates`. Which fields a kind may use is in `KEYS`."""

    name: str
    kind: Literal["uplift", "guard", "threshold", "density", "target"]
    for_: Literal["goal", "guardrail", "shown"] | None = None
    metric: str | None = None
    effect: Effect = "relative"
    scale_above: float = 0.0
    delete_below: float | FromPlan = "plan"
    max_harm: float | FromPlan = "plan"
    at_least: float | None = None
    at_most: float | None = None
    times: int = 1
    scope: Literal["variant", "experiment"] = "variant"
    days: int = TARGET_DAYS


class Policy(msgspec.Struct, frozen=True, cache_hash=True):
    """A parsed policy version. Seconds, days, units and fractions as in docs/gates.md section 4; hashable.

    A body that does not say `doubt_above` or `srm_tolerance` was saved before there were any, and judges without.
    """

    gates: tuple[GateRule, ...]
    alpha: float = 0.05
    slot_s: int = 300
    look_s: int = 3600
    closed_after_s: int = 1800
    persist: int = 4
    min_days: int = 7
    max_days: int = 28
    min_units: int = 1000
    max_relative_se: float = 0.1
    planned_units: float = 100_000.0
    require: Literal["all", "any"] = "all"
    snooze_days: int = 7
    doubt_above: float | None = None
    srm_tolerance: float = 0.0
    name: str = ""
    version: int = 0


class Gate(msgspec.Struct, frozen=True, omit_defaults=True):
    """One gate of one experiment: a rule bound to a KPI, with `"plan"` resolved to the KPI's numbers."""

    name: str
    kind: GateKind
    metric: str | None = None
    effect: Effect = "relative"
    scale_above: float = 0.0
    delete_below: float = 0.0
    max_harm: float = 0.0
    at_least: float | None = None
    at_most: float | None = None
    times: int = 1
    scope: Literal["variant", "experiment"] = "variant"
    days: int = TARGET_DAYS


KEYS: dict[str, frozenset[str]] = {
    "uplift": frozenset({"name", "kind", "for", "metric", "effect", "scale_above", "delete_below"}),
    "guard": frozenset({"name", "kind", "for", "metric", "effect", "max_harm"}),
    "threshold": frozenset({"name", "kind", "for", "metric", "at_least", "at_most", "times", "scope"}),
    "density": frozenset({"name", "kind", "metric", "at_least"}),
    "target": frozenset({"name", "kind", "for", "metric", "days"}),
}
"""Keys a gate of each kind may have."""


def setting(body: Mapping[str, Any], name: str) -> Any:
    """A setting of a body; its default where the body leaves it out.

    >>> setting({"max_days": 14}, "max_days"), setting({}, "max_days")
    (14, 28)
    """
    return body.get(name, _BEFORE.get(name, DEFAULT_BODY[name]))


_BEFORE: Body = {"doubt_above": None, "srm_tolerance": 0.0}
"""What bodies go by that do not say it, because they were saved before there was such a setting."""


def completed(body: Mapping[str, Any]) -> Body:
    """A body to be saved, with what it leaves out of what older ones do without.

    >>> completed({"srm_tolerance": 0, "gates": []})
    {'doubt_above': 0.5, 'srm_tolerance': 0, 'gates': []}
    """
    return {**{name: DEFAULT_BODY[name] for name in _BEFORE}, **body}


def canonical(policy: Policy) -> Body:
    """The body with every default written out, keys sorted: equal bodies give equal canonical forms.

    >>> from gates.engine.policy_checks import parse
    >>> canonical(parse(DEFAULT_BODY)) == canonical(parse(completed({"gates": DEFAULT_BODY["gates"]})))
    True
    """
    body = msgspec.to_builtins(policy)
    del body["name"], body["version"]
    body["gates"] = [
        {key: value for key in sorted(KEYS[rule.kind]) if (value := _field(rule, key)) is not None}
        for rule in policy.gates
    ]
    return dict(sorted(body.items()))


def derive(policy: Policy, plan: Plan) -> list[Gate]:
    """The gates of this plan, in the policy's order, then target, freshness, srm and doubt.

    `for` makes one gate for each target KPI of that role, `metric` binds where the plan names the metric. Goals, guards and
    srm need treatments; an experiment without treatments gets a target gate for each KPI with a target.
    """
    gates: list[Gate] = []
    compared = bool(plan.treatments)
    for rule in policy.gates:
        if rule.kind in ("uplift", "guard") and not compared:
            continue
        if rule.kind == "density" and rule.metric is None:
            gates.append(Gate(name=rule.name, kind="density", at_least=rule.at_least))
            continue
        gates += bound_to(rule, plan, compared=compared)
    named = {gate.metric for gate in gates if gate.kind == "target"}
    if not compared:
        gates += [_target(k, f"{k.metric}_target") for k in plan.kpis if k.target is not None and k.metric not in named]
    gates.append(Gate(name="freshness", kind="freshness"))
    if compared and any(_counts(kpi, gates) for kpi in plan.kpis):
        gates.append(Gate(name="srm", kind="srm"))
    if any(gate.kind in ("uplift", "guard") for gate in gates):
        gates.append(Gate(name="doubt", kind="doubt"))
    return gates


def counting(plan: Plan, gates: Sequence[Gate]) -> list[Kpi]:
    """KPIs whose n is checked against the planned split: exposures, and goals and guards that count assignment units."""
    return [kpi for kpi in plan.kpis if _counts(kpi, gates)]


def _counts(kpi: Kpi, gates: Sequence[Gate]) -> bool:
    if kpi.role == "exposure":
        return True
    judged = {gate.metric for gate in gates if gate.kind in ("uplift", "guard")}
    return kpi.counts_assignment and kpi.kind != "gauge" and kpi.metric in judged


def bound_to(rule: GateRule, plan: Plan, *, compared: bool) -> Iterator[Gate]:
    if rule.for_ is not None:
        kpis = [kpi for kpi in plan.kpis if kpi.role == rule.for_]
    else:
        kpis = [
            kpi for kpi in plan.kpis if kpi.metric == rule.metric or (rule.kind == "target" and rule.metric is None)
        ]
    for kpi in kpis:
        name = rule.name.replace("{metric}", kpi.metric)
        if name == rule.name and len(kpis) > 1:
            name = f"{rule.name}_{kpi.metric}"
        if rule.kind == "target":
            if not compared and kpi.target is not None:
                yield _target(kpi, name, rule.days)
            continue
        yield Gate(
            name=name,
            kind=rule.kind,
            metric=kpi.metric,
            effect=rule.effect,
            scale_above=rule.scale_above,
            delete_below=kpi.minimum_effect if rule.delete_below == "plan" else rule.delete_below,
            max_harm=kpi.max_harm if rule.max_harm == "plan" else rule.max_harm,
            at_least=rule.at_least,
            at_most=rule.at_most,
            times=rule.times,
            scope=rule.scope,
        )


def _target(kpi: Kpi, name: str, days: int = TARGET_DAYS) -> Gate:
    assert kpi.target is not None  # noqa: S101 - the callers ask only for KPIs with a target
    return Gate(
        name=name, kind="target", metric=kpi.metric, at_least=kpi.target.at_least, at_most=kpi.target.at_most, days=days
    )


def in_json(value: object) -> str:
    """A value of a body as it was written."""
    return json.dumps(value, ensure_ascii=False, default=str)


def sentence(gate: Mapping[str, Any]) -> str:
    """One gate of a body as a sentence a person reads.

    >>> for rule in DEFAULT_BODY["gates"]:
    ...     print(sentence(rule))
    Every goal passes when it is proved above 0% against control and fails when it is proved below the KPI's minimum effect. \
With require all, all goals must pass to scale and one that fails deletes; with any, one must pass to scale and all must fail to delete.
    Every guardrail must be proved not to lose more than the KPI's max harm against control; a proved larger loss deletes.
    At least 95% of the expected buckets must have arrived over the policy's minimum days.
    >>> sentence({"name": "cap", "kind": "threshold", "metric": "error_rate", "at_most": 0.05, "times": 2})
    'error_rate of every variant must stay at most 0.05; 2 observations outside in a row delete.'
    """
    kind = gate["kind"]
    what = gate.get("metric") or f"every {gate.get('for') or 'KPI'}"
    relative = gate.get("effect", "relative") == "relative"
    against = "against control" if relative else "above control, in its unit"
    if kind == "uplift":
        below = gate.get("delete_below", "plan")
        limit = "the KPI's minimum effect" if below == "plan" else _amount(below, relative=relative)
        above = _amount(gate.get("scale_above", 0.0), relative=relative)
        subject = what[0].upper() + what[1:] if gate.get("metric") is None else what
        return (
            f"{subject} passes when it is proved above {above} {against} and fails when it is proved below {limit}. With "
            "require all, all goals must pass to scale and one that fails deletes; with any, one must pass to scale and all "
            "must fail to delete."
        )
    if kind == "guard":
        harm = gate.get("max_harm", "plan")
        limit = "the KPI's max harm" if harm == "plan" else _amount(harm, relative=relative)
        subject = what[0].upper() + what[1:] if gate.get("metric") is None else what
        return f"{subject} must be proved not to lose more than {limit} against control; a proved larger loss deletes."
    if kind == "threshold":
        times = gate.get("times", 1)
        seen = "1 observation outside deletes" if times == 1 else f"{times} observations outside in a row delete"
        if gate.get("scope") == "experiment":
            seen += " the whole experiment, whichever variant it is"
        return f"{what} of every variant must stay {_band(gate)}; {seen}."
    if kind == "density":
        if gate.get("metric"):
            return f"The newest closed value of {what} must be at least {gate['at_least']:g} in every variant."
        return f"At least {gate['at_least'] * 100:g}% of the expected buckets must have arrived over the policy's minimum days."
    if kind == "target":
        return (
            f"Without treatments: {what} with a target must be inside it on each of the last "
            f"{gate.get('days', TARGET_DAYS)} closed days (descriptive, not causal)."
        )
    if kind == "freshness":
        return "Every metric that is read must be as fresh as its metric promises, in every variant."
    if kind == "doubt":
        return "Buckets must scatter as much as the variance of their rows says, and no goal may have more units than were exposed."
    return "Units must arrive in the planned split (sequential sample ratio test, alarm at 1,000 to 1)."


def _band(gate: Mapping[str, Any]) -> str:
    limits = [
        f"{word} {gate[key]:g}"
        for key, word in (("at_least", "at least"), ("at_most", "at most"))
        if gate.get(key) is not None
    ]
    return " and ".join(limits)


def _amount(value: float, *, relative: bool) -> str:
    return f"{value * 100:g}%" if relative else f"{value:g}"


def _field(rule: GateRule, key: str) -> Any:
    return getattr(rule, "for_" if key == "for" else key)
