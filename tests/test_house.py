"""How the house is built: every module under one contract, no exception, nothing too large to be held in the head."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[1]
CONTRACTS = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]
LONGEST_FILE, LONGEST_CLASS = 700, 350  # lines


def product() -> Iterator[Path]:
    """Every Python file of the product; migrations are what they were when they ran."""
    for room in CONTRACTS["root_packages"]:
        yield from (path for path in (PROJECT / room).rglob("*.py") if "migrations" not in path.parts)


def name(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def test_every_module_stands_under_exactly_one_layer() -> None:
    layers = next(c for c in CONTRACTS["contracts"] if c["type"] == "layers")["layers"]
    rooms = [room.strip() for layer in layers for room in layer.replace(":", "|").split("|")]
    modules = {name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in product()}

    def over(module: str) -> list[str]:
        return [room for room in rooms if f"{module}.".startswith(f"{room}.")]

    assert {module: over(module) for module in modules - {"decisioning"} if len(over(module)) != 1} == {}


def test_no_contract_has_an_exception() -> None:
    assert [c["name"] for c in CONTRACTS["contracts"] if c.get("ignore_imports")] == []


def is_too_long(text: str) -> bool:
    classes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
    longest = max(((node.end_lineno or 0) - node.lineno + 1 for node in classes), default=0)
    return text.count("\n") > LONGEST_FILE or longest > LONGEST_CLASS


def test_every_file_and_class_can_be_held_in_the_head() -> None:
    assert [name(path) for path in product() if is_too_long(path.read_text())] == []
