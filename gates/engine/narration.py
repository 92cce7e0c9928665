"""What people read: reasons in sentences, as of when they are read and in the names of then. Pure; decides nothing.

Nothing of this is stored and nothing of it is evidence: a mended word changes no digest. A code that this version does not know is
shown as it is, never left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from gates.engine.figures import MINUS, Change, listed, signed, significant, span, whole_days
from gates.engine.reasons import reasons_in

LOG_ALARM = math.log(1000)

type Told = Mapping[str, Any]
"""A reason, as `gates.engine.reasons` makes it and JSON keeps it."""


class Called(NamedTuple):
    """What people call a metric now, the unit of its values, and which way is good."""

    name: str = ""
    unit: str = ""
    less_is_better: bool = False


class Reader(NamedTuple):
    """Who reads: `now` (None: ages are left out), and what metrics are called by key."""

    now: datetime | None = None
    metrics: Mapping[str, Called] = {}

    def name(self, reason: Told) -> str:
        metric = str(reason.get("metric", ""))
        return self.metrics.get(metric, Called()).name or metric

    def change(self, reason: Told) -> Change:
        """How the effect of a reason's metric is told."""
        called = self.metrics.get(str(reason.get("metric")), Called())
        if reason.get("effect", "relative") == "relative":
            return Change(less_is_better=called.less_is_better)
        unit = f" {called.unit}" if called.unit else ""
        return Change(lambda value: f"{signed(value)}{unit}", less_is_better=called.less_is_better)

    def age(self, instant: str) -> str:
        """How old something is, told before a comma or an end."""
        if self.now is None:
            return ""
        return f", {span(max((self.now - datetime.fromisoformat(instant)).total_seconds(), 0))} old"


def rationale(reasons: Iterable[Told], reader: Reader) -> list[str]:
    """What is recommended, why, and what would change it; of several variants each sentence under its variant."""
    return [_under(reason, sentence(reason, reader)) for reason in reasons if not reason.get("blocks")]


def blockers(reasons: Iterable[Told], reader: Reader) -> list[str]:
    """What has to go before anything else can be advised."""
    return [sentence(reason, reader) for reason in reasons if reason.get("blocks")]


def sentence(reason: Told, reader: Reader) -> str:
    """One reason. One that cannot be told, because another version made it, is shown as its code and fields.

    >>> sentence({"code": "no_spread", "metric": "revenue"}, Reader(metrics={"revenue": Called("Revenue a session")}))
    'Revenue a session: every unit has the same value so far, so there is no spread to judge by.'
    >>> sentence({"code": "from_tomorrow", "metric": "revenue", "left": 3}, Reader())
    'from_tomorrow (metric revenue, left 3).'
    """
    try:
        return _SENTENCES[reason["code"]](reason, reader)
    except (LookupError, TypeError, ValueError):
        fields = ", ".join(f"{name} {value}" for name, value in reason.items() if name not in ("code", "blocks", "of"))
        return f"{reason.get('code')}{f' ({fields})' if fields else ''}."


def codes() -> frozenset[str]:
    """Every code there are words for."""
    return frozenset(_SENTENCES)


def narrated(found: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
    """An evaluation as it is kept ({recommendation, variants, gates}), its reasons in sentences beside them.

    What was recorded before reasons were data keeps its sentences (code `told`).
    """
    return {
        **found,
        "recommendation": in_words(found["recommendation"], reader),
        "variants": [in_words(told, reader) for told in found["variants"]],
        "gates": [gate_in_words(gate, reader) for gate in found["gates"]],
    }


def in_words(recommendation: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
    """A recommendation with `rationale` and `blockers` made of its `reasons`."""
    reasons = reasons_in(recommendation)
    said = {"rationale": rationale(reasons, reader), "blockers": blockers(reasons, reader), "reasons": reasons}
    return {**recommendation, **said}


def gate_in_words(gate: Mapping[str, Any], reader: Reader) -> dict[str, Any]:
    """A gate with `reason` made of its `reasons`."""
    reasons = reasons_in(gate)
    return {**gate, "reason": " ".join(sentence(reason, reader) for reason in reasons), "reasons": reasons}


def _under(reason: Told, said: str) -> str:
    of = reason.get("of")
    return f"{of['variant']} ({of['action']} {of['code']}): {said}" if of else said


# One code after the other ---------------------------------------------------------------------------------------------


def _harmed(r: Told, by: Reader) -> str:
    change = by.change(r)
    how = "rise by" if change.less_is_better else "lose"
    least = change(-r["max_harm"]).lstrip(f"+{MINUS}")
    return (
        f"{by.name(r)} of {r['variant']} is proved to {how} more than {least} (at best {change(r['upper'])}), "
        f"at {r['looks']} looks in a row."
    )


def _undecided(r: Told, _: Reader) -> str:
    end = "The experiment has ended" if r["ended"] else f"{r['max_days']} days are over"
    return f"{end} without a decision{f'; {r["variant"]} leans {r["leans"]}' if r['leans'] else ''}."


def _held(r: Told, _: Reader) -> str:
    which = "looks with newer rows" if r["newer"] else "looks"
    return f"{' '.join(r['advised'])} has held at {r['looks']} of {r['needed']} {which}."


def _stands_since(r: Told, _: Reader) -> str:
    return f"Proposed at {r['slot']} as {' '.join(r['proposed'])} and not answered yet; the gates now say {' '.join(r['now'])}."


def _others_go(r: Told, _: Reader) -> str:
    others = r["others"]
    return f"{listed(others)} {'goes' if len(others) == 1 else 'go'} with it: only {r['variant']} is scaled."


def _split_alarm(r: Told, _: Reader) -> str:
    mend = ""
    if r["may_not_count_assignment"]:
        even = [f"n of {other} came as planned ({_shares(units)})" for other, units in r["as_planned"]]
        seen = f" {listed(even)}." if even else ""
        mend = (
            f"{seen} If n of {r['metric']} counts only some of the users assigned, such as those who ordered, "
            f"set counts_assignment: false on {r['metric']}."
        )
    return (
        f"Units of {r['metric']} did not arrive in the planned split: {_split(r)}{_give_or_take(r)}. So uneven a split comes about by "
        f"chance in less than 1 of 1,000 experiments (since {r['since']}). No comparison can be trusted until that is explained.{mend}"
    )


def _split(r: Told) -> str:
    """What arrived beside what was planned, as shares of the units."""
    units, weights = (dict(r[of]) for of in ("units", "weights"))
    total, planned = sum(units.values()), math.fsum(weights.values())
    digits = max(1, min(3, round(math.log10(max(total, 1)) / 2)))
    seen = " : ".join(f"{variant} {100 * n / max(total, 1):.{digits}f}%" for variant, n in units.items())
    wanted = " : ".join(f"{100 * weight / planned:.4g}%" for weight in weights.values())
    return f"{seen} of {total:,} units in place of {wanted}"


def _give_or_take(r: Told) -> str:
    return f", each give or take {100 * r['tolerance']:.3g} points" if r.get("tolerance") else ""


def _split_as_planned(r: Told, _: Reader) -> str:
    if "units" not in r:  # as the second rules said it
        return f"Units arrive as planned (evidence {significant(r['log_e'])}, alarm at {LOG_ALARM:.1f})."
    return f"Units of {r['metric']} arrive as planned: {_split(r)}."


def _split_tolerated(r: Told, _: Reader) -> str:
    return (
        f"Units of {r['metric']} arrive nearly as planned: {_split(r)}. That is no chance, and too small to matter: the policy "
        f"tolerates {100 * r['tolerance']:.3g} points."
    )


_LOOKS_LIKE: Mapping[str, str] = {
    "bucket": "One bucket, that of {bucket}, holds {part} of it: look at what came in it, such as bots or a test, and send its rows again without",
    "no_spread": "Their variance is 0: send the variance of the units",
    "percent": "It looks like values in percent beside the variance of a fraction: send both in one unit",
    "squared_error": "It looks like the square of the standard error, sent as variance: send standard_error by its name, or times n",
    "standard_error": "It looks like the standard error, sent as variance: send standard_error by its name",
    "stddev": "It looks like the standard deviation, sent as variance: send stddev by its name, or its square as variance",
    "twice": "It looks as if every unit counted twice: count each once, in value and n",
    "unknown": "Check what variance and n of its rows count: the variance per unit, and each unit once",
}


def _rows_doubted(r: Told, by: Reader) -> str:
    who, aside = (
        f"{by.name(r)} of {r['variant']}",
        "If the rows are right, set the doubt aside for this KPI, with the reason.",
    )
    if r["cause"] == "totals":
        return (
            f"{who}: its buckets hardly differ from each other while n only grows. They look like running totals: set temporality "
            f"cumulative, or send in each row what is new. {aside}"
        )
    times = "" if r["ratio"] is None else f"{significant(r['ratio'])} times "
    part = "most" if r["share"] is None else f"{100 * r['share']:.0f}%"
    like = _LOOKS_LIKE.get(r["cause"], _LOOKS_LIKE["unknown"]).format(bucket=r["bucket"], part=part)
    return f"{who}: its buckets scatter {times}more beside {r['control']} than their variance allows. {like}. {aside}"


def _implausible(r: Told, by: Reader) -> str:
    change = by.change(r)
    return (
        f"{by.name(r)} of {r['variant']} is proved beyond {change(r['lower'])}, and more than {change(r['plausible_to'])} is hardly ever true. "
        "Before it is scaled, check that both arms count the same thing over the same time, that no event is counted twice in one of them, "
        "and that nobody sees both. If it is true, scale it by an override; plausible_to of the KPI says how much is believed."
    )


def _shares(counts: Iterable[tuple[str, float]]) -> str:
    """Numbers per variant, in plan order."""
    return " : ".join(f"{variant} {n:,g}" if isinstance(n, float) else f"{variant} {n:,}" for variant, n in counts)


def _contradicts_itself(r: Told, by: Reader) -> str:
    change = by.change(r)
    return (
        f"{r['gate']} contradicts itself: it was proved above {change(r['scale_above'])} and below it "
        f"(L {change(r['lower'])}, U {change(r['upper'])})."
    )


def _measured(r: Told, by: Reader) -> str:
    change = by.change(r)
    running = r["running_lower"], r["running_upper"]
    best = ""
    if running not in ((None, None), (r["lower"], r["upper"])):
        best = f", over all looks {' to '.join(change.interval(*running))}"
    worth = change.worth(r["estimate"])
    interval = f"always-valid {100 * (1 - r['alpha']):.4g}% interval {' to '.join(change.interval(r['lower'], r['upper']))}{best}"
    if r["lower"] is None and r["upper"] is None and not best:
        interval = "nothing bounds it yet"
    return (
        f"{by.name(r)}: {change(r['estimate'])}{worth}{',' if worth else ''} for {r['variant']} "
        f"({interval}; {r['units']:,} units)."
    )


def _bounded_above_only(r: Told, by: Reader) -> str:
    return (
        f"{by.name(r)}: {r['control']} is still 0, so there is no relative effect to show; {r['variant']} is proved to be at best "
        f"{by.change(r)(r['upper'])}."
    )


def _scale_needs(r: Told, by: Reader) -> str:
    change = by.change(r)
    bound = "upper bound below" if change.less_is_better else "lower bound above"
    whose = "" if r["goal"] else "guard's "
    need = f"Scale needs the {whose}{bound} {change(r['above'])} for {by.name(r)}; it is {change(r['lower'])}"
    rate, stays, surely = r.get("units_per_day"), r.get("days_left"), r.get("days_left_at_most")
    if rate is None or (stays is None and surely is None):
        return f"{need}."
    about = (
        "it will not get there while the effect stays"
        if stays is None
        else f"about {whole_days(stays)} more days if the effect stays"
    )
    until = "" if surely is None else f", by {whole_days(surely)} whatever it is"
    return f"{need}; at today's {round(rate):,} units a day {about}{until}."


def _limit(r: Told, _: Reader) -> str:
    seen = ", ".join(f"{significant(value)} at {ts}" for ts, value in r["observed"])
    side = "inside" if r["code"] == "inside_limit" else "outside"
    return f"{r['metric']} of {r['variant']} is {side} its limit ({_band(r)}): {seen}."


def _scale_needs_limit(r: Told, by: Reader) -> str:
    seen = _limit({**r, "code": "outside_limit"}, by) if r.get("observed") else _no_value(r, by)
    return f"Scale needs {r['gate']} to pass: {seen}"


def _no_value(r: Told, _: Reader) -> str:
    return f"{r['metric']} of {r['variant']} has no readable value."


def _band(r: Told) -> str:
    limits = [(word, r.get(key)) for word, key in (("at least", "at_least"), ("at most", "at_most"))]
    return " and ".join(f"{word} {significant(value)}" for word, value in limits if value is not None)


def _restated(r: Told, _: Reader) -> str:
    return (
        f"Rows that the proposal of {r['slot']} rests on were restated; it stands again when {r['action']} has held at "
        f"{r['needed']} looks on the new ones."
    )


def _due(r: Told) -> str:
    expected = r.get("expected") or f"every {span(r['expected_every_s'])}"
    return f"due {expected}, allowed {span(r['freshness_target_s'])} more"


def _stale(r: Told, by: Reader) -> str:
    last = f", last refreshed {r['last_refresh_at']}" if r["last_refresh_at"] else ""
    return (
        f"{r['metric']} of {r['variant']} is stale: nothing new since its row of {r['watermark']}{by.age(r['watermark'])}{last} "
        f"({_due(r)}).{_may_be_quiet(r)}"
    )


def _may_be_quiet(r: Told) -> str:
    if not r.get("may_be_quiet"):
        return ""
    return (
        " If nothing happened in that time, say so: send rows with value 0 and n above 0, leave those hours out of its schedule, "
        "or mark it sparse."
    )


_PROBLEMS: Mapping[str, str] = {
    "no_units": "its row of {ts} has no n: send it with n and variance",
    "no_value": "its row of {ts} has no value",
    "no_proportion": "its row of {ts} has {value:g}, which is no proportion",
    "no_variance": "its row of {ts} has no variance: send it again with its variance",
    "no_denominator": "its row of {ts} has no denominator with value, variance and covariance",
    "gauge": "{metric} is a gauge, which has no units to compare",
    "no_direction": "{metric} does not say which direction is better",
    "told": "{text}",
}


def _row_unreadable(r: Told, by: Reader) -> str:
    if "problem" not in r:
        return f"{by.name(r)}: a row of {r['control']} or {r['variant']} cannot be read."
    return f"{r['gate']}: {r['variant']}: {_PROBLEMS[r['problem']].format_map(r)}."


def _days_lacking(r: Told, _: Reader) -> str:
    reached = f", reached at {r['reached_at']}" if r["reached_at"] else ""
    return f"{r['days']} of {r['needed']} whole days have run{reached}."


def _units_lacking(r: Told, by: Reader) -> str:
    when = ""
    if r["days_left"] is not None:
        when = f"; at today's {round(r['units_per_day']):,} units a day about {whole_days(r['days_left'])} more days"
    return f"{by.name(r)}: {r['units']:,} of {r['needed']:,} units in the smaller arm{when}."


def _noisy(r: Told, by: Reader) -> str:
    known = "not known" if r["relative_se"] is None else f"known to {r['relative_se'] * 100:.3g}% only"
    return f"{by.name(r)}: a mean is {known}; {r['needed'] * 100:g}% is needed before the interval can be trusted."


def _buckets(r: Told, _: Reader) -> str:
    arrived = f"{r['observed']:,} of {r['expected']:,} expected buckets of {r['metric']} of {r['variant']} have arrived"
    return f"{arrived} ({100 * r['observed'] / r['expected']:.3g}%; {100 * (r['at_least'] or 0):g}% is needed).{_may_be_quiet(r)}"


def _target_measured(r: Told, by: Reader) -> str:
    return (
        f"{by.name(r)} over the last {r['closed']} of {r['days']} closed days: mean {significant(r['mean'])}, "
        f"{significant(r['least'])} to {significant(r['most'])} (target {_band(r)}; descriptive, not causal)."
    )


_SENTENCES: Mapping[str, Callable[[Told, Reader], str]] = {
    "all_fresh": lambda r, by: "Every series that is read is fresh.",
    "bounded_above_only": _bounded_above_only,
    "buckets": _buckets,
    "contradicts_itself": _contradicts_itself,
    "control_is_zero": lambda r, by: (
        f"{by.name(r)}: {r['control']} is still 0, so there is no relative effect yet; if it is 0 by design, use effect difference."
    ),
    "days_lacking": _days_lacking,
    "denominator_is_zero": lambda r, by: (
        f"{by.name(r)}: the mean denominator of {r['control']} or {r['variant']} is 0, so there is no ratio yet."
    ),
    "dense_while_fresh": lambda r, by: "Cumulative series are dense while they are fresh.",
    "doubt_set_aside": lambda r, by: (
        f"Doubt in the rows of {by.name(r)} is set aside since {r['since']}: {str(r['because']).rstrip('.')}."
    ),
    "harmed": _harmed,
    "harmful": lambda r, by: f"{r['variant']} is proved harmful.",
    "held": _held,
    "implausible": _implausible,
    "inside_limit": _limit,
    "least_value": lambda r, by: (
        f"{r['metric']} is {significant(r['value'])} in {r['variant']}; at least {r['at_least']:g} is needed."
    ),
    "measured": _measured,
    "more_than_exposed": lambda r, by: (
        f"{by.name(r)} of {r['variant']} has {r['units']:,} units where {r['exposed']:,} were exposed. Count each unit once, and none that "
        "was not exposed; if n counts something else than exposures do, set counts_assignment: false. If both are right, set the doubt "
        "aside for this KPI, with the reason."
    ),
    "no_bucket_closed": lambda r, by: f"No bucket of {r['metric']} of {r['variant']} is closed yet.",
    "no_closed_row": lambda r, by: f"{by.name(r)}: no closed row of {r['control']} and {r['variant']} yet.",
    "no_closed_value": lambda r, by: f"{r['metric']} has no closed value yet; at least {r['at_least']:g} is needed.",
    "no_row": lambda r, by: f"{r['metric']} of {r['variant']} has no row yet ({_due(r)}).",
    "no_spread": lambda r, by: (
        f"{by.name(r)}: every unit has the same value so far, so there is no spread to judge by."
    ),
    "no_value": _no_value,
    "no_variant_left": lambda r, by: "No variant is left to judge.",
    "noisy": _noisy,
    "not_doubted": lambda r, by: "No rows are doubted.",
    "not_worth_it": lambda r, by: f"{r['variant']} is proved not worth it.",
    "nothing_judged": lambda r, by: "No look has been judged yet. The first one follows the first rows.",
    "off_target": lambda r, by: "Off target: every closed day was outside. This describes, it does not prove a cause.",
    "on_target": lambda r, by: "On target: every closed day was inside. This describes, it does not prove a cause.",
    "others_go": _others_go,
    "outside_limit": _limit,
    "restated": _restated,
    "row_unreadable": _row_unreadable,
    "rows_doubted": _rows_doubted,
    "scale_needs": _scale_needs,
    "scatters_less": lambda r, by: (
        f"{by.name(r)} of {r['variant']}: its buckets scatter less than their variance says ({significant(r['ratio'])} of it). That holds "
        "nothing up, since it only makes intervals wider; the variance sent may be too large."
    ),
    "scale_needs_limit": _scale_needs_limit,
    "snoozed": lambda r, by: f"{' '.join(r['advised'])} was answered; it is not proposed again before {r['until']}.",
    "split_alarm": _split_alarm,
    "split_as_planned": _split_as_planned,
    "split_not_counted": lambda r, by: "Units are not counted in every arm yet.",
    "split_tolerated": _split_tolerated,
    "stale": _stale,
    "stands_since": _stands_since,
    "target_day_without_row": lambda r, by: (
        f"{by.name(r)} has a closed day without a readable row among the last {r['days']}."
    ),
    "target_measured": _target_measured,
    "target_without_day": lambda r, by: f"{by.name(r)}: no day is closed yet; {r['days']} are needed.",
    "target_without_row": lambda r, by: f"{by.name(r)} has no closed row yet.",
    "told": lambda r, by: str(r["text"]),
    "too_few_units": lambda r, by: f"{by.name(r)}: too few units for an interval.",
    "too_small": lambda r, by: f"{r['variant']} is really better, but by less than what is worth it.",
    "undecided": _undecided,
    "units_lacking": _units_lacking,
    "unjudgeable": lambda r, by: str(r["text"]),
    "wins": lambda r, by: f"{r['variant']} wins: every goal and every other gate passes.",
}
