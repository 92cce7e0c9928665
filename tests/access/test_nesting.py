"""How deep a text nests is told without recursing into it, whatever its texts hold."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decisioning.access.nesting import MAX_DEPTH, is_too_deep, pruned

TEXTS = st.text(st.sampled_from('[]{}"\\ä a'), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)


def depth(value: object) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(VALUES, st.integers(0, 40), TEXTS, st.sampled_from([None, 1]))
def test_it_is_told_for_any_json(value: object, more: int, name: str, indent: int | None) -> None:
    for level in range(more):
        value = {name: [value] if level % 5 == 0 else value, "]}": 1} if level % 2 else [name, value]
    for ascii_only in (True, False):
        text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
        assert is_too_deep(text) is (depth(value) > MAX_DEPTH)
        assert json.loads(pruned(text)) == cut(value)


def cut(value: object, left: int = MAX_DEPTH) -> object:
    """The value with None for what is deeper."""
    if isinstance(value, (list, dict)) and not left:
        return None
    if isinstance(value, dict):
        return {name: cut(inner, left - 1) for name, inner in value.items()}
    return [cut(inner, left - 1) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("text", [b"", b'"', b'"\\', b'"[', b"]]", b"[" * 32, b'{"a": ["', b"[}" * 10, b"\xff[\x00]"])
def test_what_is_no_json_and_not_deep_is_left_to_the_decoder(text: bytes) -> None:
    assert not is_too_deep(text)


@pytest.mark.parametrize("text", [b"[" * 33, b"[" * 8_000, b'{"a":' * 8_000, b'[{"rows":' * 5_000 + b"1"])
def test_what_is_never_closed_is_deep_all_the_same(text: bytes) -> None:
    assert is_too_deep(text)


@pytest.mark.parametrize("text", [b"[" * 8_000, b'{"a":' * 8_000, b"[" * 40 + b"}" * 9, b'[["' * 40])
def test_of_what_is_never_closed_nothing_deep_is_left(text: bytes) -> None:
    assert not is_too_deep(pruned(text))


def test_many_rows_are_not_deep() -> None:
    dice = random.Random(1)
    rows = [
        {"metric": "a", "note": "".join(dice.choices('[]{}"', k=3)), "denominator": {"value": 1}} for _ in range(2_000)
    ]
    assert not is_too_deep(json.dumps({"rows": rows}).encode())
