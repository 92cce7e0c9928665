"""A chart for those who are not signed in, Slack above all: its address is signed, holds the figures itself, and runs out.

Whoever has the address sees this one picture and nothing else; drawing it reads no table.
"""

import io
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta

from django.conf import settings
from django.core import signing
from django.urls import reverse
from PIL import Image, ImageDraw, ImageFont

from decisioning.access import outbound
from decisioning.board import words
from decisioning.board.charts import Point
from decisioning.board.presenters import page_data
from decisioning.ledger.models import OutboxMessage
from gates.engine.figures import MINUS, Change, percent

_log = logging.getLogger(__name__)

GOOD_FOR = timedelta(days=30)
_SALT = "decisioning.board.snapshots"
_MOST = 60
_WIDTH, _HEIGHT, _SCALE = 720, 280, 2
_PAPER, _INK, _GRID, _LINE, _BAND = "#ffffff", "#3f4d47", "#d5dcd9", "#0a6552", "#dcf1ea"


def of_message(message: OutboxMessage, now: datetime) -> tuple[str, str] | None:
    """(address, words) of the uplift a proposal rests on; None where there is none, or where the outside could not fetch it."""
    if message.type != "decision.proposed" or message.experiment_id is None or not _reachable():
        return None
    try:
        data = page_data.load([message.experiment_id], now=now)
        points = page_data.trend(data, message.experiment_id, message.data.get("variant"))
    except (ArithmeticError, LookupError, TypeError, ValueError):
        _log.exception("No picture for message %s", message.pk)  # the message goes without
        return None
    if len(points) < 2:
        return None
    goal = next((kpi for kpi in data.plans[message.experiment_id].kpis if kpi.role == "goal"), None)
    say, last = Change(less_is_better=goal is not None and goal.direction == "decrease"), points[-1]
    ends = ", ".join(say.interval(last.lower, last.upper))
    what = "Change" if say.less_is_better else "Uplift"
    title = f"{what} of {message.data['experiment']}: {say(last.estimate)}{say.worth(last.estimate)} [{ends}]"
    if say.less_is_better:  # the picture is of the change as it is
        points = [Point(-point.upper, -point.estimate, -point.lower) for point in points]
    return address(points, title), f"{title}, after {words.plural(len(points), 'day')}"


def address(points: Sequence[Point], title: str) -> str:
    """Where `draw` answers with this chart. points: fractions, one a day, at least two; the newest of very many."""
    figures = [[round(value, 5) for value in point] for point in points[-_MOST:]]
    token = signing.dumps([title[:200], figures], salt=_SALT, compress=True)
    return f"{settings.PUBLIC_URL}{reverse('snapshot', args=[token])}"


def draw(token: str) -> bytes:
    """The chart as PNG. Raises django.core.signing.BadSignature for an address that is not ours or has run out."""
    title, figures = signing.loads(token, salt=_SALT, max_age=GOOD_FOR)
    points = [Point(*figure) for figure in figures]
    out = io.BytesIO()
    _drawn(points, title).save(out, "PNG", optimize=True)
    return out.getvalue()


def _drawn(points: Sequence[Point], title: str) -> Image.Image:
    """Drawn twice as large and made smaller, so that edges are smooth. The first, wide looks may be clipped."""
    settled = points[len(points) // 3 :]
    seen = [value for point in settled for value in (point.lower, point.upper)] + [0.0]
    pad = (max(seen) - min(seen)) * 0.1 or 0.01
    low, high = min(seen) - pad, max(seen) + pad
    left, right, top, bottom = 64 * _SCALE, (_WIDTH - 16) * _SCALE, 44 * _SCALE, (_HEIGHT - 28) * _SCALE

    def at(day: int, value: float) -> tuple[float, float]:
        clipped = min(max(value, low), high)
        return left + day / (len(points) - 1) * (right - left), bottom - (clipped - low) / (high - low) * (bottom - top)

    picture = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), _PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13 * _SCALE)
    upper = [at(day, point.upper) for day, point in enumerate(points)]
    lower = [at(day, point.lower) for day, point in enumerate(points)]
    pen.polygon(upper + lower[::-1], fill=_BAND)
    for value in (low + pad, 0.0, high - pad):
        _, y = at(0, value)
        pen.line([(left, y), (right, y)], fill=_INK if value == 0 else _GRID, width=_SCALE)
        pen.text((left - 6 * _SCALE, y), _plain(percent(value)), fill=_INK, font=font, anchor="rm")
    pen.line([at(day, point.estimate) for day, point in enumerate(points)], fill=_LINE, width=2 * _SCALE, joint="curve")
    x, y = at(len(points) - 1, points[-1].estimate)
    pen.ellipse([x - 4 * _SCALE, y - 4 * _SCALE, x + 4 * _SCALE, y + 4 * _SCALE], fill=_LINE)
    pen.text((left, 14 * _SCALE), _plain(title), fill=_INK, font=font)
    foot = bottom + 8 * _SCALE
    pen.text((left, foot), "day 1", fill=_INK, font=font)
    pen.text((right, foot), f"day {len(points)}", fill=_INK, font=font, anchor="ra")
    return picture.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)


def _plain(text: str) -> str:
    """The font that comes with Pillow knows no minus sign."""
    return text.replace(MINUS, "-")


def _reachable() -> bool:
    return settings.PUBLIC_URL.startswith("https://") and outbound.is_public(settings.PUBLIC_URL)
