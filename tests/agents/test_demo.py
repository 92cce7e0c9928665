"""The demo's figures and its feed, without a portal."""

import json
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from decisioning.agents.client import Portal
from decisioning.agents.demo import FIGURES, HOUR, STORIES, Story, bucket, feed, gaps, history, install, rows_to_come

NOW = datetime(2026, 11, 24, 9, 20, 41, tzinfo=UTC)
FLOOR = NOW.replace(minute=0, second=0)
BY_KEY = {story.key: story for story in STORIES}


def told(story: Story) -> list[dict[str, object]]:
    return history(story, FLOOR - timedelta(days=story.days), FLOOR)


def units(rows: list[dict[str, object]], arm: str, metric: str) -> list[tuple[datetime, int]]:
    return [
        (datetime.fromisoformat(str(row["ts"])), int(str(row["n"])))
        for row in rows
        if (row["variant"], row["metric"]) == (arm, metric)
    ]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.key)
def test_every_row_is_possible_and_every_session_counted_alike_for_all_metrics(story: Story) -> None:
    rows = [] if story.status == "draft" else told(story)
    kinds = {key: figure.metric()["kind"] for key, figure in FIGURES.items()}

    for row in rows:
        if kinds[str(row["metric"])] == "proportion":
            assert 0 <= float(str(row["value"])) <= 1
        if kinds[str(row["metric"])] == "mean":
            assert float(str(row["variance"])) > 0
    for arm in story.arms:
        counts = {tuple(units(rows, arm, part.figure)) for part in story.parts if kinds[part.figure] != "gauge"}
        assert len(counts) <= 1


def test_the_history_covers_four_weeks_with_quiet_nights_and_slower_weekends() -> None:
    sessions = units(told(BY_KEY["address-autocomplete"]), "control", "conversion")
    nights = [n for at, n in sessions if (at - HOUR).hour in (3, 4)]
    evenings = [n for at, n in sessions if (at - HOUR).hour in (19, 20)]
    saturdays = [n for at, n in sessions if (at - HOUR).weekday() == 5]
    thursdays = [n for at, n in sessions if (at - HOUR).weekday() == 3]

    assert sessions[-1][0] - sessions[0][0] > timedelta(days=26)
    assert sum(evenings) / len(evenings) > 3 * sum(nights) / len(nights)
    assert sum(saturdays) / len(saturdays) < 0.9 * sum(thursdays) / len(thursdays)


def test_revenue_is_heavy_tailed_most_sessions_buy_nothing() -> None:
    rows = [
        row
        for row in told(BY_KEY["checkout-one-page"])
        if (row["metric"], row["variant"]) == ("revenue_per_session", "control")
    ]
    count = sum(int(str(row["n"])) for row in rows)
    mean = sum(float(str(row["value"])) * int(str(row["n"])) for row in rows) / count
    variance = sum(float(str(row["variance"])) * int(str(row["n"])) for row in rows) / count

    assert mean == pytest.approx(2.9 * (5 + 2 * 0.93) / 7, rel=0.03)
    assert variance**0.5 / mean > 6


def test_the_same_bucket_is_the_same_whoever_draws_it() -> None:
    story, begin = BY_KEY["checkout-one-page"], FLOOR - timedelta(days=3)
    started_at = FLOOR - timedelta(days=story.days)
    alone = bucket(story, started_at, begin, HOUR)

    assert alone == [row for row in told(story) if row["ts"] == "2026-11-21T10:00:00Z"]


def test_a_broken_split_loses_units_from_the_eighth_day_on() -> None:
    rows = told(BY_KEY["express-badge"])
    start = FLOOR - timedelta(days=BY_KEY["express-badge"].days)
    lost = {}
    for early in (True, False):
        sums = [
            sum(n for at, n in units(rows, arm, "conversion") if (at - start <= timedelta(days=7)) is early)
            for arm in ("control", "treatment")
        ]
        lost[early] = 1 - sums[1] / sums[0]

    assert abs(lost[True]) < 0.01
    assert lost[False] == pytest.approx(0.08, abs=0.01)


def test_a_silent_feed_ends_early_and_the_bar_knows_how_long_it_is() -> None:
    rows = told(BY_KEY["carousel-v3"])

    assert max(str(row["ts"]) for row in rows) == "2026-11-24T00:00:00Z"
    assert rows_to_come(NOW) == sum(len(told(story)) for story in STORIES if story.status != "draft")


def test_a_gap_is_filled_hour_by_hour_and_the_rest_in_seconds() -> None:
    since = datetime(2026, 11, 24, 5, 30, tzinfo=UTC)
    filled = list(gaps(since, NOW))

    assert filled[0] == (since, timedelta(minutes=30))
    assert [length for _, length in filled[1:-1]] == [HOUR] * 3
    assert filled[-1] == (FLOOR, timedelta(minutes=20, seconds=41))
    assert list(gaps(NOW, NOW)) == []


class FakePortal:
    """Remembers experiments and rows; proposes what the stories expect."""

    def __init__(self) -> None:
        self.experiments: dict[str, dict[str, object]] = {}
        self.sent: dict[str, list[dict[str, object]]] = {}
        self.answers: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        parts = request.url.path.split("/")
        body = json.loads(request.content or b"{}")
        if parts[-1] == "experiments":
            return self._experiments(request.method, body)
        key = parts[3]
        if parts[-1] == key:
            return httpx.Response(200, json=self.experiments[key])
        return getattr(self, f"_{parts[-1]}")(request.method, key, body)  # type: ignore[no-any-return]

    def _experiments(self, method: str, body: dict[str, object]) -> httpx.Response:
        if method == "GET":
            running = [{"key": k} for k, e in self.experiments.items() if e["status"] == "running"]
            return httpx.Response(200, json={"results": running, "next": None})
        key = str(body["key"])
        if key in self.experiments:
            return httpx.Response(409, json={"code": "key_taken"})
        made = {"status": "running" if body["start"] else "draft", "started_at": body.get("started_at")}
        self.experiments[key] = made | {"freshness": {"data_watermark": None}}
        return httpx.Response(201, json=self.experiments[key])

    def _kpis(self, _method: str, key: str, body: dict[str, list[dict[str, object]]]) -> httpx.Response:
        self.sent.setdefault(key, []).extend(body["rows"])
        newest = max(str(row["ts"]) for row in self.sent[key])
        self.experiments[key]["freshness"] = {"data_watermark": newest}
        return httpx.Response(200, json={"accepted": len(body["rows"]), "changed": 0, "duplicates": 0})

    def _transitions(self, _method: str, key: str, body: dict[str, str]) -> httpx.Response:
        self.experiments[key]["status"] = body["to"]
        return httpx.Response(200, json=self.experiments[key])

    def _decision(self, method: str, key: str, _body: dict[str, str]) -> httpx.Response:
        if method == "POST":
            self.answers.append(key)
            self.experiments[key]["status"] = "scaled"
            return httpx.Response(201, json={})
        proposal = {"action": BY_KEY[key].answer, "state": "proposed", "evidence_digest": "sha256:1"}
        return httpx.Response(200, json={"decision": None, "recommendation": proposal})


@pytest.fixture
def fake() -> FakePortal:
    return FakePortal()


def test_installing_twice_creates_each_experiment_and_answers_each_proposal_once(fake: FakePortal) -> None:
    portal = Portal("http://portal.test", "k", transport=httpx.MockTransport(fake))
    written = [install(portal, now=NOW, sleep=lambda _s: None) for _ in range(2)]

    assert written == [rows_to_come(NOW), 0]
    assert set(fake.experiments) == set(BY_KEY)
    assert sorted(fake.answers) == ["account-before-cart", "address-autocomplete"]
    assert fake.experiments["loyalty-points"]["status"] == "paused"
    assert fake.experiments["voice-search"]["status"] == "draft"


def test_the_feed_goes_on_where_the_newest_row_ends_and_leaves_the_silent_one_alone(fake: FakePortal) -> None:
    portal = Portal("http://portal.test", "k", transport=httpx.MockTransport(fake))
    install(portal, now=NOW, sleep=lambda _s: None)
    fake.sent.clear()

    sent = feed(portal, now=NOW)
    again = feed(portal, now=NOW + timedelta(minutes=1))

    assert {"carousel-v3", "loyalty-points", "voice-search", "address-autocomplete"}.isdisjoint(fake.sent)
    assert sent == again == sum(len(rows) for rows in fake.sent.values()) / 2
    ends = {str(row["ts"]) for row in fake.sent["checkout-one-page"]}
    assert ends == {"2026-11-24T09:20:41Z", "2026-11-24T09:21:41Z"}
    assert {row["window_s"] for row in fake.sent["checkout-one-page"]} == {1_241, 60}
