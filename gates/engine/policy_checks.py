"""What is wrong with a policy, and the typed policy of one with which nothing is. Pure.

`lint` says everything that is wrong with a body, `lint_plan` with its gates for one plan, `warnings` what is hardly meant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from gates.engine.plan import Direction, Kind, Kpi, Plan
from gates.engine.policy import DEFAULT_BODY, KEYS, Gate, Policy, bound_to, derive, in_json

_DAY_S, _DAYS = 86_400, 3_650
_LARGEST, _SMALLEST = 1e100, 1e-100
MOST_GATES, MOST_NAME = 100, 200


class MetricSpec(msgspec.Struct, frozen=True):
    """What lint has to know of a registered metric."""

    kind: Kind
    direction: Direction | None = None


class Problem(msgspec.Struct, frozen=True):
    """One reason why a body is refused. `gate` is None for the body itself; the message names gate and mend. `metric` and `key`:
    which number of which KPI it is, where the plan gave it."""

    gate: str | None
    code: str
    message: str
    metric: str | None = None
    key: str | None = None


class InvalidPolicy(ValueError):
    """A body that `lint` refuses was given to `parse`."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(" ".join(p.message for p in problems))
        self.problems = tuple(problems)


def parse(body: Mapping[str, Any], *, name: str = "", version: int = 0) -> Policy:
    """The policy of a body; every field but `gates` has its default. Raises PolicyRefused for what lint can see alone.

    >>> policy = parse(DEFAULT_BODY)
    >>> policy.persist, [gate.kind for gate in policy.gates]
    (4, ['uplift', 'guard', 'density'])
    >>> parse({"gates": []})
    Traceback (most recent call last):
    gates.engine.policy_checks.InvalidPolicy: The policy has no gates. Add at least one goal, threshold or target gate.
    """
    problems = lint(body, None, stored=True)
    if problems:
        raise InvalidPolicy(problems)
    # Not strict: lint has seen to the types, and takes whole numbers however they are written, such as 7.0.
    return msgspec.convert({**body, "name": name, "version": version}, Policy, strict=False)


_WHOLE = {
    "slot_s": 1,
    "look_s": 1,
    "closed_after_s": 0,
    "persist": 1,
    "min_days": 0,
    "max_days": 1,
    "min_units": 2,
    "snooze_days": 0,
}


_REAL = {"alpha", "max_relative_se", "planned_units", "doubt_above", "srm_tolerance"}


_RANGE: Mapping[str, tuple[float, float]] = {
    "slot_s": (1, _DAY_S),
    "look_s": (1, 31 * _DAY_S),
    "closed_after_s": (0, 31 * _DAY_S),
    "persist": (1, 1_000),
    "min_days": (0, _DAYS),
    "max_days": (1, _DAYS),
    "snooze_days": (0, _DAYS),
    "min_units": (2, 10**15),
    "planned_units": (1e-9, 10**15),
    "max_relative_se": (1e-9, 1e9),
    "doubt_above": (1e-9, 1e9),
    "srm_tolerance": (0, 0.1),
    "alpha": (1e-12, 0.5),
    "times": (1, 1_000),
    "days": (1, _DAYS),
}
"""What is beyond is a slip, and some of it nothing can be computed with."""


_CHOICE = {
    "require": ("all", "any"),
    "effect": ("relative", "difference"),
    "scope": ("variant", "experiment"),
    "for": ("goal", "guardrail", "shown"),
}


_ALWAYS_ON = ("freshness", "srm", "doubt")


def lint(body: Mapping[str, Any], metrics: Mapping[str, MetricSpec] | None, *, stored: bool = False) -> list[Problem]:
    """Every reason to refuse a body, in reading order; empty when it may be saved.

    metrics: the registered metrics by key; None leaves out what only the registry can tell. stored: it was saved when fractions over 1
    still were, and judges on as it is.
    """
    problems = list(_lint_fields(body))
    rules = body.get("gates")
    if not isinstance(rules, (list, tuple)) or not rules:
        problems.append(
            Problem(None, "no_gates", "The policy has no gates. Add at least one goal, threshold or target gate.")
        )
        return problems
    seen: set[str] = set()
    for position, rule in enumerate(rules, start=1):
        problems += _lint_rule(rule, position, metrics)
        name = rule.get("name") if isinstance(rule, Mapping) else None
        if isinstance(name, str):
            if name in seen:
                problems.append(
                    Problem(name, "duplicate_name", f"Two gates are named {name}. Give each gate a name of its own.")
                )
            seen.add(name)
    kinds = [rule.get("kind") for rule in rules if isinstance(rule, Mapping)]
    if not {"uplift", "threshold", "target"} & {kind for kind in kinds if isinstance(kind, str)}:
        problems.append(
            Problem(
                None,
                "nothing_decides",
                "No gate can decide: there is no goal (uplift), threshold or target. Add one of them.",
            )
        )
    problems += _lint_guards_on_goals([rule for rule in rules if isinstance(rule, Mapping)])
    if not stored:
        problems += _lint_ranges(body, rules)
        for name, key, value, metric in _fractions_of(body):
            spec = (metrics or {}).get(metric or "")
            problems += _lint_fraction(name, key, value, spec.direction if spec else None)
    return problems


def lint_plan(policy: Policy, plan: Plan) -> list[Problem]:
    """What only policy and plan together can get wrong; the same codes as `lint`."""
    problems: list[Problem] = []
    gates = derive(policy, plan)
    goals = {gate.metric: gate for gate in gates if gate.kind == "uplift"}
    for gate in gates:
        kpi = plan.kpi(gate.metric or "")
        if gate.kind in ("uplift", "guard") and kpi is not None:
            problems += _lint_metric(gate.name, gate.kind, kpi.metric, MetricSpec(kpi.kind, kpi.direction))
        if gate.kind == "uplift" and gate.delete_below < gate.scale_above:
            problems.append(_below(gate.name, gate.delete_below, gate.scale_above))
        if gate.kind == "guard":
            if gate.max_harm <= 0:
                problems.append(_harm(gate.name, gate.max_harm))
            goal = goals.get(gate.metric)
            if goal is not None and goal.effect == gate.effect and -gate.max_harm <= goal.scale_above:
                problems.append(_decided(gate.name, goal.name, str(gate.metric)))
        if gate.kind == "target" and _over(gate.at_least, gate.at_most):
            problems.append(_order(gate.name, gate.at_least, gate.at_most))
    for gate, kpi, key, value, planned in _fractions_in(policy, plan):
        # The policy's own numbers were looked at when it was saved, but not whether a guard on this KPI can fail.
        if planned or _never_fails(key, value, kpi.direction):
            problems += [
                msgspec.structs.replace(problem, metric=kpi.metric, key=key if planned else None)
                for problem in _lint_fraction(gate.name, key, value, kpi.direction)
            ]
    return problems


def warnings(body: Mapping[str, Any]) -> list[str]:
    """What may be saved and yet is hardly meant: shares of a relative effect over one half, as percent are when they are written for
    fractions."""
    return [_hardly_meant(name, key, value) for name, key, value, _ in _fractions_of(body) if abs(value) > _LIKELY]


def plan_warnings(policy: Policy, plan: Plan) -> list[str]:
    """As `warnings`, of the numbers that the gates of this plan go by, wherever they come from."""
    return [
        _hardly_meant(gate.name, key, value)
        for gate, _, key, value, _ in _fractions_in(policy, plan)
        if abs(value) > _LIKELY
    ]


_LIKELY = 0.5


_MEANT = "It is a fraction of control: 0.05 is 5%."


def _fractions_of(body: Mapping[str, Any]) -> Iterator[tuple[str, str, float, str | None]]:
    """(gate, setting, its value, metric) of each number in a body's gates that is a fraction of control."""
    for rule in body.get("gates") or ():
        if isinstance(rule, Mapping) and rule.get("effect", "relative") == "relative":
            for key in ("scale_above", "delete_below", "max_harm"):
                if _finite(rule.get(key)):
                    metric = rule.get("metric")
                    yield str(rule.get("name")), key, rule[key], metric if isinstance(metric, str) else None


def _fractions_in(policy: Policy, plan: Plan) -> Iterator[tuple[Gate, Kpi, str, float, bool]]:
    """(gate, KPI, setting, its value, whether the plan gave it) of each fraction of control that judges this plan."""
    for rule in policy.gates:
        if rule.kind not in ("uplift", "guard") or rule.effect != "relative" or not plan.treatments:
            continue
        for gate in bound_to(rule, plan, compared=True):
            kpi = plan.kpi(gate.metric or "")
            assert kpi is not None  # noqa: S101 - it is what the rule was bound to
            if rule.kind == "guard":
                yield gate, kpi, "max_harm", gate.max_harm, rule.max_harm == "plan"
            else:
                planned = rule.delete_below == "plan"
                yield gate, kpi, "minimum_effect" if planned else "delete_below", gate.delete_below, planned
                yield gate, kpi, "scale_above", gate.scale_above, False


def _lint_fraction(label: str, key: str, value: float, direction: Direction | None) -> Iterator[Problem]:
    if _never_fails(key, value, direction):
        why = "what should increase cannot lose more than all it has, so the guard could never fail"
    elif abs(value) > 1:
        why = f"that is {value * 100:g}%"
    else:
        return
    mend = "For a change in the metric's own unit use effect difference."
    yield Problem(label, "over_one", f"{label}: {key} is {value:g}, and {why}. {_MEANT} {mend}")


def _never_fails(key: str, value: float, direction: Direction | None) -> bool:
    return key == "max_harm" and direction == "increase" and value >= 1


def _hardly_meant(label: str, key: str, value: float) -> str:
    return f"{label}: {key} is {value:g}, which is {value * 100:g}%. {_MEANT}"


def _lint_fields(body: Mapping[str, Any]) -> Iterator[Problem]:
    known = {*_WHOLE, *_REAL, "require", "gates"}
    for key, value in body.items():
        if key not in known:
            yield Problem(
                None, "unknown_key", f"The policy has no setting {key!r}. Known are {', '.join(sorted(known))}."
            )
        elif key == "doubt_above" and value is None:
            continue
        elif key in _WHOLE or key in _REAL:
            yield from _lint_number(None, key, value, whole=key in _WHOLE, least=_WHOLE.get(key))
        elif key in _CHOICE and value not in _CHOICE[key]:
            yield Problem(
                None, "unknown_choice", f"{key} is {in_json(value)}. It must be one of {', '.join(_CHOICE[key])}."
            )
    defaults = {**DEFAULT_BODY, **{key: value for key, value in body.items() if _finite(value)}}
    if not 0 < defaults["alpha"] < 0.5:
        yield Problem(
            None, "alpha_range", f"alpha is {defaults['alpha']:g}. It must be above 0 and below 0.5, such as 0.05."
        )
    if defaults["max_days"] < defaults["min_days"]:
        yield Problem(
            None,
            "days_order",
            f"max_days ({defaults['max_days']:g}) is less than min_days ({defaults['min_days']:g}). Raise max_days or lower min_days.",
        )
    if defaults["srm_tolerance"] < 0:
        yield Problem(
            None,
            "too_small",
            f"srm_tolerance is {defaults['srm_tolerance']:g}. It must be at least 0; 0.001 lets each share be off by 0.1%.",
        )
    for key in ("max_relative_se", "planned_units", "doubt_above"):
        if defaults[key] is not None and defaults[key] <= 0:
            yield Problem(None, "not_positive", f"{key} is {defaults[key]:g}. It must be above 0.")
    slot_s, look_s = defaults["slot_s"], defaults["look_s"]
    if slot_s >= 1 and look_s >= 1 and look_s % slot_s:
        yield Problem(
            None, "grid", f"look_s ({look_s:g}) is no multiple of slot_s ({slot_s:g}). Looks must fall on slots."
        )


def _lint_ranges(body: Mapping[str, Any], rules: Sequence[object]) -> Iterator[Problem]:
    """Numbers of the right kind that nobody means, and more gates or longer names than anybody reads."""
    named = [(None, body), *((str(rule.get("name"))[:80], rule) for rule in rules if isinstance(rule, Mapping))]
    for label, numbers in named:
        at = f"{label}: " if label else ""
        for key, value in numbers.items():
            if not _finite(value):
                continue
            least, most = _RANGE.get(key, (-_LARGEST, _LARGEST))
            if value > most or (value < least and key in ("planned_units", "max_relative_se", "alpha") and value > 0):
                yield Problem(label, "too_large", f"{at}{key} is {value:g}. It must be {least:g} to {most:g}.")
            elif value < -_LARGEST or (key not in _RANGE and 0 < abs(value) < _SMALLEST):
                yield Problem(label, "too_large", f"{at}{key} is {value:g}, which nothing can be computed with.")
    if len(rules) > MOST_GATES:
        yield Problem(None, "too_large", f"The policy has {len(rules)} gates. At most {MOST_GATES} are taken.")
    for label, rule in named[1:]:
        if len(str(rule.get("name"))) > MOST_NAME:
            yield Problem(label, "too_large", f"{label}...: the name is longer than {MOST_NAME} characters.")


def _lint_rule(rule: object, position: int, metrics: Mapping[str, MetricSpec] | None) -> Iterator[Problem]:
    if not isinstance(rule, Mapping):
        yield Problem(None, "wrong_type", f"Gate {position} is no object. Write it as {{'name': ..., 'kind': ...}}.")
        return
    kind, name = rule.get("kind"), rule.get("name")
    label = name if isinstance(name, str) and name.strip() else f"gate {position}"
    if label != name:
        yield Problem(label, "missing_key", f"Gate {position} has no name. Give it one.")
    if not isinstance(kind, str) or kind not in KEYS:
        why = "It is always on: leave it out." if kind in _ALWAYS_ON else f"Known are {', '.join(KEYS)}."
        yield Problem(label, "unknown_kind", f"{label}: there is no gate kind {kind!r} to write in a policy. {why}")
        return
    for key in rule:
        if key not in KEYS[kind]:
            yield Problem(
                label,
                "unknown_key",
                f"{label}: a {kind} gate has no {key!r}. It may have {', '.join(sorted(KEYS[kind]))}.",
            )
    yield from _lint_values(label, kind, rule)
    yield from _lint_binding(label, kind, rule, metrics)


def _lint_values(label: str, kind: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    for key in ("scale_above", "delete_below", "max_harm", "at_least", "at_most"):
        if key in rule and not (rule[key] == "plan" and key in ("delete_below", "max_harm")):
            yield from _lint_number(label, key, rule[key], whole=False, least=None)
    for key in ("times", "days"):
        if key in rule:
            yield from _lint_number(label, key, rule[key], whole=True, least=1)
    for key in ("effect", "scope", "for"):
        if key in rule and rule[key] not in _CHOICE[key]:
            yield Problem(
                label,
                "unknown_choice",
                f"{label}: {key} is {in_json(rule[key])}. It must be one of {', '.join(_CHOICE[key])}.",
            )
    if kind == "uplift":
        yield from _lint_goal(label, rule)
    if kind == "guard" and _finite(rule.get("max_harm")) and rule["max_harm"] <= 0:
        yield _harm(label, rule["max_harm"])
    if kind == "threshold":
        yield from _lint_threshold(label, rule)
    if kind == "density":
        yield from _lint_density(label, rule)


def _lint_goal(label: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    below, above = rule.get("delete_below"), rule.get("scale_above", 0.0)
    if "delete_below" not in rule:
        yield Problem(
            label,
            "no_delete_below",
            f'{label}: a goal without delete_below can never end in delete. Add delete_below, a number or "plan".',
        )
    elif _finite(below) and _finite(above) and rule["delete_below"] < above:
        yield _below(label, rule["delete_below"], above)


def _lint_threshold(label: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    at_least, at_most = rule.get("at_least"), rule.get("at_most")
    if at_least is None and at_most is None:
        yield Problem(label, "no_limit", f"{label}: a threshold without limit never fails. Add at_most or at_least.")
    elif _over(at_least, at_most):
        yield _order(label, at_least, at_most)


def _lint_density(label: str, rule: Mapping[str, Any]) -> Iterator[Problem]:
    at_least = rule.get("at_least")
    if at_least is None:
        yield Problem(label, "no_limit", f"{label}: a density gate needs at_least, such as 0.95.")
    elif "metric" not in rule and _finite(at_least) and not 0 <= at_least <= 1:
        yield Problem(
            label,
            "over_one",
            f"{label}: at_least is {at_least:g}, but buckets are counted as a fraction. Use 0 to 1, such as 0.95.",
        )


def _lint_binding(
    label: str, kind: str, rule: Mapping[str, Any], metrics: Mapping[str, MetricSpec] | None
) -> Iterator[Problem]:
    metric = rule.get("metric")
    if metric is not None and not isinstance(metric, str):
        yield Problem(label, "wrong_type", f"{label}: metric is {in_json(metric)}. It must be the key of a metric.")
        return
    if metric is not None and rule.get("for") is not None:
        yield Problem(label, "two_bindings", f"{label}: it has both for and metric. Keep one of them.")
    if metric is None and rule.get("for") is None and kind in ("uplift", "guard", "threshold"):
        yield Problem(
            label, "no_binding", f"{label}: it reads no metric. Add for (goal, guardrail, shown) or metric (a key)."
        )
    if metric is None or metrics is None:
        return
    if metric not in metrics:
        yield Problem(
            label, "unknown_metric", f"{label}: there is no metric {metric!r}. Create the metric first or name another."
        )
    elif kind in ("uplift", "guard"):
        yield from _lint_metric(label, kind, metric, metrics[metric])


def _lint_metric(label: str, kind: str, metric: str, spec: MetricSpec) -> Iterator[Problem]:
    word = "goal" if kind == "uplift" else "guard"
    if spec.kind == "gauge":
        yield Problem(
            label,
            f"gauge_{word}",
            f"{label}: {metric} is a gauge, which has no units to compare. Use a threshold or target gate, "
            "or a mean, proportion or ratio metric.",
        )
    if spec.direction is None:
        yield Problem(
            label,
            "no_direction",
            f"{label}: {metric} has no direction, so nobody can tell better from worse. "
            "Set the metric's direction to increase or decrease.",
        )


def _lint_guards_on_goals(rules: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    goals = [rule for rule in rules if rule.get("kind") == "uplift"]
    for guard in rules:
        if guard.get("kind") != "guard":
            continue
        harm = guard.get("max_harm", "plan")
        for goal in goals:
            same = any(guard.get(key) is not None and guard.get(key) == goal.get(key) for key in ("metric", "for"))
            if not same or guard.get("effect", "relative") != goal.get("effect", "relative"):
                continue
            above = goal.get("scale_above", 0.0)
            known = _finite(above) and (_finite(harm) or above >= 0)
            if known and (-harm if _finite(harm) else 0.0) <= above:
                what = str(guard.get("metric") or f"every {guard.get('for')}")
                yield _decided(str(guard.get("name")), str(goal.get("name")), what)


def _lint_number(label: str | None, key: str, value: object, *, whole: bool, least: int | None) -> Iterator[Problem]:
    where = f"{label}: {key}" if label else key
    if isinstance(value, float) and not math.isfinite(value):
        yield Problem(label, "not_finite", f"{where} is {value}. It must be a finite number.")
    elif not _finite(value) or (whole and value != int(value)):  # type: ignore[call-overload]
        yield Problem(
            label, "wrong_type", f"{where} is {in_json(value)}. It must be a {'whole ' if whole else ''}number."
        )
    elif least is not None and value < least:  # type: ignore[operator]
        yield Problem(label, "too_small", f"{where} is {value}. It must be at least {least}.")


def _below(label: str, delete_below: float, scale_above: float) -> Problem:
    return Problem(
        label,
        "delete_below_scale_above",
        f"{label}: delete_below ({delete_below:g}) is less than scale_above ({scale_above:g}), so one effect could be "
        "scaled and deleted. Raise delete_below or lower scale_above.",
    )


def _harm(label: str, max_harm: float) -> Problem:
    return Problem(
        label,
        "max_harm_not_positive",
        f"{label}: max_harm is {max_harm:g}. It must be above 0, the loss you can bear: 0.01 is 1%.",
    )


def _order(label: str, at_least: float | None, at_most: float | None) -> Problem:
    return Problem(
        label,
        "min_over_max",
        f"{label}: at_least ({at_least:g}) is above at_most ({at_most:g}): no value passes. Swap them.",
    )


def _decided(label: str, goal: str, metric: str) -> Problem:
    return Problem(
        label,
        "guard_on_goal",
        f"{label}: its metric ({metric}) is already decided by the goal {goal}. Remove the guard or guard another metric.",
    )


def _over(at_least: object, at_most: object) -> bool:
    return _finite(at_least) and _finite(at_most) and at_least > at_most  # type: ignore[operator]


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
