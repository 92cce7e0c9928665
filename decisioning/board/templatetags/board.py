"""What the board's templates may call: an icon and text that does not break between figure and unit."""

import re

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString

register = template.Library()

_FIGURE_AND_UNIT = re.compile(r"(?<=\d) (?=(?:%|s|min|h|d|ms|days?|units?|looks?|slots?|rows?|Jan|Feb|Mar|Apr|May|Jun|"
                              r"Jul|Aug|Sep|Oct|Nov|Dec)\b)")  # fmt: skip


@register.simple_tag
def icon(name: str, extra: str = "") -> SafeString:
    """A glyph of the sprite; says nothing to a screen reader, so a word stands beside it."""
    return format_html(
        '<svg class="icon{}" aria-hidden="true"><use href="#i-{}"/></svg>', f" {extra}" if extra else "", name
    )


@register.filter
def nobreak(text: object) -> str:
    """Keep a figure and its unit on one line."""
    return _FIGURE_AND_UNIT.sub("\N{NO-BREAK SPACE}", str(text))
