"""What is wrong, in words: alarms as messages tell them and as the board shows them, from their data alone."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.urls import reverse

from decisioning.board import words
from gates import wording
from gates.engine.narration import gate_in_words


class Said(NamedTuple):
    """title: what is wrong and with what. lines: plain sentences, the weightiest first. path: where on the board to go on reading."""

    title: str
    lines: Sequence[str] = ()
    path: str = ""


def said(event: str, data: Mapping[str, Any], *, at: datetime) -> Said | None:
    """An alarm of a type, or its end, as of an instant; None: nobody has words for it."""
    of = _SAID.get(event)
    return None if of is None or not data or "failure" in data else of(with_sentences(event, data, at=at))


def with_sentences(event: str, data: Mapping[str, Any], *, at: datetime) -> Mapping[str, Any]:
    """What a message says, its reasons in sentences, too."""
    if "reasons" not in data:
        return data
    if event == "guard.failed":
        return {**data, "reason": gate_in_words(data, wording.reader([data], at))["reason"]}
    return {**data, "rationale": wording.sentences(data, at)[0]}


def page(data: Mapping[str, Any]) -> str:
    """The page of the experiment that it is about."""
    return reverse("experiment", args=[data["experiment"]]) if data.get("experiment") else ""


def about(data: Mapping[str, Any]) -> str:
    variant = data.get("variant")
    return f"{data['experiment']}, {variant}" if variant else str(data["experiment"])


def _overdue(data: Mapping[str, Any]) -> Said:
    return Said(
        f"Unanswered: {data['action']} {about(data)}",
        [f"Proposed {data['proposed_at']}; the team answers within {data['answer_within_h']} h."],
        page(data),
    )


def _breached(data: Mapping[str, Any]) -> Said:
    lines = [
        f"{kpi['metric']}: "
        + (
            f"newest row {kpi['data_watermark']}, stale since {kpi['stale_at']}."
            if kpi["data_watermark"]
            else "no row yet."
        )
        for kpi in data["kpis"]
    ]
    late, waiting = data.get("experiments_late", 1), data.get("experiments_waiting", 1)
    if not waiting:
        lines.append("Nothing waits for it: it is shown only.")
    elif late == 1:
        lines.append("It is not judged on what is late.")
    else:
        suspended = data["proposals_suspended"]
        also = f" {suspended} of their proposals to scale cannot be accepted meanwhile." if suspended else ""
        lines.append(
            f"{waiting} of {late} experiments wait for it, among them {', '.join(data['experiments'][:5])}.{also}"
        )
    if away := data.get("portal_away"):
        lines = [_away(away, data["feeds_late"]), *lines[-1:]]
    spread = data.get("occasion") == "spread"
    what = "Late data spreads" if spread else "Data is late"
    lines = [f"It began {data['began_at']}.", *lines] if spread else lines
    return Said(f"{what}: {_feed(data)}", lines, page(data) if late == 1 and not away else reverse("freshness"))


def _away(away: Mapping[str, Any], feeds: int) -> str:
    until = f"from {away['from']} to {away['to']}" if away["to"] else f"since {away['from']}"
    what = words.plural(feeds, "feed is", "feeds are")
    return f"The portal took nothing in {until}: {what} late. What was to come then has to be sent again."


def _feed(data: Mapping[str, Any]) -> str:
    """A feed by its source or metric, with its experiment when it is one."""
    if data.get("portal_away"):
        return "the portal was away"
    feed = data.get("feed") or {
        "source": None,
        "metrics": data.get("metrics") or [kpi["metric"] for kpi in data["kpis"]],
    }
    name = str(feed["source"] or feed["metrics"][0])
    one = data.get("experiments_late", len(data.get("experiments", ()))) < 2
    return f"{data['experiment']}, {name}" if one else name


def _recovered(data: Mapping[str, Any]) -> Said:
    one = data.get("experiments_late", len(data.get("experiments", ()))) < 2 and not data.get("portal_away")
    where = page(data) if one else reverse("freshness")
    return Said(f"Data is back: {_feed(data)}", [f"It was late since {data['since']}."], where)


def _guard(data: Mapping[str, Any]) -> Said:
    return Said(f"Guard failed: {about(data)}", [f"{data['gate']} ({data['metric']}): {data['reason']}"], page(data))


def _burning(data: Mapping[str, Any]) -> Said:
    lines = [f"{data['figure']}, promised is {data['target']}."]
    return Said(f"Promise broken: {data['name']}", lines, reverse("promises"))


_SAID: Mapping[str, Callable[[Mapping[str, Any]], Said]] = {
    "decision.overdue": _overdue,
    "freshness.breached": _breached,
    "freshness.recovered": _recovered,
    "guard.failed": _guard,
    "slo.burning": _burning,
}
