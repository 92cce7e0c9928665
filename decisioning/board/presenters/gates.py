"""One gate's state as people see it: its verdict, its reading, and the reading drawn against its posts.

Reads the document shape (`Cursor.shown`, `Evaluation.found`): {gate, kind, variant, metric, verdict, since, reading,
reason, limits}. Names and units come from the plan's KPIs, by metric.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from math import isfinite, log
from typing import Any

from django.utils.dateparse import parse_datetime
from django.utils.safestring import SafeString, mark_safe

from decisioning.board import charts, words
from decisioning.board.charts import Point, Threshold
from gates.engine.figures import Change
from gates.engine.plan import Kpi

_ALARM = log(1_000)
_ALWAYS_ON = {"freshness": "Freshness", "srm": "Split", "density": "Density", "doubt": "Doubt"}
_ORDER = {verdict: i for i, verdict in enumerate(("fail", "invalid", "stale", "no_data", "inconclusive", "pass"))}


def svg(markup: str) -> SafeString:
    """Markup of board.charts, which escapes every text it is given."""
    return mark_safe(markup)  # noqa: S308 - see above


def name_of(gate: Mapping[str, Any], metrics: Mapping[str, Kpi]) -> str:
    """What people call a gate: its metric's name, or what it watches."""
    metric = metrics.get(gate.get("metric") or "")
    if metric is not None:
        return metric.name or metric.metric
    return _ALWAYS_ON.get(gate["kind"], str(gate["gate"]).replace("_", " "))


def chips(gates: Iterable[Mapping[str, Any]], metrics: Mapping[str, Kpi]) -> list[dict[str, str]]:
    """Every gate that does not pass by name, worst first, and how many pass."""
    found = sorted(gates, key=lambda g: _ORDER.get(g["verdict"], 0))
    seen = Counter(g["gate"] for g in found)

    def called(gate: Mapping[str, Any]) -> str:
        name = name_of(gate, metrics).lower() if gate["kind"] in _ALWAYS_ON else name_of(gate, metrics)
        return f"{name}, {gate['variant']}" if seen[gate["gate"]] > 1 and gate.get("variant") else name

    shown = [
        {
            "tone": words.TONES[g["verdict"]],
            "icon": g["verdict"],
            "name": called(g),
            "verdict": words.VERDICTS[g["verdict"]].lower(),
        }
        for g in found
        if g["verdict"] != "pass"
    ]
    passed = len(found) - len(shown)
    if passed:
        tally = f"{passed} of {passed}" if not shown else str(passed)
        shown.append({"tone": "scale", "icon": "pass", "name": tally, "verdict": "pass"})
    return shown


def telling(gates: Sequence[Mapping[str, Any]], *, code: str, variant: str | None) -> Mapping[str, Any] | None:
    """The gate that a recommendation rests on: the one that failed or is invalid, else the first goal."""
    mine = [g for g in gates if variant is None or g.get("variant") in (None, variant)]
    wanted = {"unsafe": ("threshold", "fail"), "harm": ("guard", "fail")}.get(code)
    for g in mine:
        if wanted == (g["kind"], g["verdict"]):
            return g
    return next((g for g in mine if g["kind"] in ("uplift", "target")), None)


def split_is_wrong(gates: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the sample ratio has raised its alarm: no effect is a result then."""
    return any(g["kind"] == "srm" and g["verdict"] == "invalid" for g in gates)


def distrust(gates: Iterable[Mapping[str, Any]], gate: Mapping[str, Any] | None, *, code: str) -> str:
    """Why the effect a gate reads is no result; empty where it is one."""
    if gate is None or gate["kind"] not in ("uplift", "guard"):
        return ""
    if split_is_wrong(gates):
        return "the split is wrong"
    return "another reading contradicts itself" if code == "invalid" and gate["verdict"] != "invalid" else ""


def read_to(gates: Iterable[Mapping[str, Any]], metric: str) -> datetime | None:
    """The newest instant up to which a gate has read a metric, as measured or as watched; None where none has."""
    mine = [g for g in gates if g.get("metric") == metric]
    measured = [g["reading"].get("at") for g in mine if g.get("reading")]
    watched = [seen[-1][0] for g in mine if (seen := (g.get("limits") or {}).get("observed"))]
    return max((at for text in (*measured, *watched) if text and (at := parse_datetime(text))), default=None)


def late(gates: Iterable[Mapping[str, Any]]) -> bool:
    """Whether an input is missing or older than it may be."""
    return any(g["kind"] == "freshness" and g["verdict"] != "pass" for g in gates)


def reading(gate: Mapping[str, Any] | None) -> Point | None:
    """The estimate with the bounds that decide: the running ones where they count already. None while nothing bounds it on a side."""
    found = (gate or {}).get("reading")
    if not found or found.get("estimate") is None or None in (found.get("lower", 0.0), found.get("upper", 0.0)):
        return None
    estimate = found["estimate"]
    lower = _first(found.get("running_lower"), found.get("lower"), estimate)
    upper = _first(found.get("running_upper"), found.get("upper"), estimate)
    if lower > upper:  # drift: shown as it is now, the verdict stands
        lower, upper = found["lower"], found["upper"]
    return Point(lower, estimate, upper) if all(map(isfinite, (lower, estimate, upper))) else None


def _first(*numbers: float | None) -> float:
    return next(n for n in numbers if n is not None)


def change(gate: Mapping[str, Any] | None, metrics: Mapping[str, Kpi]) -> Change:
    """How an effect of this gate is told: as a share of the control, or in the KPI's own unit."""
    metric = metrics.get((gate or {}).get("metric") or "")
    less_is_better = metric is not None and metric.direction == "decrease"
    if ((gate or {}).get("limits") or {}).get("effect", "relative") == "relative":
        return Change(less_is_better=less_is_better)
    return Change(partial(words.figure, unit=metric.unit if metric else ""), less_is_better=less_is_better)


def spread(say: Change, point: Point) -> str:
    """The interval of an effect."""
    return f"[{', '.join(say.interval(point.lower, point.upper))}]" if isfinite(point.lower + point.upper) else ""


def thresholds(gate: Mapping[str, Any], metrics: Mapping[str, Kpi]) -> list[Threshold]:
    """A gate's limits as posts of a drawing, in which up is good."""
    extra = gate.get("limits") or {}
    say = change(gate, metrics)
    better, worse = ("below", "above") if say.less_is_better else ("above", "below")

    def at(value: float) -> str:
        return say(value).lstrip("+")

    if gate["kind"] == "uplift":
        above, below = extra.get("scale_above", 0.0), extra.get("delete_below")
        found = [Threshold(above, f"scale {better} {at(above)}", "scale", "right")]
        return found + (
            [Threshold(below, f"delete {worse} {at(below)}", "delete", "left")] if below is not None else []
        )
    if gate["kind"] == "guard":
        margin = -extra.get("max_harm", 0.0)
        return [
            Threshold(margin, f"safe {better} {at(margin)}", "scale", "right"),
            Threshold(margin, f"harm {worse} {at(margin)}", "delete", "left"),
        ]
    limits = []
    if extra.get("at_most") is not None:
        limits.append(Threshold(extra["at_most"], f"at most {extra['at_most']:g}", "delete", "right"))
    if extra.get("at_least") is not None:
        limits.append(Threshold(extra["at_least"], f"at least {extra['at_least']:g}", "delete", "left"))
    return limits


def value_text(gate: Mapping[str, Any], metrics: Mapping[str, Kpi]) -> tuple[str, str]:
    """A gate's reading in two texts: the figure, and its interval or what it is measured against."""
    extra = gate.get("limits") or {}
    metric = metrics.get(gate.get("metric") or "")
    point = reading(gate)
    if gate["kind"] in ("uplift", "guard"):
        if point is None:
            return "no reading", ""
        say = change(gate, metrics)
        return say(point.estimate) + say.worth(point.estimate), spread(say, point) + (
            ", drifts" if extra.get("drift") else ""
        )
    unit, kind = (metric.unit, metric.kind) if metric else ("", "mean")
    if gate["kind"] == "threshold" or (gate["kind"] == "density" and gate.get("metric")):
        return words.figure(_newest(extra), unit, kind), "newest value"
    if gate["kind"] == "density" and gate.get("metric") is None:
        share = _density(extra)
        return (
            "no buckets yet" if share is None else words.share(share, 1)
        ), f"at least {words.share(extra.get('at_least', 0))}"
    if gate["kind"] == "srm" and (units := _split(extra)):
        total = sum(units.values())
        parts = " : ".join(f"{100 * n / max(total, 1):.1f}" for n in units.values())
        return f"{parts}%", f"of {words.count(total)} units"
    if gate["kind"] == "doubt" and extra:
        ratio = max(extra.values(), key=lambda its: its["ratio"] or 0.0)["ratio"]
        return ("" if ratio is None else f"{ratio:.2g} times"), "the scatter that the variance allows"
    if gate["kind"] == "target":
        seen = f"[{words.figure(extra.get('least'), unit, kind)}, {words.figure(extra.get('most'), unit, kind)}]"
        return words.figure(
            extra.get("mean"), unit, kind
        ), f"{seen} over {extra.get('days', 7)} days" if "mean" in extra else ""
    return "", ""


def _density(extra: Mapping[str, Any]) -> float | None:
    seen, due = extra.get("observed"), extra.get("expected")
    return None if not due or seen is None else float(seen) / float(due)


def _newest(extra: Mapping[str, Any]) -> float | None:
    """The newest of what a threshold has watched, when it can be read."""
    seen = extra.get("observed") or []
    return seen[-1][1] if seen else None


def _split(extra: Mapping[str, Any]) -> Mapping[str, int]:
    """Units by variant of the metric whose split is off the most."""
    counted = [found for found in extra.values() if isinstance(found, dict) and "log_e" in found]
    units: Mapping[str, int] = max(counted, key=lambda found: found["log_e"])["units"] if counted else {}
    return units


def _log_e(extra: Mapping[str, Any]) -> float | None:
    """The strongest sign of a wrong split among the metrics that are counted."""
    return max((found["log_e"] for found in extra.values() if isinstance(found, dict)), default=None)


def drawn(gate: Mapping[str, Any], metrics: Mapping[str, Kpi], *, uid: str) -> SafeString:
    """The reading against its posts, or a meter for a gate that counts; nothing when there is nothing to draw."""
    extra = gate.get("limits") or {}
    name, (text, beside) = name_of(gate, metrics), value_text(gate, metrics)
    title = f"{name}: {text} {beside}".strip()
    if gate["kind"] in ("uplift", "guard"):
        point = reading(gate)
        if point is None:
            return svg("")
        limits = thresholds(gate, metrics)
        return svg(charts.interval(point, limits, uid=uid, title=title, desc=_limits_text(limits)))
    if gate["kind"] == "threshold" or (gate["kind"] == "density" and gate.get("metric")):
        value, limits = _newest(extra), thresholds(gate, metrics)
        if value is None:
            return svg("")
        return svg(charts.interval(Point(value, value, value), limits, uid=uid, title=title, desc=_limits_text(limits)))
    if gate["kind"] == "target" and "mean" in extra:
        limits, point = thresholds(gate, metrics), Point(extra["least"], extra["mean"], extra["most"])
        return svg(charts.interval(point, limits, uid=uid, title=title, desc=_limits_text(limits)))
    if gate["kind"] == "density" and (share := _density(extra)) is not None:
        limit = float(extra.get("at_least") or 0)
        return svg(charts.meter(share, limit=limit, full=1, uid=uid, title=title, desc=beside, width=300))
    if gate["kind"] == "srm" and (found := _log_e(extra)) is not None:
        full = _ALARM * 4 / 3
        return svg(charts.meter(max(found, 0), limit=_ALARM, full=full, uid=uid, title=title, desc=beside, width=300))
    return svg("")


def _drifts(gate: Mapping[str, Any]) -> str:
    """What it means that the bounds of all looks have crossed."""
    if not (gate.get("limits") or {}).get("drift"):
        return ""
    return "It drifts: what earlier looks proved and what is read now exclude each other. Drawn as read now; the verdict stands."


def _limits_text(limits: Sequence[Threshold]) -> str:
    return "Posts: " + "; ".join(post.label for post in limits) if limits else "No posts"


def row(
    gate: Mapping[str, Any], metrics: Mapping[str, Kpi], *, several: bool, uid: str, now: datetime
) -> dict[str, Any]:
    """One line of the gates table; `several` treatments make the variant part of the name."""
    text, spread = value_text(gate, metrics)
    kind = words.KINDS.get(gate["kind"], gate["kind"])
    variant = gate.get("variant")
    return {
        "name": name_of(gate, metrics) + (f", {variant}" if several and variant else ""),
        "kind": kind,
        "verdict": gate["verdict"],
        "pill": words.pill(gate["verdict"], words.VERDICTS[gate["verdict"]]),
        "since": words.instant(parse_datetime(gate["since"]), now) if gate.get("since") else "",
        "estimate": text,
        "range": spread,
        "svg": drawn(gate, metrics, uid=uid),
        "reason": " ".join(filter(None, (gate.get("reason", ""), _drifts(gate)))),
    }
