"""The gates find in the demo's figures what each of its stories is about, whenever it is laid out."""

from datetime import UTC, datetime, timedelta

import pytest

from decisioning.agents.demo import FIGURES, STORIES, Story, history
from experiments.expected import normal
from experiments.expected import part as part_of
from gates.engine.fold import fold
from gates.engine.plan import Baseline, Kpi, Plan, Target, Variant, to_us
from gates.engine.policy import DEFAULT_BODY
from gates.engine.policy_checks import parse
from gates.engine.results import Recommendation
from gates.engine.series import Rows, Series

BY_KEY = {story.key: story for story in STORIES}
MEANT = {
    "address-autocomplete": "scale wins proposed",
    "account-before-cart": "delete harmful proposed",
    "checkout-one-page": "scale wins proposed",
    "search-typos": "delete not_worth_it proposed",
    "video-autoplay": "delete harm proposed",
    "sticky-cart-button": "review too_small proposed",
    "express-badge": "review invalid proposed",
    "carousel-v3": "hold stale open",
    "pricing-page-three-layouts": "hold open open",
    "gift-wrap": "hold collecting open",
    "loyalty-points": "hold open open",
    "checkout-time-budget": "scale on_target proposed",
    "invoice-reminder": "scale wins proposed",
    "pick-up-today": "hold open open",
}


def recommended(story: Story, now: datetime) -> Recommendation:
    hour = now.replace(minute=0, second=0)
    started_at = hour - timedelta(days=story.days)
    plan = Plan(
        started_at=to_us(started_at),
        created_at=to_us(now) - 1_000_000,
        variants=tuple(Variant(arm, 1.0, arm == "control", None, place) for place, arm in enumerate(story.arms)),
        kpis=tuple(_kpi(story, place, to_us(started_at)) for place in range(len(story.parts))),
    )
    rows = _series(story, started_at, hour, to_us(now) - 500_000)
    return (
        fold(parse(DEFAULT_BODY), plan, rows, to=to_us(now) // 300_000_000 * 300_000_000).evaluations[-1].recommendation
    )


def _kpi(story: Story, place: int, started_at: int) -> Kpi:
    part = story.parts[place]
    figure = FIGURES[part.figure]
    metric = figure.metric()
    due = [part_of(normal(metric["expected"]), since=None, around=started_at)] if figure.days else []
    return Kpi(
        metric=part.figure,
        role=part.role,
        kind=metric["kind"],
        direction=metric["direction"],
        expected_every_s=metric.get("expected_every_s", 86_400),
        expected=tuple(due),
        freshness_target_s=metric["freshness_target_s"],
        minimum_effect=part.minimum_effect,
        max_harm=part.max_harm,
        target=None if part.at_most is None else Target(at_most=part.at_most),
        baseline=None if part.at_most or part.role == "shown" else Baseline(figure.mean, figure.stddev),
    )


def _series(story: Story, started_at: datetime, until: datetime, received: int) -> Rows:
    told: dict[tuple[str, str], list[dict[str, object]]] = {}
    for row in history(story, started_at, until):
        told.setdefault((str(row["metric"]), str(row["variant"])), []).append(row)
    return {
        key: Series(
            ts=[to_us(datetime.fromisoformat(str(row["ts"]))) for row in rows],
            value=[row["value"] for row in rows],  # type: ignore[misc]
            n=[row.get("n") for row in rows],  # type: ignore[misc]
            variance=[row.get("variance") for row in rows],  # type: ignore[misc]
            first_received_at=[received] * len(rows),
        )
        for key, rows in told.items()
    }


@pytest.mark.parametrize("key", MEANT)
@pytest.mark.parametrize("now", [datetime(2026, 11, 24, 9, 20, tzinfo=UTC), datetime(2027, 3, 6, 23, 50, tzinfo=UTC)])
def test_each_story_ends_where_it_is_meant_to(key: str, now: datetime) -> None:
    found = recommended(BY_KEY[key], now)

    assert f"{found.action} {found.code} {found.state}" == MEANT[key]


def test_every_story_but_the_draft_is_judged() -> None:
    assert set(MEANT) == {story.key for story in STORIES if story.status != "draft"}
