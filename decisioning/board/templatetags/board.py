"""What the board's templates may call: an icon, a small piece, and text that does not break between figure and unit."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from django import template
from django.template.loader import render_to_string
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html
from django.utils.safestring import SafeString

from decisioning.board import words

register = template.Library()

_FIGURE_AND_UNIT = re.compile(r"(?<=\d) (?=(?:%|s|min|h|d|ms|days?|units?|looks?|slots?|rows?|Jan|Feb|Mar|Apr|May|Jun|"
                              r"Jul|Aug|Sep|Oct|Nov|Dec)\b)")  # fmt: skip
_INSTANT = re.compile(r"20\d\d-(?:0[1-9]|1[0-2])-[0-3]\dT\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|\+00:00)")


@register.simple_tag
def icon(name: str, extra: str = "") -> SafeString:
    """A glyph of the sprite; says nothing to a screen reader, so a word stands beside it."""
    return _icon(name, extra)


@lru_cache(maxsize=512)
def _icon(name: str, extra: str) -> SafeString:
    return format_html(
        '<svg class="icon{}" aria-hidden="true"><use href="#i-{}"/></svg>', f" {extra}" if extra else "", name
    )


type Fields = Mapping[str, object]


@register.simple_tag
def piece(name: str, of: Fields | Sequence[Fields]) -> SafeString:
    """board/_NAME.html for its one small argument, flat texts; many rows show the same few, so each is rendered once."""
    if isinstance(of, Mapping):
        return _piece(name, tuple(of.items()), many=False)
    return _piece(name, tuple(tuple(one.items()) for one in of), many=True)


@lru_cache(maxsize=4096)
def _piece(name: str, of: tuple[tuple[object, ...], ...], *, many: bool) -> SafeString:
    shown: object = [dict(one) for one in of] if many else dict(of)  # type: ignore[arg-type]
    return render_to_string(f"board/_{name}.html", {name: shown})


@register.filter
def nobreak(text: object) -> str:
    """As people read it: RFC 3339 instants in words, a figure and its unit on one line.

    >>> nobreak("reached at 2026-11-28T09:00:00Z, 3 h away").replace("\\N{NO-BREAK SPACE}", "_")
    'reached at 28_Nov_09:00Z, 3_h away'
    """
    said = _INSTANT.sub(_instant, str(text))
    return _FIGURE_AND_UNIT.sub("\N{NO-BREAK SPACE}", said)


def _instant(found: re.Match[str]) -> str:
    at = parse_datetime(found[0])
    return words.stamp(at).replace(" ", "\N{NO-BREAK SPACE}") if at else found[0]
