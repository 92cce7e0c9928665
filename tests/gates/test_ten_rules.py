"""The ten rules are the same in docs/gates.md, in the table, in the machine, and in an oracle that knows none of the three."""

import re
from itertools import takewhile
from pathlib import Path

import pytest

from decisioning.api.shapes import fields
from decisioning.board import words
from gates.engine.policy import KEYS
from gates.engine.recommendations import RULES
from gates.models import Recommendation

DOCS = Path(__file__).parents[2] / "docs"
_OUTCOME = re.compile(r"(scale|delete|review|hold) (`\w+`(?: or `\w+`)*)")


def section(page: str, heading: str) -> str:
    """The text under a heading, up to the next of the same rank."""
    rank = heading.partition(" ")[0]
    found: str = (DOCS / page).read_text().partition(f"\n{heading}\n")[2]
    return re.split(rf"^#{{1,{len(rank)}}} ", found, flags=re.M)[0]


def cells(text: str) -> list[list[str]]:
    """Rows of the first table in a text, without its head."""
    begins = text[max(text.find("\n|"), 0) :].strip().splitlines()
    lines = list(takewhile(lambda line: line.startswith("|"), begins))
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_the_document_has_the_ten_rules_of_the_table() -> None:
    written = {
        int(number): ({(a, code) for a, codes in _OUTCOME.findall(says) for code in re.findall(r"\w+", codes) if code != "or"}, acts)
        for number, _, says, acts in cells(section("gates.md", "## 5 The ten rules"))
    }  # fmt: skip

    assert written == {rule.number: (set(rule.says), rule.acts or "-") for rule in RULES}
    assert [rule.number for rule in RULES] == list(range(1, 11))


def codes(table: str) -> set[str]:
    return {code for row in cells(table) for code in re.findall(r"`(\w+)`", row[0])}


def test_the_glossary_has_every_word_of_section_1() -> None:
    glossary = (DOCS / "glossary.md").read_text().lower()
    named = [row[0] for row in cells(section("gates.md", "## 1 Words"))]

    assert len(named) > 15
    assert [word for word in named if f"| {word}" not in glossary and f", {word} |" not in glossary] == []


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("**Verdicts**", set(fields.VERDICTS)),
        ("**Recommendation codes**", {code for rule in RULES for _, code in rule.says}),
    ],
)
def test_the_glossary_has_every_code(title: str, expected: set[str]) -> None:
    glossary = (DOCS / "glossary.md").read_text()

    assert codes(glossary.partition(f"\n{title}\n")[2].partition("\n**")[0]) == expected


def test_the_glossary_says_which_rule_gives_which_code() -> None:
    table = cells((DOCS / "glossary.md").read_text().partition("\n**Recommendation codes**\n")[2])
    written = {
        (action, code.strip("`"), number)
        for code, action, numbers, _ in table
        for number in re.findall(r"\d+", numbers)
    }

    assert written == {(action, code, str(rule.number)) for rule in RULES for action, code in rule.says}


def test_the_glossary_has_every_list_of_words() -> None:
    glossary = set(re.findall(r"`(\w+)`", (DOCS / "glossary.md").read_text()))
    lists = (
        fields.STATUSES,
        fields.ROLES,
        fields.ACTIONS,
        fields.ANSWERS,
        fields.OVERRIDES,
        fields.FRESHNESS_STATES,
        fields.RECOMMENDATION_STATES,
        Recommendation.Superseded.values,
        [*KEYS, "freshness", "srm", "doubt"],
        words.CODES,
    )

    assert [word for known in lists for word in known if word not in glossary] == []
