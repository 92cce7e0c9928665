"""Server-side SVG for the decision board: plain numbers in, one SVG string out.

Every function is pure. Colour, stroke and type come from board.css by class, so the markup is safe under a strict
CSP and follows the theme. `uid` must be unique in the page: it ties <title> and <desc> to the image. Fractions in,
percent shown.
"""

from collections.abc import Callable, Sequence
from html import escape
from math import ceil, floor, log10
from typing import Literal, NamedTuple

from gates.engine.figures import Change

_AS_SHARE = Change()


class Point(NamedTuple):
    """One look: the estimate and its always-valid interval, as fractions. Equal bounds: a value without an interval."""

    lower: float
    estimate: float
    upper: float


class Threshold(NamedTuple):
    """A gate post. An interval clears it when wholly on the `clears` side; drawn above ("right") or below ("left")."""

    value: float
    label: str
    tone: str
    clears: Literal["left", "right"]


Place = Callable[[float], float]


def _svg(kind: str, width: float, height: float, body: str, *, uid: str, title: str, desc: str) -> str:
    return (
        f'<svg class="chart chart--{kind}" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'role="img" aria-labelledby="{uid}-t {uid}-d"><title id="{uid}-t">{escape(title)}</title>'
        f'<desc id="{uid}-d">{escape(desc)}</desc>{body}</svg>'
    )


def _scale(low: float, high: float, start: float, end: float) -> Place:
    return lambda value: round(start + (value - low) / ((high - low) or 1.0) * (end - start), 1)


def _clip(point: Point, low: float, high: float) -> Point:
    return Point(*(min(max(v, low), high) for v in point))


def _path(xs: Sequence[float], ys: Sequence[float]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in zip(xs, ys, strict=True))


def _rect(cls: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{cls}" x="{x:g}" y="{y:g}" width="{round(max(width, 0), 1):g}" height="{height:g}"/>'


def _line(cls: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path class="{cls}" d="M{x1:g} {y1:g}L{x2:g} {y2:g}"/>'


def _text(cls: str, x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text class="{cls}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'


def _band(points: Sequence[Point], x: Place, y: Place) -> str:
    xs = [x(i) for i in range(len(points))]
    edge = _path(xs + xs[::-1], [y(p.upper) for p in points] + [y(p.lower) for p in reversed(points)])
    line = _path(xs, [y(p.estimate) for p in points])
    dot = f'<circle class="c-dot" cx="{xs[-1]:g}" cy="{y(points[-1].estimate):g}" r="3"/>'
    return f'<path class="c-band" d="{edge}Z"/><path class="c-line" d="{line}"/>{dot}'


def _hatched(uid: str, shaded: Sequence[tuple[float, float]], x: Place, top: float, bottom: float, last: int) -> str:
    """Stretches of an axis of days, by index: hatched, so that they are seen without colour."""
    if not shaded:
        return ""
    lines = f'<pattern id="{uid}-h" width="6" height="6" patternUnits="userSpaceOnUse"><path class="c-hatch" d="M-1 1L1 -1M0 6L6 0M5 7L7 5"/></pattern>'
    drawn = ""
    for begin, end in shaded:
        left, right = x(max(begin, 0 if last else -0.5)), x(min(end, last or 0.5))
        drawn += f'<rect x="{left:g}" y="{top:g}" width="{max(right - left, 3):g}" height="{bottom - top:g}" fill="url(#{uid}-h)"/>'
    return f"<defs>{lines}</defs>{drawn}"


def _ticks(low: float, high: float, at_most: int) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) inside [low, high], at most `at_most` + 1 of them.

    >>> _ticks(-0.031, 0.118, 5)
    [0.0, 0.05, 0.1]
    """
    span = high - low
    if span <= 0:
        return [low]
    power = floor(log10(span / at_most)) - 1
    step = next(s for e in range(power, power + 4) for m in (1, 2, 5) if span / (s := m * 10.0**e) <= at_most)
    return [round(i * step, 12) for i in range(ceil(low / step), floor(high / step) + 1)]


def _axes(
    low: float,
    high: float,
    days: Sequence[str],
    x: Place,
    y: Place,
    show: Callable[[float], str],
    left: float,
    right: float,
    foot: float,
) -> str:
    rows = [
        _line("c-grid", left, y(t), right, y(t)) + _text("c-label", left - 6, y(t) + 4, show(t), "end")
        for t in _ticks(low, high, 5)
    ]
    every = max(1, ceil(len(days) * 64 / (right - left)))
    marks = [_text("c-label", x(i), foot, days[i], "middle") for i in range(every // 2, len(days), every)]
    return "".join(rows + marks)


def sparkline(points: Sequence[Point], *, uid: str, title: str, desc: str, width: int = 132, height: int = 38) -> str:
    """Uplift so far in a table cell: line, interval band, zero line; at least one point.

    The first looks may be clipped: they are wide by nature.
    """
    reach = max(abs(v) for p in points[len(points) // 3 :] for v in (p.lower, p.upper)) * 1.15 or 0.01
    x, y = _scale(0, len(points) - 1, 1, width - 5), _scale(-reach, reach, height - 2, 2)
    band = _band([_clip(p, -reach, reach) for p in points], x, y)
    return _svg("spark", width, height, _line("c-zero", 0, y(0), width, y(0)) + band, uid=uid, title=title, desc=desc)


def uplift(
    points: Sequence[Point],
    *,
    days: Sequence[str],
    thresholds: Sequence[Threshold] = (),
    events: Sequence[tuple[int, str]] = (),
    shaded: Sequence[tuple[float, float]] = (),
    uid: str,
    title: str,
    desc: str,
    say: Change = _AS_SHARE,
    width: int = 720,
    height: int = 250,
) -> str:
    """Uplift over time with its always-valid band, threshold lines and marked looks; at least one point.

    `days[i]` labels points[i]; an event is (index of its look, label); shaded are (from, to) as indices, with what is between two days as
    fractions. `say` names a value at the axis.
    """
    late = points[len(points) // 3 :]
    seen = [v for p in late for v in (p.lower, p.upper)] + [q.value for q in thresholds] + [0.0]
    pad = (max(seen) - min(seen)) * 0.1 or 0.01
    low, high = min(seen) - pad, max(seen) + pad
    left, right, top, bottom = 46, width - 8, 16, height - 24
    x, y = _scale(0, len(points) - 1, left, right - 6), _scale(low, high, bottom, top)
    rough = say.is_share and high - low > 0.04
    out = [
        _axes(low, high, days, x, y, (lambda t: say(round(t, 2))) if rough else say, left, right, height - 6),
        _hatched(uid, shaded, x, top, bottom, len(points) - 1),
        _band([_clip(p, low, high) for p in points], x, y),
    ]
    lowest = min((q.value for q in thresholds), default=0.0)
    for threshold in thresholds:
        at = y(threshold.value) + (14 if threshold.value == lowest else -6)  # the lowest label goes under its line
        out.append(_line(f"c-post tone-{threshold.tone}", left, y(threshold.value), right, y(threshold.value)))
        out.append(_text(f"c-note tone-{threshold.tone}", right - 8, at, threshold.label, "end"))
    for i, label in events:
        side = ("end", -5) if x(i) > width / 2 else ("start", 5)
        out.append(_line("c-event", x(i), top - 4, x(i), bottom))
        out.append(_text("c-label", x(i) + side[1], top + 4, label, side[0]))
    return _svg("uplift", width, height, "".join(out), uid=uid, title=title, desc=desc)


def values(
    series: Sequence[tuple[str, Sequence[float | None]]],
    *,
    days: Sequence[str],
    show: Callable[[float], str],
    limits: Sequence[Threshold] = (),
    shaded: Sequence[tuple[float, float]] = (),
    uid: str,
    title: str,
    desc: str,
    width: int = 350,
    height: int = 170,
) -> str:
    """The KPI itself, one line per variant: `series` is [(css name, a value or None for each day)], drawn in order."""
    flat = [v for _, row in series for v in row if v is not None] + [threshold.value for threshold in limits]
    pad = (max(flat) - min(flat)) * 0.15 or abs(max(flat)) * 0.1 or 1.0
    low, high, left, right, bottom = min(flat) - pad, max(flat) + pad, 46, width - 8, height - 24
    x, y = _scale(0, len(days) - 1, left, right - 6), _scale(low, high, bottom, 8)
    out = [_axes(low, high, days, x, y, show, left, right, height - 6)]
    out.append(_hatched(uid, shaded, x, 8, bottom, len(days) - 1))
    for threshold in limits:
        out.append(_line(f"c-post tone-{threshold.tone}", left, y(threshold.value), right, y(threshold.value)))
        out.append(_text(f"c-note tone-{threshold.tone}", right - 8, y(threshold.value) - 5, threshold.label, "end"))
    for name, row in series:
        for run in _runs(row):
            if len(run) == 1:
                i, v = run[0]
                out.append(f'<circle class="c-dot c-dot--{name}" cx="{x(i):g}" cy="{y(v):g}" r="2"/>')
            else:
                path = _path([x(i) for i, _ in run], [y(v) for _, v in run])
                out.append(f'<path class="c-line c-line--{name}" d="{path}"/>')
    return _svg("values", width, height, "".join(out), uid=uid, title=title, desc=desc)


def _runs(row: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """The stretches of a series between its gaps.

    >>> _runs([1.0, 2.0, None, 3.0])
    [[(0, 1.0), (1, 2.0)], [(3, 3.0)]]
    """
    runs: list[list[tuple[int, float]]] = [[]]
    for i, value in enumerate(row):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((i, value))
    return [run for run in runs if run]


def interval(
    reading: Point, thresholds: Sequence[Threshold], *, uid: str, title: str, desc: str, width: int = 300
) -> str:
    """A reading against its gate posts: the side the whole interval lies on is the verdict. A plain value is a dot."""
    ends = [*reading, 0.0, *(p.value for p in thresholds)]
    pad = (max(ends) - min(ends)) * 0.12 or 0.01
    x = _scale(min(ends) - pad, max(ends) + pad, 0, width)
    out = [_rect("c-track", 0, 16, width, 20)]
    for threshold in thresholds:
        at, above = x(threshold.value), threshold.clears == "right"
        start, end = (at, width) if above else (0, at)
        out.append(_rect(f"c-zone tone-{threshold.tone}", start, 16 if above else 26, end - start, 10))
        y0, y1, flag = (12, 36, f"M{at:g} 11l8 4l-8 4z") if above else (16, 40, f"M{at:g} 33l-8 4l8 4z")
        anchor = "start" if at < width * 0.55 else "end"
        shift = 0.0 if 20 < at < width - 20 else (-at if anchor == "start" else width - at)
        out.append(
            f'<g class="tone-{threshold.tone}">{_line("c-post", at, y0, at, y1)}<path class="c-flag" d="{flag}"/></g>'
        )
        out.append(_text("c-label", at + shift, 9 if above else 51, threshold.label, anchor))
    out.append(_line("c-zero", x(0), 16, x(0), 36))
    if reading.lower < reading.upper:
        low, high = x(reading.lower), x(reading.upper)
        out.append(_rect("c-interval", low, 22, high - low, 8))
        out.append(_line("c-cap", low, 19, low, 33) + _line("c-cap", high, 19, high, 33))
    out.append(f'<circle class="c-estimate" cx="{x(reading.estimate):g}" cy="26" r="4.5"/>')
    return _svg("interval", width, 54, "".join(out), uid=uid, title=title, desc=desc)


def meter(value: float, *, limit: float, full: float, uid: str, title: str, desc: str, width: int = 120) -> str:
    """An amount on a track with its limit: data age, a budget, the 24 h promise. Past `full` it ends in an arrow."""
    x = _scale(0, full, 0, width)
    at, end = min(x(limit), width - 1), min(max(x(value), 0), width)
    body = _rect("c-track", 0, 4, width, 8) + _rect("c-fill", 0, 4, end, 8) + _line("c-limit", at, 0, at, 16)
    if value > full:
        body += f'<path class="c-arrow" d="M{width - 7} 4.5l5 3.5l-5 3.5"/>'
    return _svg("meter", width, 16, body, uid=uid, title=title, desc=desc)


def run_strip(states: Sequence[str], *, uid: str, title: str, desc: str, step: float = 3.5, height: int = 22) -> str:
    """One bar per expected run, oldest first. Height says it without colour: ok low, partial higher, failed full, missed a bare dot."""
    size = {"ok": 10, "partial": 15, "failed": height, "missed": 3, "running": 6}
    bars = {
        state: "".join(
            f"M{i * step:g} {height}v-{tall}h{step - 1:g}v{tall}z" for i, seen in enumerate(states) if seen == state
        )
        for state, tall in size.items()
    }
    body = "".join(f'<path class="c-run c-run--{state}" d="{d}"/>' for state, d in bars.items() if d)
    return _svg("runs", round(len(states) * step, 1), height, body, uid=uid, title=title, desc=desc)


_CELL = 18
_NOW = 10
_DUE: dict[str, str] = {
    "arrived": '<rect class="c-due c-due--arrived" x="-6" y="-6" width="12" height="12" rx="2"/>',
    "late": '<rect class="c-due c-due--late" x="-6" y="-6" width="12" height="12" rx="2"/><path class="c-due__sign" d="M0 -3.5V0.5L2.5 2.5"/>',
    "missing": '<rect class="c-due c-due--missing" x="-6" y="-6" width="12" height="12" rx="2"/><path class="c-due__cross" d="M-3 -3L3 3M3 -3L-3 3"/>',
    "awaited": '<rect class="c-due c-due--awaited" x="-6" y="-6" width="12" height="12" rx="2"/><path class="c-due__dots" d="M-3 0H3"/>',
    "outage": '<rect class="c-due c-due--outage" x="-6" y="-6" width="12" height="12" rx="2"/><path class="c-due__lines" d="M-6 1L1 -6M-4 5L5 -4M-1 6L6 -1"/>',
    "paused": '<path class="c-due__lines" d="M-2.5 -4V4M2.5 -4V4"/>',
    "quiet": '<path class="c-due__lines" d="M-4 0H4"/>',
    "next": '<rect class="c-due c-due--next" x="-6" y="-6" width="12" height="12" rx="2"/>',
}


def due_strip(states: Sequence[str], *, past: int, first: str, uid: str, title: str, desc: str) -> str:
    """One mark a due instant, oldest first; the first `past` lie before now, which a line says. Shapes say it without colour. first: when the
    oldest was due."""
    width, drawn = len(states) * _CELL + _NOW + 2, ""
    for i, state in enumerate(states):
        x = 1 + i * _CELL + _CELL / 2 + (_NOW if i >= past else 0)
        drawn += f'<g transform="translate({x:g} 9)">{_DUE[state]}</g>'
    at = 1 + past * _CELL + _NOW / 2
    drawn += _line("c-due__now", at, 0, at, 18) + _text("c-label", at, 30, "now", "middle" if past else "start")
    if past > 7:
        drawn += _text("c-label", 3, 30, first)
    return _svg("dues", width, 32, drawn, uid=uid, title=title, desc=desc)


def due_key(state: str) -> str:
    """The mark alone, for a legend whose words stand beside it."""
    return (
        f'<svg class="key key--due" viewBox="-8 -8 16 16" width="16" height="16" aria-hidden="true">{_DUE[state]}</svg>'
    )
