"""A policy reads aloud what it does."""

from decisioning.board import charts, words
from decisioning.board.charts import Point, Threshold
from gates.engine.policy import DEFAULT_BODY, canonical
from gates.engine.policy_checks import parse


def aloud(body: dict[str, object], live: dict[str, object] | None = None) -> list[str]:
    said = words.sentences(canonical(parse(body)), canonical(parse(live)) if live else None)
    return [f"{s.verb} {''.join(p.text for p in s.parts)}" for s in said]


def test_the_default_policy_is_read_as_sentences() -> None:
    said = aloud(DEFAULT_BODY)

    assert said[1] == (
        "Scale when the whole interval of the goal is above 0%, for every goal, and no guard or limit is open or harmed."
    )
    assert said[2] == (
        "Delete when the whole interval of the goal is below the least effect its plan finds worthwhile, for any goal."
    )
    assert said[3].endswith("or after 28 days without an answer.")
    assert said[4].startswith(
        "Hold until 7 whole days and 1,000 units in each arm and 95% of the expected buckets are in"
    )


def test_any_goal_is_enough_to_scale_and_every_goal_has_to_fail_to_delete_where_one_of_them_is_required() -> None:
    said = aloud(DEFAULT_BODY | {"require": "any"})

    assert "is above 0%, for any goal, and" in said[1]
    assert said[2].endswith("finds worthwhile, for every goal.")


def test_a_lower_bound_on_a_metric_is_read_as_a_value_of_it_and_a_limit_of_the_whole_experiment_as_one() -> None:
    said = aloud(DEFAULT_BODY | {"gates": [
        {"name": "cap", "kind": "threshold", "metric": "error_rate", "at_most": 0.05, "scope": "experiment"},
        {"name": "density", "kind": "density", "at_least": 0.9},
        {"name": "cover", "kind": "density", "metric": "coverage", "at_least": 0.5},
    ]})  # fmt: skip

    assert said[0] == "Stop at once when error_rate of any variant, the control too, is above 0.05."
    assert said[-1] == (
        "Hold until 7 whole days and 1,000 units in each arm and 90% of the expected buckets are in and the newest closed value "
        "of coverage is at least 0.5 in every variant, while any input is older than its target, and while its rows are doubted."
    )


def test_what_a_candidate_changes_is_marked() -> None:
    said = words.sentences(canonical(parse(DEFAULT_BODY | {"min_days": 10})), canonical(parse(DEFAULT_BODY)))
    marked = [(p.kind, p.text) for s in said for p in s.parts if p.kind in ("new", "old")]

    assert marked == [("old", "7"), ("new", "10")]


def test_text_in_a_drawing_is_escaped() -> None:
    drawn = charts.interval(
        Point(0, 0.1, 0.2), [Threshold(0.05, "<script>", "scale", "right")], uid="x", title="<b>", desc="&"
    )

    assert "<script>" not in drawn
    assert "<b>" not in drawn


def test_one_point_and_equal_values_can_be_drawn() -> None:
    point = Point(0.0, 0.0, 0.0)

    assert "NaN" not in charts.sparkline([point], uid="a", title="t", desc="d")
    assert "nan" not in charts.uplift([point], days=["8 Nov"], uid="b", title="t", desc="d")
    assert "nan" not in charts.values(
        [("control", [1.0, None, 1.0])], days=["1", "2", "3"], show=str, uid="c", title="t", desc="d"
    )


def test_every_setting_and_gate_that_a_candidate_changes_is_marked() -> None:
    goal, guard, dense = DEFAULT_BODY["gates"]
    new = DEFAULT_BODY | {
        "alpha": 0.01,
        "look_s": 7200,
        "snooze_days": 3,
        "gates": [goal | {"effect": "difference", "delete_below": 0.1}, dense],
    }

    said = words.settings(canonical(parse(new)), canonical(parse(DEFAULT_BODY)))

    marked = [(p.kind, p.text) for p in said if p.kind]
    assert marked == [("old", "5%"), ("new", "1%"), ("old", "1 h"), ("new", "2 h"), ("old", "7"), ("new", "3"),
                      ("old", "relative"), ("new", "difference"), ("old", guard["name"])]  # fmt: skip
    assert not [p for p in words.settings(canonical(parse(DEFAULT_BODY))) if p.kind]
