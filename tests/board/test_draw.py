"""The pictures in docs are drawn from the tables that the portal runs on."""

from collections.abc import Iterator
from xml.etree import ElementTree

from decisioning.board.management.commands.draw import lifecycle, pictures, rules
from experiments.lifecycle import BY_HAND, TRANSITIONS
from gates.engine.recommendations import RULES


def parts(picture: str, name: str) -> Iterator[ElementTree.Element]:
    return ElementTree.fromstring(picture).iter(f"{{http://www.w3.org/2000/svg}}{name}")  # noqa: S314 - our own


def test_the_pictures_in_docs_are_what_the_tables_give() -> None:
    for path, drawn in pictures().items():
        assert path.read_text() == drawn, f"{path.name} is another picture. Draw it: uv run manage.py draw"


def test_every_status_and_every_transition_is_drawn() -> None:
    picture = lifecycle(TRANSITIONS, BY_HAND)

    words = {text.text for text in parts(picture, "text")}
    lines = [line for line in parts(picture, "path") if "line" in line.get("class", "")]
    assert words >= {str(status) for status in TRANSITIONS}
    assert len(lines) == sum(len(ends) for ends in TRANSITIONS.values())
    answers = sum(to not in BY_HAND for ends in TRANSITIONS.values() for to in ends)
    assert len([line for line in lines if line.get("stroke-dasharray")]) == answers > 0


def test_every_rule_is_drawn_with_all_it_may_say() -> None:
    words = [text.text for text in parts(rules(RULES), "text")]

    for rule in RULES:
        assert {str(rule.number), rule.when} <= set(words)
    assert [word for word in words if word in {" ".join(said) for rule in RULES for said in rule.says}] == [
        " ".join(said) for rule in RULES for said in rule.says
    ]
