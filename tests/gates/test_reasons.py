"""docs/gates.md section 9: reasons are codes and numbers, and sentences a view of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from gates.engine import narration
from gates.engine.evidence import canonical_bytes, digest, evidence
from gates.engine.narration import Called, Reader, codes, gate_in_words, in_words, sentence
from gates.engine.plan import from_us
from gates.engine.reasons import reasons_in, subject_of
from tests.gates.histories import HOUR, START
from tests.gates.test_rules import walk

DOCS = Path(__file__).parents[2] / "docs" / "gates.md"
OF_JSON = (bool, int, float, str, type(None))


def section() -> str:
    return DOCS.read_text().partition("## 9 Reasons")[2]


def rows_of_codes() -> Iterator[tuple[set[str], set[str]]]:
    """(codes, every word in backticks of their line) of the table."""
    for line in section().splitlines():
        if line.startswith("| `"):
            first, *rest = line.strip("| ").split("|")
            yield set(re.findall(r"`(\w+)`", first)), set(re.findall(r"`(\w+)`", " ".join(rest)))


def test_every_code_that_has_words_is_in_the_documentation_and_the_other_way_round() -> None:
    assert set().union(*(codes_of_line for codes_of_line, _ in rows_of_codes())) == codes()


def test_the_glossary_has_every_code_once() -> None:
    glossary = (
        (DOCS.parent / "glossary.md").read_text().partition("**Reason codes**")[2].partition("In the portal's own")[0]
    )

    assert sorted(re.findall(r"`(\w+)`", glossary)) == sorted(codes())


def test_a_mended_word_changes_no_digest_and_shows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    w = walk()
    folded = w.folded()
    before = digest(canonical_bytes(evidence(w.policy, w.plan, folded, folded.evaluations[-1].slot)))
    monkeypatch.setattr(narration, "_SENTENCES", {**narration._SENTENCES, "wins": lambda r, by: "It has won."})
    again = w.folded()

    assert digest(canonical_bytes(evidence(w.policy, w.plan, again, again.evaluations[-1].slot))) == before
    assert "It has won." in w.rationale()


def test_ages_are_as_of_the_reading_and_names_as_they_are_then() -> None:
    w = walk()
    w.stop("speed", "control", 40)
    stale = next(r for r in w.recommended(45).reasons if r["code"] == "stale")
    measured = next(r for r in w.recommended(45).reasons if r["code"] == "measured")
    at = from_us(START + 45 * HOUR)

    assert ", 5 h old," in sentence(stale, Reader(at))
    assert ", 9 h old," in sentence(stale, Reader(at + timedelta(hours=4)))
    assert "old" not in sentence(stale, Reader())
    assert sentence(measured, Reader(at, {"value": Called("Value a session")})).startswith("Value a session: ")


def test_a_code_of_another_version_is_shown_as_it_is_and_never_left_out() -> None:
    newer = {"reasons": [{"code": "from_tomorrow", "metric": "value", "left": 3, "blocks": True}]}
    halved = {"code": "measured", "metric": "value"}

    assert in_words(newer, Reader())["blockers"] == ["from_tomorrow (metric value, left 3)."]
    assert sentence(halved, Reader()) == "measured (metric value)."


def test_what_was_kept_in_sentences_is_shown_in_them() -> None:
    kept = {"action": "hold", "rationale": ["value: +4%."], "blockers": ["speed is stale."]}
    shown = in_words(kept, Reader())

    assert (shown["rationale"], shown["blockers"]) == (["value: +4%."], ["speed is stale."])
    assert [reason["code"] for reason in shown["reasons"]] == ["told", "told"]
    assert gate_in_words({"reason": "Units arrive as planned."}, Reader())["reason"] == "Units arrive as planned."
    assert reasons_in({}) == []


def test_whether_something_else_is_lacking_is_told_by_names_and_not_by_figures() -> None:
    w = walk(units=10, min_units=1000)
    early, late = (
        [subject_of(reason) for reason in w.recommended(hour).reasons if reason.get("blocks")] for hour in (10, 11)
    )
    assert early == late
    assert [r for r in w.recommended(10).reasons if r.get("blocks")] != [
        r for r in w.recommended(11).reasons if r.get("blocks")
    ]


def test_where_less_is_better_the_change_is_told_as_it_is_with_a_word_for_what_it_is_worth() -> None:
    slower = {"code": "measured", "metric": "load", "variant": "t1", "effect": "relative", "alpha": 0.05, "estimate": -0.14,
              "lower": -0.16, "upper": -0.12, "running_lower": None, "running_upper": None, "units": 2000}  # fmt: skip
    harmed = {
        "code": "harmed",
        "metric": "load",
        "variant": "t1",
        "effect": "relative",
        "max_harm": 0.05,
        "upper": -0.12,
        "looks": 2,
    }
    needs = {"code": "scale_needs", "metric": "load", "goal": True, "effect": "relative", "above": 0.02, "lower": -0.01}
    by = Reader(metrics={"load": Called("Page load time", "ms", less_is_better=True)})

    assert sentence(slower, by) == (
        "Page load time: +14%, worse, for t1 (always-valid 95% interval +12% to +16%; 2,000 units)."
    )
    assert "(nothing bounds it yet; 2,000 units)" in sentence({**slower, "lower": None, "upper": None}, by)
    assert sentence({**slower, "estimate": 0.015}, by).startswith("Page load time: −1.5%, better, for t1")
    assert sentence(harmed, by) == (
        "Page load time of t1 is proved to rise by more than 5% (at best +12%), at 2 looks in a row."
    )
    assert sentence(needs, by) == "Scale needs the upper bound below −2% for Page load time; it is +1%."
