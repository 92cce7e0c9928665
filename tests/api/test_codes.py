"""Every code a caller may meet is written down, and every code that is written down can be met."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from decisioning.api import problems
from decisioning.api.codes import CODES
from tests.api.contract import document

PROJECT = Path(__file__).parents[2]
ROOMS = (
    "decisioning/api",
    "decisioning/access",
    "decisioning/ledger",
    "experiments",
    "gates",
    "telemetry",
)
_CODE = re.compile(r"[a-z]+(?:_[a-z0-9]+)*")
_FIRST = {"refuse": 1, "fail": 0, "Problem": 1, "Fault": 1}
"""Which argument of these is a code; of every other refusal it is the first."""


def codes() -> set[str]:
    found = {code for path in sources() for node in ast.walk(ast.parse(path.read_text())) for code in told(node)}
    found |= set(problems._CODES.values()) | set(problems._FIELD_CODES.values())
    return {code for code in found if _CODE.fullmatch(code)}


def sources() -> Iterator[Path]:
    for room in ROOMS:
        yield from (path for path in sorted((PROJECT / room).rglob("*.py")) if is_met(path))


def is_met(path: Path) -> bool:
    return "migrations" not in path.parts and path.name != "codes.py"


def told(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name.endswith("Refused") or name in _FIRST:
            yield from texts(node.args[_FIRST.get(name, 0) :][:1])
        yield from texts([each.value for each in node.keywords if each.arg in ("code", "wrong")])
    elif isinstance(node, ast.Tuple) and len(node.elts) in (2, 3) and pointed(node):
        yield from texts(node.elts[1:2])
    elif isinstance(node, ast.Assign) and any(getattr(name, "id", "") in ("code", "wrong") for name in node.targets):
        yield from texts([node.value])


def pointed(node: ast.Tuple) -> bool:
    """Whether a tuple begins with a JSON pointer."""
    first = node.elts[0]
    parts = first.values[:2] if isinstance(first, ast.JoinedStr) else [first]
    return any(isinstance(part, ast.Constant) and str(part.value).startswith(("/", "?")) for part in parts)


def texts(nodes: list[ast.expr]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.IfExp):
            yield from texts([node.body, node.orelse])


def test_every_code_is_written_down() -> None:
    written = set(re.findall(r"`([a-z0-9_]+)`", (PROJECT / "docs" / "api.md").read_text()))
    written |= set(re.findall(r"`([a-z0-9_]+)`", (PROJECT / "docs" / "gates.md").read_text()))

    found = codes()

    assert len(found) > 80
    assert sorted(found - written) == []


def test_every_code_that_is_written_down_can_be_met() -> None:
    errors = (PROJECT / "docs" / "api.md").read_text().partition("\n## Errors\n")[2].partition("\n## ")[0]
    named = {
        code
        for line in re.findall(r"^\| .*", errors, re.M)
        for code in re.findall(r"`([a-z]+_[a-z0-9_]+|duplicate|conflict)`", line)
    }
    code = "".join(path.read_text() for path in sources())

    assert len(named) > 40
    assert sorted(each for each in named if f'"{each}"' not in code) == []


def test_every_code_is_said_with_what_to_do_and_an_example_and_none_that_nobody_meets() -> None:
    code = "".join(path.read_text() for path in sources())
    made = {"gauge_goal", "gauge_guard"}  # of "gauge_" and what the metric is to be
    assert codes() - CODES.keys() == {"open"}  # of a hold, which refuses nothing
    assert sorted(each for each in CODES.keys() - made if f'"{each}"' not in code) == []
    assert [
        each for each, said in CODES.items() if not all(part.endswith((".", "...")) and len(part) > 4 for part in said)
    ] == []
    assert sorted(CODES) == list(CODES)


def test_the_document_tells_every_code_and_takes_those_of_tomorrow() -> None:
    shapes = document()["components"]["schemas"]
    told = shapes["ErrorCode"]["x-codes"]
    assert list(told) == list(CODES)
    assert told["naive_timestamp"]["description"].startswith("A time without an offset. Add Z")
    assert "enum" not in shapes["ErrorCode"]
    users = [name for name, shape in shapes.items() if "ErrorCode" in str(shape.get("properties", {}).get("code"))]
    assert len(users) == 2
