"""What the board's templates may call: an icon and text that does not break between figure and unit."""

import re

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString

register = template.Library()

_FIGURE_AND_UNIT = re.compile(r"(?<=\d) (?=(?:%|s|min|h|d|ms|days?|units?|looks?|slots?|rows?|Jan|Feb|Mar|Apr|May|Jun|"
                              r"Jul|Aug|Sep|Oct|Nov|Dec)\b)")  # fmt: skip
_INSTANT = re.compile(r"20\d\d-(0[1-9]|1[0-2])-([0-3]\d)T(\d\d:\d\d)(?::\d\d(?:\.\d+)?)?(?:Z|\+00:00)")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@register.simple_tag
def icon(name: str, extra: str = "") -> SafeString:
    """A glyph of the sprite; says nothing to a screen reader, so a word stands beside it."""
    return format_html(
        '<svg class="icon{}" aria-hidden="true"><use href="#i-{}"/></svg>', f" {extra}" if extra else "", name
    )


@register.filter
def nobreak(text: object) -> str:
    """As people read it: RFC 3339 instants in words, a figure and its unit on one line.

    >>> nobreak("reached at 2026-11-28T09:00:00Z, 3 h away").replace("\\N{NO-BREAK SPACE}", "_")
    'reached at 28_Nov_09:00Z, 3_h away'
    """
    said = _INSTANT.sub(_instant, str(text))
    return _FIGURE_AND_UNIT.sub("\N{NO-BREAK SPACE}", said)


def _instant(found: re.Match[str]) -> str:
    month, day, clock = found.groups()
    now = f"{_MONTHS[int(month) - 1]}\N{NO-BREAK SPACE}{clock}Z"
    return f"{int(day)}\N{NO-BREAK SPACE}{now}"
