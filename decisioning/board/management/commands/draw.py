"""Pictures of the lifecycle and of the ten rules, drawn from the tables that the portal runs on."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from experiments.lifecycle import BY_HAND, TRANSITIONS
from gates.engine.recommendations import RULES, Rule

_STYLE = """
svg { font: 14px system-ui, sans-serif; color-scheme: light dark; }
.paper { fill: #fff; } .ink { fill: #1c2430; } .soft { fill: #566173; } .line { stroke: #566173; fill: none; stroke-width: 1.5; }
.tip { fill: #566173; } .box { fill: #f2f5f9; stroke: #566173; } .scale { fill: #d9f0e1; } .delete { fill: #f8dcda; } .review { fill: #fbeacb; }
.hold { fill: #e4e9f0; } .name { font-weight: 600; } .small { font-size: 12px; }
@media (prefers-color-scheme: dark) {
  .paper { fill: #12161d; } .ink { fill: #e8edf4; } .soft { fill: #a5b1c2; } .line { stroke: #a5b1c2; } .tip { fill: #a5b1c2; }
  .box { fill: #1d2430; stroke: #a5b1c2; } .scale { fill: #17402a; } .delete { fill: #56221f; } .review { fill: #4d3a10; } .hold { fill: #2b3442; }
}"""
_TIP = (
    '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    '<path class="tip" d="M0 0 8 4 0 8z"/></marker>'
)
_WIDE, _HIGH = 110, 40


class Command(BaseCommand):
    help = "Draw the lifecycle and the ten rules into docs. `--check` only says whether the pictures there are current (exit 1 when not)."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--check", action="store_true")

    def handle(self, *_args: Any, **options: Any) -> None:
        stale = [path for path, drawn in pictures().items() if not path.exists() or path.read_text() != drawn]
        names = ", ".join(path.name for path in stale)
        if options["check"] and stale:
            raise CommandError(f"{names} in docs are not what the code gives. Draw them: uv run manage.py draw")
        for path in stale:
            path.write_text(pictures()[path])
        self.stdout.write(f"Drawn: {names}." if stale else "Every picture is current.")


def pictures() -> dict[Path, str]:
    """Every picture by the file it belongs in."""
    docs = Path(settings.BASE_DIR) / "docs"
    return {docs / "lifecycle.svg": lifecycle(TRANSITIONS, BY_HAND), docs / "rules.svg": rules(RULES)}


def lifecycle(transitions: Mapping[str, Sequence[str]], by_hand: Sequence[str]) -> str:
    """Statuses from left to right: where it begins, where it may stay, how it ends. A whole line: asked for by hand; a broken one: by an answer."""
    reached = {to for ends in transitions.values() for to in ends}
    columns = (
        [status for status in transitions if status not in reached],
        [status for status, ends in transitions.items() if status in reached and ends],
        [status for status, ends in transitions.items() if status in reached and not ends],
    )
    tallest = max(map(len, columns))
    at = {
        status: (30 + 210 * i, 50 + round((tallest - len(column)) * 45 + 90 * j))
        for i, column in enumerate(columns)
        for j, status in enumerate(column)
    }
    lines = [
        _arrow(at[begin], at[end], both=begin in transitions[end], broken=end not in by_hand)
        for begin, ends in transitions.items()
        for end in ends
    ]
    boxes = [
        f'<rect class="box" x="{x}" y="{y}" width="{_WIDE}" height="{_HIGH}" rx="8"/>'
        f'<text class="ink name" x="{x + _WIDE // 2}" y="{y + 25}" text-anchor="middle">{escape(status)}</text>'
        for status, (x, y) in at.items()
    ]
    told = '<text class="soft small" x="30" y="24">whole line: asked for by hand; broken line: a person\'s answer to a proposal</text>'
    said = "; ".join(f"{begin} to {', '.join(ends)}" for begin, ends in transitions.items() if ends)
    height = 50 + 90 * tallest
    return _svg(590, height, [_TIP, told, *lines, *boxes], title="The life of an experiment", desc=said)


def _arrow(begin: tuple[int, int], end: tuple[int, int], *, both: bool, broken: bool) -> str:
    """From the side of one box to the nearest side of another; there and back go side by side."""
    (x, y), (to_x, to_y) = begin, end
    dash = ' stroke-dasharray="5 4"' if broken else ""
    if x == to_x:
        down = to_y > y
        aside = x + _WIDE // 2 + (12 if down else -12) * both
        path = f"M{aside} {y + (_HIGH if down else 0)}V{to_y + (0 if down else _HIGH)}"
    else:
        path = f"M{x + _WIDE} {y + _HIGH // 2}L{to_x} {to_y + _HIGH // 2}"
    return f'<path class="line" d="{path}" marker-end="url(#tip)"{dash}/>'


def rules(table: Sequence[Rule]) -> str:
    """One line a rule, first match on top: when it matches, what it says, how it acts."""
    parts = ['<text class="soft small" x="20" y="24">the first that matches says what to do</text>']
    for place, rule in enumerate(table):
        y = 40 + 44 * place
        parts.append(f'<rect class="box" x="20" y="{y}" width="34" height="32" rx="8"/>')
        parts.append(f'<text class="ink name" x="37" y="{y + 21}" text-anchor="middle">{rule.number}</text>')
        parts.append(f'<text class="ink" x="68" y="{y + 21}">{escape(rule.when)}</text>')
        x = 330
        for action, code in rule.says:
            said, wide = f"{action} {code}", 20 + round(7.6 * len(f"{action} {code}"))
            parts.append(f'<rect class="{action}" x="{x}" y="{y + 3}" width="{wide}" height="26" rx="13"/>')
            parts.append(f'<text class="ink" x="{x + wide // 2}" y="{y + 21}" text-anchor="middle">{said}</text>')
            x += wide + 8
        parts.append(f'<text class="soft small" x="930" y="{y + 21}" text-anchor="end">{escape(rule.acts)}</text>')
    said = "; ".join(f"{r.number} {r.when}: {', '.join(' '.join(each) for each in r.says)}" for r in table)
    return _svg(950, 50 + 44 * len(table), parts, title="The ten rules", desc=said)


def _svg(width: int, height: int, parts: Iterable[str], *, title: str, desc: str) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-labelledby="t d">\n<title id="t">{escape(title)}</title>\n<desc id="d">{escape(desc)}</desc>\n<style>{_STYLE}\n</style>\n'
        f'<rect class="paper" width="{width}" height="{height}"/>\n{body}\n</svg>\n'
    )
