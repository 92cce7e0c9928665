"""Faults take minutes and kill processes: they run when asked for, `pytest -m faults`."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.markexpr:
        return
    faults = [item for item in items if item.get_closest_marker("faults")]
    items[:] = [item for item in items if item not in faults]
    config.hook.pytest_deselected(items=faults)
