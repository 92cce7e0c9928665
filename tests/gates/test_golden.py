"""300 histories come to what they came to when their digests were committed."""

from tests.gates.golden import SEEDS, Golden, changes, kept, of


def test_three_hundred_histories_come_to_what_is_committed() -> None:
    assert list(changes({seed: of(seed) for seed in SEEDS})) == [], (
        "If the change is meant: uv run python -m tests.gates.golden"
    )


def test_each_column_tells_its_own_change_apart() -> None:
    found = kept()
    found[7] = Golden("0" * 16, found[7].state, found[7].proposals)

    assert list(changes(found)) == ["evidence: 1 of 300 histories differ, the first is world(7)"]
