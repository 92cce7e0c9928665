"""The KPIs of an experiment as pictures and tables, and its variants."""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from django.urls import reverse

from decisioning.board import charts, words
from decisioning.board.charts import Threshold
from decisioning.board.presenters import freshness, history, page_data
from decisioning.board.presenters import gates as gate_presenter
from decisioning.board.presenters.experiment import feeds
from decisioning.board.presenters.experiment.context import ExperimentContext
from decisioning.board.presenters.gates import svg
from experiments.models import Asset, Variant
from gates.engine.plan import Kpi


def uplift_chart(
    context: ExperimentContext, goal: Kpi, treatment: Variant, *, several: bool, i: int
) -> dict[str, Any] | None:
    found = context.data.effects.get((context.experiment.pk, treatment.key), [])
    if not found:
        return None
    mine = (g for g in context.gates if g["kind"] == "uplift" and g.get("metric") == goal.metric)
    gate = next((g for g in mine if g.get("variant") in (None, treatment.key)), None)
    say, name = gate_presenter.change(gate, context.metrics), goal.name or goal.metric
    points, days = (
        [recommendation.point for recommendation in found],
        [history.day_text(recommendation.day) for recommendation in found],
    )
    last = points[-1]
    said = say(last.estimate) + say.worth(last.estimate)
    spread = gate_presenter.spread(say, last)
    trusted = not gate_presenter.split_is_wrong(context.gates)
    away = context.stretches.get(goal.metric, ())
    draw: dict[str, Any] = {
        "days": days,
        "shaded": feeds.shaded(away, [recommendation.day for recommendation in found]),
        "thresholds": gate_presenter.thresholds(gate, context.metrics) if gate else [],
        "events": _events(context, [recommendation.day for recommendation in found]),
        "say": say,
        "title": f"Uplift of {name}, {treatment.key}: {said} {spread}",
        "desc": ". ".join(
            ["Estimate and always-valid interval at the last look of each day", *feeds.hatched(away, context.now)]
        ),
    }
    better = "higher is better" if goal.direction == "increase" else "lower is better; drawn with better above"
    return {
        "tone": {"scale": "scale", "delete": "delete", "review": "review"}.get(context.said.get("action", ""), "hold")
        if trusted
        else "review",
        "title": f"Uplift of {name}" + (f", {treatment}" if several else ""),
        "what": f"{goal.metric}, {better}",
        "estimate": said if trusted else "not trusted",
        "range": spread if trusted else "the split is wrong",
        "wide": svg(charts.uplift(points, uid=f"u{i}w", **draw)),
        "narrow": svg(charts.uplift(points, uid=f"u{i}n", width=340, height=220, **draw)),
        "hatched": feeds.hatched(away, context.now),
        "table": {
            "summary": "Uplift as a table" + (f", {treatment}" if several else ""),
            "heads": ["Day", "Lower", "Estimate", "Upper", "Units"],
            "rows": [
                [
                    history.day_text(recommendation.day),
                    (ends := say.interval(recommendation.point.lower, recommendation.point.upper))[0],
                    say(recommendation.point.estimate),
                    ends[1],
                    words.count(recommendation.n),
                ]
                for recommendation in found
            ],
        },
    }


def _events(context: ExperimentContext, days: Sequence[date]) -> list[tuple[int, str]]:
    stable = next(
        (recommendation.first_stable_at for recommendation in context.proposals if recommendation.first_stable_at), None
    )
    return [(days.index(stable.date()), "stable read")] if stable and stable.date() in days else []


_CSS = ("control", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def kpi_card(context: ExperimentContext, kpi: Kpi, ages: Mapping[str, freshness.Age], i: int) -> dict[str, Any]:
    arms = [*([context.control] if context.control else []), *(v for v in context.arms if not v.control)]
    found = {v.key: context.series.get((context.experiment.pk, kpi.metric, v.key), []) for v in arms}
    days = sorted({day.day for row in found.values() for day in row})
    by_day = {key: {x.day: x.value for x in row} for key, row in found.items()}
    labels = [history.day_text(day) for day in days]

    def say(value: float) -> str:
        return words.figure(value, kpi.unit, kpi.kind)

    lines = [
        (_CSS[min(j + (0 if context.control else 1), 8)], [by_day[v.key].get(day) for day in days])
        for j, v in enumerate(arms)
    ]
    limits = []
    target = kpi.target
    if target and target.at_least is not None:
        limits.append(Threshold(target.at_least, f"at least {say(target.at_least)}", "scale", "right"))
    if target and target.at_most is not None:
        limits.append(Threshold(target.at_most, f"at most {say(target.at_most)}", "delete", "right"))
    away = context.stretches.get(kpi.metric, ())
    draw: dict[str, Any] = {
        "days": labels,
        "show": lambda value: words.tick(value, kpi.unit, kpi.kind),
        "limits": limits,
        "shaded": feeds.shaded(away, days),
        "title": f"{kpi.name or kpi.metric} by day",
        "desc": ". ".join(["One line for each variant", *feeds.hatched(away, context.now)]),
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
        "age": freshness.text(age, now=context.now)
        if age and context.experiment.status not in page_data.CLOSED
        else None,
        "trip": _trip(context, kpi, arms, found),
        "wide": svg(charts.values(lines, uid=f"v{i}w", **draw)) if days else "",
        "narrow": svg(charts.values(lines, uid=f"v{i}n", width=340, **draw)) if days else "",
        "legend": [{"css": css, "text": v.name or v.key} for (css, _), v in zip(lines, arms, strict=True)],
        "hatched": feeds.hatched(away, context.now),
        "post": f"/api/experiments/{context.experiment.key}/kpis",
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
    context: ExperimentContext, kpi: Kpi, arms: Sequence[Variant], found: Mapping[str, Sequence[history.Day]]
) -> list[dict[str, str]]:
    out = []
    read = any(g.get("metric") == kpi.metric for g in context.gates) and context.experiment.status in page_data.OPEN
    to = gate_presenter.read_to(context.gates, kpi.metric)
    for v in arms:
        newest = found[v.key][-1] if found[v.key] else None
        value = None if newest is None else newest.value if newest.so_far is None else newest.so_far
        at = context.newest.get((kpi.metric, v.key))
        ahead = read and at is not None and (to is None or at > to)
        note = f"newest {words.instant(at, context.now)}, not judged yet" if ahead else ""
        out.append({"label": v.name or v.key, "figure": words.figure(value, kpi.unit, kpi.kind), "note": note})
    several = len(context.treatments) > 1
    for g in context.gates:
        if g.get("metric") == kpi.metric and g["kind"] in ("uplift", "guard"):
            text, _ = gate_presenter.value_text(g, context.metrics)
            label = "Effect, + is better" if kpi.direction == "decrease" else "Uplift"
            out.append({"label": f"{label}, {g['variant']}" if several else label, "figure": text})
    return out


def split_text(context: ExperimentContext) -> str:
    if len(context.arms) < 2:
        return "One variant: there is nothing to split."
    total = sum(v.weight for v in context.arms)
    planned = "/".join(f"{v.weight / total * 100:.0f}" for v in context.arms)
    gate = next((g for g in context.gates if g["kind"] == "srm"), None)
    return (
        f"Planned {planned}. {gate['reason']}"
        if gate and gate.get("reason")
        else f"Planned {planned}; nothing counted yet."
    )


def shares_chart(context: ExperimentContext, goal: Kpi | None) -> dict[str, Any] | None:
    """Each variant's share of the units that were in by the end of each day; None while there is nothing to split."""
    if goal is None or len(context.arms) < 2:
        return None
    units = {
        v.key: {x.day: x.units for x in context.series.get((context.experiment.pk, goal.metric, v.key), [])}
        for v in context.arms
    }
    days = sorted(day for day in set.intersection(*map(set, units.values())) if any(of[day] for of in units.values()))
    if not days:
        return None
    whole = {day: sum(of[day] for of in units.values()) for day in days}
    arms = sorted(context.arms, key=lambda v: not v.control)
    lines = [
        (_CSS[min(j + (0 if context.control else 1), 8)], [units[v.key][day] / whole[day] for day in days])
        for j, v in enumerate(arms)
    ]
    labels, weights = [history.day_text(day) for day in days], sum(v.weight for v in arms)
    draw: dict[str, Any] = {
        "days": labels,
        "show": lambda share: words.share(share, 2),
        "limits": [
            Threshold(share, f"planned {words.share(share)}", "hold", "right")
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


def variant_cards(context: ExperimentContext, goal: Kpi | None) -> list[dict[str, Any]]:
    total = sum(v.weight for v in context.arms) or 1
    counted: dict[str, int] = {}
    if goal:
        for v in context.arms:
            row = context.series.get((context.experiment.pk, goal.metric, v.key), [])
            counted[v.key] = row[-1].units if row else 0
    units = sum(counted.values())
    pictures: dict[int, Asset] = {}
    for kept in Asset.objects.filter(experiment=context.experiment).defer("body").order_by("pk"):
        pictures[kept.variant_id] = kept
    out = []
    for i, v in enumerate(context.arms):
        planned, n = v.weight / total, counted.get(v.key, 0)
        share = n / units if units else 0.0
        role = "control" if v.control else "treatment" if context.control else "the only one"
        facts = [
            {
                "label": "Units",
                "text": f"{words.count(n)} ({words.share(share, 2)}, planned {words.share(planned)})"
                if units
                else "none yet",
            }
        ]
        if goal and n:
            row = context.series[context.experiment.pk, goal.metric, v.key]
            facts.append(
                {
                    "label": goal.name or goal.metric,
                    "text": words.figure(row[-1].so_far, goal.unit, goal.kind),
                }
            )
        if v.dropped_at:
            facts.append({"label": "Dropped", "text": words.instant(v.dropped_at, context.now)})
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
                "upload_url": context.url("upload", v.key),
            }
        )
    return out
