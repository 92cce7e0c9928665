"""How facts are said on the board: tones, verbs, durations, instants, figures, and a policy as sentences. Pure,
but for the time zone that is active while a page is made.

Colour has six meanings and each has a word and a glyph beside it. Times are the reader's,
with UTC beside them; what ends with a Z is UTC.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from math import ceil, isfinite
from typing import Any, NamedTuple

from django.utils import timezone

from gates.engine.figures import MINUS, span
from gates.engine.forecast import Forecast

TONES = {
    "scale": "scale",
    "delete": "delete",
    "review": "review",
    "hold": "hold",
    "pass": "scale",
    "fail": "delete",
    "inconclusive": "hold",
    "no_data": "late",
    "stale": "late",
    "late": "late",
    "unknown": "late",
    "due": "scale",
    "invalid": "review",
    "fresh": "scale",
    "succeeded": "scale",
    "partial": "review",
    "failed": "delete",
    "aborted": "delete",
    "running": "hold",
}
_ICONS = {"succeeded": "pass", "aborted": "fail", "running": "clock", "unknown": "no_data", "due": "clock"}

# What each recommendation code says in a word or three (docs/gates.md section 5).
CODES = {
    "unsafe": "Safety stop",
    "invalid": "Split or reading is wrong",
    "harm": "A guard is harmed",
    "stale": "Data is late",
    "no_data": "No data",
    "doubtful": "Rows are doubted",
    "collecting": "Collecting",
    "too_small": "Real, but too small",
    "implausible": "Too good to be true",
    "wins": "It wins",
    "on_target": "On target",
    "off_target": "Off target",
    "harmful": "The goal is harmed",
    "not_worth_it": "Not worth it",
    "undecided": "Undecided at the end",
    "open": "Still open",  # a goal, a guard, or both
}
SUPERSEDED = {
    "evidence_corrected": "Evidence was corrected, and the newer reading no longer gives it.",
    "policy_changed": "Another policy judges now, and under it the same rows no longer give it.",
    "judged_anew": "All was judged anew under a changed plan or by a newer version of the portal, which no longer gives it.",
    "rules_mended": "The rules were mended: judged anew by them, the same rows no longer give it.",
    "newer_proposal": "A newer proposal took its place.",
    "another_answer": "Another answer ended the experiment.",
}
VERDICTS = {
    "pass": "Pass",
    "fail": "Fail",
    "inconclusive": "Inconclusive",
    "no_data": "No data",
    "stale": "Stale",
    "invalid": "Invalid",
}
STATUSES = {
    "draft": "Draft",
    "running": "Running",
    "paused": "Paused",
    "scaled": "Scaled",
    "deleted": "Deleted",
    "stopped": "Stopped",
}
KINDS = {
    "uplift": "uplift, goal",
    "guard": "guard",
    "threshold": "threshold, safety",
    "density": "expected buckets seen",
    "target": "target, descriptive",
    "freshness": "always on",
    "srm": "planned against seen, always on",
    "doubt": "can rows be as they say, always on",
}
_MONEY = {"usd": "$", "eur": "€", "gbp": "£"}
ROLES = {"goal": "goal", "guardrail": "guard", "shown": "shown only", "exposure": "exposure"}


def pill(state: str, text: str, *, line: bool = False) -> dict[str, Any]:
    """A word with its tone and glyph, for _pill.html."""
    return {"tone": TONES.get(state, "hold"), "icon": _ICONS.get(state, state), "text": text, "line": line}


def status(value: str) -> dict[str, str]:
    """An experiment's status, for _status.html."""
    return {"icon": f"s-{value}", "text": STATUSES[value]}


def instant(at: datetime | None, now: datetime) -> str:
    """A moment as short as it can be and still be found: today's by the clock, this year's without the year.

    >>> from datetime import UTC, timedelta
    >>> now = datetime(2026, 11, 24, 6, 30, tzinfo=UTC)
    >>> [instant(now - timedelta(hours=h), now) for h in (1, 20, 24 * 400)]
    ['05:30Z', '23 Nov 10:30Z', '20 Oct 2025 06:30Z']
    >>> with timezone.override("Asia/Tokyo"):
    ...     [instant(now - timedelta(hours=h), now) for h in (1, 10, 20)]
    ['14:30 (05:30Z)', '05:30 (23 Nov 20:30Z)', '23 Nov 19:30 (10:30Z)']
    """
    if at is None:
        return "never"
    here, today = timezone.localtime(at), timezone.localtime(now)
    if here.date() == today.date():
        return _beside(f"{here:%H:%M}", at)
    return _beside(f"{here.day} {here:%b %H:%M}" if here.year == today.year else f"{here.day} {here:%b %Y %H:%M}", at)


def stamp(at: datetime) -> str:
    """A moment of about now, always with its day.

    >>> from datetime import UTC
    >>> stamp(datetime(2026, 11, 28, 9, tzinfo=UTC))
    '28 Nov 09:00Z'
    """
    here = timezone.localtime(at)
    return _beside(f"{here.day} {here:%b %H:%M}", at)


def _beside(here: str, at: datetime) -> str:
    """The reader's own time, with UTC beside it where that is another."""
    local, utc = timezone.localtime(at), at.astimezone(UTC)
    if local.replace(tzinfo=None) == utc.replace(tzinfo=None):
        return f"{here}Z"
    return f"{here} ({utc:%H:%M}Z)" if local.date() == utc.date() else f"{here} ({utc.day} {utc:%b %H:%M}Z)"


def day(at: datetime | None) -> str:
    """The date alone, where the reader is.

    >>> from datetime import UTC
    >>> day(datetime(2026, 11, 8, tzinfo=UTC))
    '8 Nov 2026'
    """
    return f"{timezone.localtime(at).day} {timezone.localtime(at):%b %Y}" if at else "never"


def count(number: float | None) -> str:
    """A whole number with its thousands set apart; nothing known is said, not shown as zero.

    >>> count(181204), count(None)
    ('181,204', 'none')
    """
    return "none" if number is None else f"{number:,.0f}"


def plural(number: int, one: str, many: str = "") -> str:
    """
    >>> plural(1, "decision"), plural(6, "decision"), plural(0, "reply", "replies")
    ('1 decision', '6 decisions', '0 replies')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def share(fraction: float, digits: int = 0) -> str:
    """A part of a whole: 0.9921 is "99.2%" with one digit."""
    return f"{fraction * 100:.{digits}f}%"


def figure(value: float | None, unit: str = "", kind: str = "mean") -> str:
    """A KPI's value in its own unit, to four significant digits.

    >>> figure(3.0812, "usd"), figure(0.0112, "share", "proportion"), figure(1840.2, "ms"), figure(-2.5), figure(None)
    ('$3.081', '1.12%', '1,840 ms', '−2.5', 'none')
    """
    if value is None or not isfinite(value):
        return "none"
    sign = MINUS if value < 0 else ""
    size = abs(value)
    if kind == "proportion":
        return f"{sign}{size * 100:.3g}%"
    digits = 0 if size >= 1_000 else 1 if size >= 100 else 2 if size >= 10 else 3 if size >= 1 else 4
    text = f"{size:,.{digits}f}"
    text = text.rstrip("0").rstrip(".") if digits and (digits > 3 or not unit) else text
    money = _MONEY.get(unit.lower())
    if money:
        return f"{sign}{money}{text}"
    return f"{sign}{text} {unit}".rstrip() if unit not in {"%"} else f"{sign}{text}%"


def tick(value: float, unit: str = "", kind: str = "mean") -> str:
    """A figure at an axis: without its unit, which stands above the drawing, unless it is a sign.

    >>> tick(1180.2, "ms"), tick(3.2, "usd"), tick(0.0337, "share", "proportion")
    ('1,180', '$3.200', '3.37%')
    """
    return figure(value, unit if unit.lower() in _MONEY or unit == "%" else "", kind)


def initials(name: str) -> str:
    """
    >>> initials("Ines Duarte"), initials("ops@example.org"), initials("")
    ('ID', 'O', '?')
    """
    parts = [p for p in name.replace(".", " ").split("@")[0].split() if p]
    return "".join(p[0] for p in parts[:2]).upper() or "?"


class Part(NamedTuple):
    """A piece of a policy's sentence: plain text, a metric's name, or a value that is new or was live before."""

    text: str
    kind: str = ""


class Sentence(NamedTuple):
    """One rule of a policy, read aloud: a verb with its tone and what brings it about."""

    tone: str
    icon: str
    verb: str
    parts: Sequence[Part]


_Parts = list[Part | str]


def sentences(body: Mapping[str, Any], live: Mapping[str, Any] | None = None) -> list[Sentence]:
    """A policy body as sentences in the order of docs/gates.md section 5; values that differ from `live` are marked."""
    then = live if live is not None else body
    before = {gate["name"]: gate for gate in then["gates"]}

    def value(gate: Mapping[str, Any], field: str) -> _Parts:
        old = before.get(gate["name"])
        return _changed(_limit(gate, field), _limit(old, field) if old else None)

    def setting(field: str, say: Callable[[Any], str] = str) -> _Parts:
        return _changed(say(body[field]), say(then[field]))

    # What all goals must prove to scale, one of them refutes to delete; and the other way round under `any`.
    proved, refuted = ("every goal", "any goal") if body["require"] == "all" else ("any goal", "every goal")
    rules: dict[str, list[Sentence]] = {kind: [] for kind in ("threshold", "guard", "uplift", "target")}
    dense: _Parts = []
    reached: _Parts = []
    told: _Parts
    for gate in body["gates"]:
        name, kind = Part(_of(gate), "metric"), gate["kind"]
        if kind == "threshold":
            times = gate.get("times", 1)
            tail = f" at {times} readings in a row." if times > 1 else "."
            whose = " of any variant, the control too," if gate.get("scope") == "experiment" else ""
            for field, word in (("at_most", "above"), ("at_least", "below")):
                if gate.get(field) is not None:
                    told = ["at once when ", name, f"{whose} is {word} ", *value(gate, field), tail]
                    rules[kind].append(_rule("delete", "shield", "Stop", *told))
        elif kind == "guard":
            told = [
                "at once when ",
                name,
                " is wholly past its margin, ",
                *value(gate, "max_harm"),
                ", at 2 looks running.",
            ]
            rules[kind].append(_rule("delete", "delete", "Delete", *told))
        elif kind == "uplift":
            above: _Parts = [
                "when the whole interval of ",
                name,
                " is above ",
                *value(gate, "scale_above"),
                f", for {proved}, ",
            ]
            rules[kind].append(_rule("scale", "scale", "Scale", *above, "and no guard or limit is open or harmed."))
            below: _Parts = [
                "when the whole interval of ",
                name,
                " is below ",
                *value(gate, "delete_below"),
                f", for {refuted}.",
            ]
            rules[kind].append(_rule("delete", "delete", "Delete", *below))
        elif kind == "target":
            told = [
                "when ",
                name,
                " was inside its target on each of the last ",
                *value(gate, "days"),
                " days; ",
            ]
            rules[kind].append(_rule("scale", "scale", "Scale", *told, "delete when it was outside on each."))
        elif kind == "density" and gate.get("metric"):
            reached += [" and the newest closed value of ", name, " is at least ", *value(gate, "at_least")]
            reached.append(" in every variant")
        elif kind == "density":
            dense += [" and ", *value(gate, "at_least"), " of the expected buckets"]
    split: _Parts = [
        "when the split is off by more than ",
        *setting("srm_tolerance", _points),
        ", when an effect is real but too small, or proved beyond ",
        *setting("doubt_above", _belief),
        ", or after ",
        *setting("max_days"),
    ]
    units: _Parts = [*setting("min_days"), " whole days and ", *setting("min_units", count), " units in each arm"]
    return [
        *(sentence for found in rules.values() for sentence in found),
        _rule("review", "review", "Review", *split, " days without an answer."),
        _rule(
            "hold",
            "hold",
            "Hold",
            "until ",
            *units,
            *dense,
            " are in",
            *reached,
            ", while any input is older than its target, and while its rows are doubted.",
        ),
    ]


def _points(tolerance: float | None) -> str:
    """How far each share may be off its plan."""
    return f"{100 * tolerance:g} points of each share" if tolerance else "chance"


def _belief(above: float | None) -> str:
    return "all that is believed of it alone" if above is None else f"+{share(above, 1).replace('.0%', '%')}"


_TOLD = {"gates", "min_days", "max_days", "min_units", "doubt_above", "srm_tolerance"}  # by the sentences
_LIMITS = {"at_most", "at_least", "max_harm", "scale_above", "delete_below", "days"}


def settings(body: Mapping[str, Any], live: Mapping[str, Any] | None = None) -> list[Part]:
    """What a body's sentences leave out: how sure and how often, then every other setting or gate that differs from `live`."""
    then = live if live is not None else body
    told: _Parts = []
    for before, field, say, after in (
        ("Alpha ", "alpha", lambda value: f"{value * 100:g}%", ", judged every "),
        ("", "look_s", span, ", on rows closed for "),
        ("", "closed_after_s", span, "; a change of mind must hold at "),
        ("", "persist", str, " looks in a row."),
    ):
        told += [before, *_changed(say(body[field]), say(then[field])), after]
    shown = _TOLD | {"alpha", "look_s", "closed_after_s", "persist"}
    for field in sorted(body.keys() - shown):
        if body[field] != then[field]:
            told += [f" {field.replace('_', ' ').capitalize()}: ", *_changed(str(body[field]), str(then[field])), "."]
    new, old = ({gate["name"]: gate for gate in one["gates"]} for one in (body, then))
    for name in [*new, *(name for name in old if name not in new)]:
        if name not in new or name not in old:
            told += [" Gate ", Part(name, "new" if name in new else "old"), " is new." if name in new else " is gone."]
            continue
        gate, was = new[name], old[name]
        for field in sorted((gate.keys() | was.keys()) - (_LIMITS if gate["kind"] == was["kind"] else set())):
            if gate.get(field) != was.get(field):
                said = (str(one.get(field, "none")) for one in (gate, was))
                told += [f" Gate {name}, {field}: ", *_changed(*said), "."]
    return [Part(p) if isinstance(p, str) else p for p in told]


def _changed(new: str, old: str | None) -> _Parts:
    return [Part(new)] if old is None or new == old else [Part(old, "old"), Part(" "), Part(new, "new")]


def _rule(tone: str, icon: str, verb: str, *parts: Part | str) -> Sentence:
    return Sentence(tone, icon, verb, [Part(p) if isinstance(p, str) else p for p in parts])


def _of(gate: Mapping[str, Any]) -> str:
    metric = gate.get("metric")
    return str(metric) if metric else {"goal": "the goal", "guardrail": "a guardrail"}.get(str(gate.get("for")), "it")


def _limit(gate: Mapping[str, Any], field: str) -> str:
    limit = gate.get(field)
    if limit == "plan":
        return {
            "max_harm": "the most harm its plan allows",
            "delete_below": "the least effect its plan finds worthwhile",
        }[field]
    if limit is None:
        return "none"
    if field in {"days"}:
        return str(limit)
    if gate.get("effect") == "relative" or (gate["kind"] == "density" and not gate.get("metric")):
        return "0%" if not limit else share(limit, 1).replace(".0%", "%")
    return f"{limit:g}"


def on_older_data(revised: Mapping[str, str]) -> str:
    """Said beside an answer when rows were corrected after it.

    >>> on_older_data({"action": "hold", "code": "stale"})
    'Decided on older data: would now be hold (data is late).'
    """
    code = CODES.get(revised["code"], revised["code"])
    return f"Decided on older data: would now be {revised['action']} ({code[:1].lower()}{code[1:]})."


def forecast(found: Forecast) -> str:
    """What a goal needs before it is decided, in a line."""
    if found.units is None or found.days is None:
        return f"out of reach at these units a day; {found.max_days} days at most"
    return f"decided at {count(found.units)} units, day {ceil(found.days)} at the latest; {found.max_days} days at most"
