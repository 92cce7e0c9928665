"""Numbers and spans as people read them, wherever they read: one format. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

MINUS = "\N{MINUS SIGN}"


def percent(value: float) -> str:
    """A fraction as a signed percentage with three significant digits at most.

    >>> percent(0.0412), percent(-0.004), percent(0.0), percent(0.000123)
    ('+4.12%', '−0.4%', '0%', '+0.0123%')
    """
    return f"{signed(value * 100)}%"


def signed(value: float) -> str:
    """
    >>> signed(2.0), signed(-2.0), signed(0.0)
    ('+2', '−2', '0')
    """
    text = significant(value)
    return text if text == "0" or text.startswith(MINUS) else f"+{text}"


def significant(value: float) -> str:
    """Three significant digits, a true minus, thousands set apart.

    >>> significant(1234567.0), significant(-0.00456), significant(3.0)
    ('1,234,567', '−0.00456', '3')
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{abs(value):,.{digits}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{MINUS if value < 0 else ''}{text}"


def whole_days(days: float) -> str:
    """Days ahead, rounded up so that the promise holds; under a day, tenths.

    >>> whole_days(0.31), whole_days(12.2), whole_days(1234.0)
    ('0.4', '13', '1,234')
    """
    if days < 1:
        return f"{math.ceil(max(days, 0) * 10 + 1e-9) / 10:g}"
    return f"{math.ceil(days):,}"


def span(seconds: float) -> str:
    """A span of time in its two largest units.

    >>> [span(s) for s in (0, 42.4, 212, 12_600, 86_400, 86_400 * 3 + 7_200, 86_400 * 12)]
    ['0 s', '42 s', '3 min 32 s', '3 h 30 min', '1 day', '3 days 2 h', '12 days']
    """
    left = max(round(seconds), 0)
    if left < 60:
        return f"{left} s"
    if left < 3_600:
        parts = [(left // 60, "min"), (left % 60 if left < 600 else 0, "s")]
    elif left < 86_400:
        parts = [(left // 3_600, "h"), (left % 3_600 // 60, "min")]
    else:
        days = left // 86_400
        parts = [(days, "day" if days == 1 else "days"), (left % 86_400 // 3_600 if days < 10 else 0, "h")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def listed(names: Sequence[str]) -> str:
    """
    >>> listed(["t1"]), listed(["t1", "t2", "t3"])
    ('t1', 't1, t2 and t3')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


class Change:
    """How a change against the control is told. Gates reckon with up as good; people read the change as it is, and where less is
    better a word says what it is worth.

    >>> slower = Change(less_is_better=True)
    >>> slower(-0.14), slower.worth(-0.14), slower.worth(0.015), slower.interval(-0.16, -0.12)
    ('+14%', ', worse', ', better', ('+12%', '+16%'))
    >>> more = Change()
    >>> more(-0.14), more.worth(-0.14), more.interval(None, 0.02)
    ('−14%', '', ('not known', '+2%'))
    """

    def __init__(self, say: Callable[[float], str] = percent, *, less_is_better: bool = False) -> None:
        self._say, self.less_is_better = say, less_is_better

    def __call__(self, value: float | None) -> str:
        """value: up is good; None where nothing bounds it."""
        if value is None or not math.isfinite(value):
            return "not known"
        return self._say(-value if self.less_is_better else value)

    def worth(self, value: float) -> str:
        """What it is worth, where its sign does not say it."""
        if not self.less_is_better or value == 0:
            return ""
        return ", better" if value > 0 else ", worse"

    def interval(self, lower: float | None, upper: float | None) -> tuple[str, str]:
        """Both ends, the smaller change first."""
        ends = self(lower), self(upper)
        return (ends[1], ends[0]) if self.less_is_better else ends

    @property
    def is_share(self) -> bool:
        return self._say is percent
