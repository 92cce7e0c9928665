"""Every example in a docstring is run."""

import doctest
import importlib
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
    for room in ("decisioning", "experiments", "gates", "telemetry")
    for path in (PROJECT / room).rglob("*.py")
    if ">>> " in path.read_text()
)


def test_no_module_with_an_example_is_left_out() -> None:
    assert len(MODULES) > 30


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_hold(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))

    assert result.attempted > 0
    assert result.failed == 0
