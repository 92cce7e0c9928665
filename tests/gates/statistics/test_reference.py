"""Published reference cases; the file lies beside the project and is skipped where it is absent."""

import json
from pathlib import Path

import pytest

from gates.engine.statistics.reference import check

CASES = Path(__file__).parents[4] / "shared" / "reference" / "statistics_cases.json"
pytestmark = pytest.mark.skipif(not CASES.exists(), reason="no reference cases beside the project")


def test_every_published_case_is_within_its_tolerance() -> None:
    differences = [d for case in json.loads(CASES.read_text()) for d in check(case)]

    assert len(differences) >= 15
    assert [d for d in differences if not d.within] == []


def test_a_case_of_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"case x: kind == 'bayes'"):
        check({"id": "x", "kind": "bayes", "inputs": {}, "expected": {}, "tolerance": 0})
