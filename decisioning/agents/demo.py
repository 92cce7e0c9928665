"""A shop's product team as the demo: its experiments in every state of the board, their history, and a live feed.

Everything is drawn from a fixed seed per experiment and bucket, so that the same bucket always holds the same figures,
whoever draws it and when. All of it goes through the public API.
"""

import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from datetime import time as clock
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np

from decisioning.agents.client import Json, Portal, PortalError
from decisioning.literals import rfc3339

TEAM = "demo"
JOB = "demo/feed"
HOUR = timedelta(hours=1)
_SEED = 20_261_124
_ANSWERED_WITHIN_S = 15.0
_HOURLY: Json = {"expected_every_s": 3_600, "freshness_target_s": 3_600}


@dataclass(frozen=True)
class Days:
    """Data that comes once a day, at its end by the clocks of a zone; or only at the end of Mondays to Fridays."""

    zone: str
    weekdays_only: bool = False

    def expected(self) -> Json:
        """As a metric says it."""
        return {"every": "weekdays" if self.weekdays_only else "daily", "at": "24:00", "timezone": self.zone}

    def ended(self, after: datetime, upto: datetime) -> list[datetime]:
        """The ends of days in (after, upto], in UTC.

        >>> friday = datetime(2026, 10, 23, 12, tzinfo=UTC)
        >>> [f"{end:%a %H:%M}" for end in Days("Europe/Berlin", weekdays_only=True).ended(friday, friday + timedelta(days=5))]
        ['Fri 22:00', 'Mon 23:00', 'Tue 23:00']
        """
        there, day = ZoneInfo(self.zone), (after - timedelta(days=2)).date()
        days = [day + timedelta(days=n) for n in range((upto - after).days + 5)]
        ends = [
            datetime.combine(day + timedelta(days=1), clock(), there).astimezone(UTC)
            for day in days
            if day.weekday() < 5 or not self.weekdays_only
        ]
        return [end for end in ends if after < end <= upto]


_WEEKDAYS, _BERLIN = Days("UTC", weekdays_only=True), Days("Europe/Berlin")


@dataclass(frozen=True)
class Figure:
    """One metric of the shop and how it is distributed over sessions.

    share: a proportion of sessions.   amount: that share of sessions spends a lognormal amount, the others nothing.
    duration: a lognormal figure of every session.   level: one reading an hour, without units.
    days: when it comes, where not every hour.
    """

    key: str
    name: str
    unit: str
    draws: Literal["share", "amount", "duration", "level"]
    mean: float
    spread: float = 0.0
    share: float = 0.0
    better: Literal["increase", "decrease"] = "increase"
    definition: str = ""
    days: Days | None = None

    def metric(self) -> Json:
        """The metric as `POST /api/experiments` takes it."""
        kind = {"share": "proportion", "level": "gauge"}.get(self.draws, "mean")
        return {
            "key": self.key,
            "name": self.name,
            "kind": kind,
            "unit": self.unit,
            "direction": self.better,
            "temporality": "delta",
            **({"expected": self.days.expected(), "freshness_target_s": 21_600} if self.days else _HOURLY),
        }

    @property
    def stddev(self) -> float:
        """Of one session."""
        if self.draws == "share":
            return math.sqrt(self.mean * (1 - self.mean))
        if self.draws == "amount":  # second moment of a zero-inflated lognormal
            order = self.mean / self.share
            return math.sqrt(self.share * order**2 * math.exp(self.spread**2) - self.mean**2)
        return self.spread


FIGURES = {
    figure.key: figure
    for figure in (
        Figure("revenue_per_session", "Revenue per session (vRPS)", "usd", "amount", 2.9, spread=0.9, share=0.034),
        Figure("conversion", "Sessions with an order", "share", "share", 0.034),
        Figure("add_to_cart", "Sessions that add to the cart", "share", "share", 0.31),
        Figure("search_success", "Searches that lead to a product", "share", "share", 0.62),
        Figure("signup", "Sessions that sign up", "share", "share", 0.12),
        Figure("session_errors", "Sessions that meet an error", "share", "share", 0.011, better="decrease"),
        Figure("page_load_ms", "Page load time", "ms", "duration", 1_180.0, spread=620.0, better="decrease"),
        Figure("support_contacts", "Sessions that contact support", "share", "share", 0.022, better="decrease"),
        Figure(
            "checkout_p75_ms", "Checkout time, 75th percentile", "ms", "level", 1_240.0, spread=28.0, better="decrease"
        ),
        Figure("invoices_paid", "Invoices paid within the week", "share", "share", 0.41, days=_WEEKDAYS),
        Figure(
            "billing_contacts",
            "Customers who call about a bill",
            "share",
            "share",
            0.03,
            better="decrease",
            days=_WEEKDAYS,
        ),
        Figure("pickups_booked", "Orders picked up in a store", "share", "share", 0.08, days=_BERLIN),
    )
}


@dataclass(frozen=True)
class Part:
    """What a metric is to an experiment. `effects`: true relative change per treatment, in their order."""

    figure: str
    role: Literal["goal", "guardrail", "shown"] = "goal"
    effects: Sequence[float] = (0.0,)
    minimum_effect: float = 0.02
    max_harm: float = 0.05
    at_most: float | None = None

    def kpi(self) -> Json:
        """The target KPI as the API takes it."""
        figure = FIGURES[self.figure]
        told: Json = {"metric": figure.metric(), "role": self.role}
        if self.at_most is not None:
            return told | {"target": {"at_most": self.at_most}}
        if self.role == "goal":
            told |= {"minimum_effect": self.minimum_effect}
        if self.role == "guardrail":
            told |= {"max_harm": self.max_harm}
        if self.role != "shown":
            told |= {"baseline": {"mean": figure.mean, "stddev": round(figure.stddev, 6)}}
        return told


@dataclass(frozen=True)
class Story:
    """One experiment of the demo, with the truth that its figures are drawn from.

    hourly: sessions per variant and hour on an average hour.   silent_h: the feed stopped that long ago.
    leak: share of the treatment's sessions lost from the eighth day on.   answer: accepted once the gates propose it.
    """

    key: str
    name: str
    hypothesis: str
    owner: str
    days: int
    parts: Sequence[Part]
    hourly: float = 1_000.0
    treatments: Sequence[str] = ("treatment",)
    silent_h: int = 0
    leak: float = 0.0
    status: Literal["running", "paused", "draft"] = "running"
    answer: Literal["", "scale", "delete"] = ""

    @property
    def days_of(self) -> Days | None:
        """When its data comes, where not every hour; of all its parts alike."""
        return FIGURES[self.parts[0].figure].days

    @property
    def arms(self) -> list[str]:
        return ["control", *self.treatments] if self.treatments else ["all"]

    def creation(self, started_at: datetime) -> Json:
        """The body of `POST /api/experiments`."""
        body: Json = {
            "key": self.key,
            "name": self.name,
            "hypothesis": self.hypothesis,
            "owner": self.owner,
            "team": TEAM,
            "target_kpis": [part.kpi() for part in self.parts],
            "expected_units_per_day": round(self.hourly * 24 * len(self.arms)),
            "start": self.status != "draft",
        }
        if self.treatments:
            body["variants"] = [{"key": arm, "weight": 1, "control": arm == "control"} for arm in self.arms]
        return body if self.status == "draft" else body | {"started_at": rfc3339(started_at)}


_SPEED = Part("page_load_ms", "guardrail", max_harm=0.03)
_ERRORS = Part("session_errors", "guardrail", max_harm=0.2)

STORIES: Sequence[Story] = (
    Story(
        "address-autocomplete",
        "Address autocomplete at checkout",
        "Typing an address is where shoppers on phones give up. Completing it for them brings more orders through.",
        "mara@shop.example",
        27,
        (Part("conversion", effects=(0.085,)), _SPEED, _ERRORS),
        hourly=1_500,
        answer="scale",
    ),
    Story(
        "account-before-cart",
        "Ask for an account before the cart",
        "Shoppers who have an account come back, so asking early should pay even if a few leave.",
        "jonas@shop.example",
        19,
        (Part("add_to_cart", effects=(-0.06,)), Part("signup", "shown", effects=(0.3,)), _SPEED),
        answer="delete",
    ),
    Story(
        "checkout-one-page",
        "One-page checkout",
        "Three steps in one page: fewer places to leave, more revenue from the same sessions.",
        "mara@shop.example",
        24,
        (
            Part("revenue_per_session", effects=(0.12,)),
            Part("conversion", "shown", effects=(0.1,)),
            _SPEED,
            _ERRORS,
        ),
        hourly=1_800,
    ),
    Story(
        "search-typos",
        "Search that forgives typos",
        "One search in eight holds a typo. Forgiving it should lead more searches to a product.",
        "lin@shop.example",
        21,
        (Part("search_success", minimum_effect=0.01), _SPEED),
    ),
    Story(
        "video-autoplay",
        "Product videos start by themselves",
        "Moving pictures sell clothes better than still ones, if the page stays fast.",
        "jonas@shop.example",
        6,
        (Part("revenue_per_session", effects=(0.01,)), Part("page_load_ms", "guardrail", (0.14,), max_harm=0.03)),
    ),
    Story(
        "sticky-cart-button",
        "Add-to-cart button that stays in view",
        "On long product pages the button scrolls away. Keeping it in view should add more to carts.",
        "lin@shop.example",
        23,
        (Part("add_to_cart", effects=(0.018,), minimum_effect=0.04), _SPEED),
        hourly=2_000,
    ),
    Story(
        "express-badge",
        "Express shipping badge in the list",
        "Seeing 'tomorrow' already in the list should bring more orders.",
        "ade@shop.example",
        15,
        (Part("conversion", effects=(0.03,)), _ERRORS),
        leak=0.08,
    ),
    Story(
        "carousel-v3",
        "Recommendations, third model",
        "The new model knows what goes together, so the same sessions should bring more revenue.",
        "ade@shop.example",
        16,
        (Part("revenue_per_session", effects=(0.03,)), Part("add_to_cart", "shown", effects=(0.008,)), _SPEED),
        silent_h=9,
    ),
    Story(
        "pricing-page-three-layouts",
        "Pricing page: the comparison table against plan cards with a recommended plan in the middle, and against one plan "
        "at a time with a switch between monthly and yearly payment",
        "People compare plans in the table and then do nothing. Leading them to one plan should bring more sign-ups.",
        "noor@shop.example",
        11,
        (Part("signup", effects=(0.006, 0.001)), Part("support_contacts", "guardrail", (0.0, 0.0), max_harm=0.1)),
        hourly=700,
        treatments=("plan-cards", "one-plan"),
    ),
    Story(
        "gift-wrap",
        "Gift wrap offered in the cart",
        "From November on every fourth order is a present. Offering wrap raises revenue per session.",
        "noor@shop.example",
        3,
        (Part("revenue_per_session", effects=(0.04,)), Part("support_contacts", "guardrail", max_harm=0.1)),
    ),
    Story(
        "loyalty-points",
        "Loyalty points in the header",
        "Seeing one's points on every page is a reason to come back and to sign up. Paused while the points service moves.",
        "mara@shop.example",
        12,
        (Part("signup", effects=(0.008,), minimum_effect=0.005), _SPEED),
        hourly=500,
        status="paused",
    ),
    Story(
        "checkout-time-budget",
        "Checkout stays under 1.3 seconds",
        "No variants here: the payment team promised that three of four checkouts take at most 1.3 seconds.",
        "noor@shop.example",
        13,
        (Part("checkout_p75_ms", at_most=1_300.0),),
        treatments=(),
    ),
    Story(
        "invoice-reminder",
        "A reminder before an invoice is due",
        "Half of those who pay late forgot. The ledger is exported on working days, so figures come Monday to Friday.",
        "ade@shop.example",
        26,
        (Part("invoices_paid", effects=(0.05,)), Part("billing_contacts", "guardrail", max_harm=0.3)),
    ),
    Story(
        "pick-up-today",
        "Pick it up in a store today",
        "Offering the nearest store should bring more pickups. The stores close their books at midnight in Berlin.",
        "lin@shop.example",
        12,
        (Part("pickups_booked", effects=(0.02,), minimum_effect=0.03),),
        hourly=250,
    ),
    Story(
        "voice-search",
        "Search by voice in the app",
        "Speaking is faster than typing on a phone, so more searches should lead to a product.",
        "lin@shop.example",
        0,
        (Part("search_success", minimum_effect=0.01), _ERRORS),
        status="draft",
    ),
)


# Figures -----------------------------------------------------------------------------------------------------


def history(story: Story, started_at: datetime, until: datetime) -> list[Json]:
    """Hourly rows from the start up to `until`, at most to where the story's feed fell silent."""
    end = until - story.silent_h * HOUR
    hours = int((end - started_at) / HOUR)
    return [row for hour in range(hours) for row in bucket(story, started_at, started_at + hour * HOUR, HOUR)]


def bucket(story: Story, started_at: datetime, begin: datetime, length: timedelta) -> list[Json]:
    """The rows of one bucket, of every metric and variant; the same for the same bucket, always."""
    end = begin + length
    if story.days_of is not None:
        return [row for day in story.days_of.ended(begin, end) for row in _whole_day(story, day)]
    random = _random(story, end)
    weekend = begin.weekday() >= 5
    rows: list[Json] = []
    for place, arm in enumerate(story.arms):
        leaks = place > 0 and story.leak and end - started_at > timedelta(days=7)
        expected = story.hourly * _rhythm(begin) * (length / HOUR) * (1 - story.leak if leaks else 1)
        sessions = int(random.poisson(expected))
        for part in story.parts:
            effect = part.effects[min(place, len(part.effects)) - 1] if place else 0.0
            drawn = _draw(FIGURES[part.figure], sessions, effect, random, weekend=weekend)
            if drawn:
                row = {"metric": part.figure, "variant": arm, "ts": rfc3339(end), **drawn}
                rows.append(row if length == HOUR else row | {"window_s": max(round(length.total_seconds()), 1)})
    return rows


def _whole_day(story: Story, end: datetime) -> list[Json]:
    """The rows of a day, of every metric and variant."""
    random = _random(story, end)
    rows: list[Json] = []
    for place, arm in enumerate(story.arms):
        sessions = int(random.poisson(story.hourly * 24))
        for part in story.parts:
            effect = part.effects[min(place, len(part.effects)) - 1] if place else 0.0
            drawn = _draw(FIGURES[part.figure], sessions, effect, random, weekend=False)
            if drawn:
                rows.append({"metric": part.figure, "variant": arm, "ts": rfc3339(end), **drawn})
    return rows


def _random(story: Story, end: datetime) -> np.random.Generator:
    return np.random.default_rng([_SEED, zlib.crc32(story.key.encode()), int(end.timestamp())])


def _rhythm(at: datetime) -> float:
    """Sessions in this hour against the average hour: quiet nights, busy evenings, a slower weekend."""
    daily = 1 + 0.6 * math.cos((at.hour - 18) / 24 * 2 * math.pi) + 0.2 * math.cos((at.hour - 21) / 12 * 2 * math.pi)
    weekly = (1.04, 1.03, 1.02, 1.05, 1.0, 0.88, 0.98)[at.weekday()]
    return daily * weekly


def _draw(
    figure: Figure, sessions: int, effect: float, random: np.random.Generator, *, weekend: bool
) -> dict[str, float] | None:
    """Value, n and variance over so many sessions; None when there was none."""
    if figure.draws == "level":
        return {"value": round(float(random.normal(figure.mean * (1 + effect), figure.spread)), 2)}
    if not sessions:
        return None
    if figure.draws == "share":
        chance = figure.mean * (1 + effect) * (0.96 if weekend else 1.0)
        return {"value": int(random.binomial(sessions, chance)) / sessions, "n": sessions}
    if figure.draws == "duration":
        mean, spread = figure.mean * (1 + effect), figure.spread * (1 + effect)
        variance = spread**2 * float(random.chisquare(max(sessions - 1, 1))) / max(sessions - 1, 1)
        value = float(random.normal(mean, spread / math.sqrt(sessions)))
        return {"value": round(value, 3), "n": sessions, "variance": round(variance, 3)}
    orders = int(random.binomial(sessions, figure.share * (0.93 if weekend else 1.0)))
    typical = figure.mean * (1 + effect) / figure.share / math.exp(figure.spread**2 / 2)
    amounts = random.lognormal(math.log(typical), figure.spread, orders)
    value = float(amounts.sum()) / sessions
    variance = max(float((amounts**2).sum()) - sessions * value**2, 0.0) / max(sessions - 1, 1)
    return {"value": round(value, 6), "n": sessions, "variance": round(variance, 4)}


# Into the portal ---------------------------------------------------------------------------------------------


def install(
    portal: Portal,
    *,
    now: datetime,
    stories: Sequence[Story] = STORIES,
    told: Callable[[str, int], None] = lambda _story, _rows: None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Lay out the stories that are not there yet; returns how many rows went in. `told` hears of each story's rows.

    An interrupted installation is finished by the next: what is there stays, rows that are there are duplicates.
    """
    hour = now.replace(minute=0, second=0, microsecond=0)
    written = 0
    for story in stories:
        try:
            document = portal.create_experiment(story.creation(hour - timedelta(days=story.days)))
        except PortalError as refusal:
            if refusal.code != "key_taken":
                raise
            document = portal.experiment(story.key)
        rows: list[Json] = []
        if story.status != "draft" and document["status"] == "running":
            if document["freshness"]["data_watermark"] is None:  # a story's rows come all at once
                rows = history(story, datetime.fromisoformat(document["started_at"]), hour)
                written += portal.push(story.key, rows).accepted
            if story.status == "paused":
                portal.transition(story.key, "paused")
        told(story.key, len(rows))
    for story in stories:
        if story.answer:
            _accept(portal, story, sleep)
    return written


def rows_to_come(now: datetime, stories: Sequence[Story] = STORIES) -> int:
    """How many rows `install` sends: the length of a progress bar."""
    hour = now.replace(minute=0, second=0, microsecond=0)

    def buckets(story: Story) -> int:
        if story.days_of is not None:
            return len(story.days_of.ended(hour - timedelta(days=story.days), hour))
        return story.days * 24 - story.silent_h

    return sum(buckets(story) * len(story.arms) * len(story.parts) for story in stories if story.status != "draft")


def _accept(portal: Portal, story: Story, sleep: Callable[[float], None]) -> None:
    """Answer the proposal that the story is about, as somebody of the team would have. Without one it stays open."""
    if portal.experiment(story.key)["status"] != "running":
        return
    for _ in range(int(_ANSWERED_WITHIN_S / 0.5)):
        recommendation = portal.decision(story.key)["recommendation"]
        if recommendation["action"] == story.answer and recommendation["state"] == "proposed":
            try:
                portal.answer(story.key, recommendation["evidence_digest"])
            except PortalError as refusal:
                if refusal.code != "recommendation_replaced":
                    raise
            else:
                return
        sleep(0.5)


def feed(portal: Portal, *, now: datetime, stories: Sequence[Story] = STORIES) -> int:
    """Send what the running experiments have measured since their newest row; returns how many rows.

    After a stop the gap is filled hour by hour, so that nothing is missing. A story whose feed fell silent stays so.
    """
    running = {row["key"] for row in portal.experiments(team=TEAM, status="running")}
    sent = 0
    for story in stories:
        if story.key not in running or story.silent_h:
            continue
        document = portal.experiment(story.key)
        started_at = datetime.fromisoformat(document["started_at"])
        watermark = document["freshness"]["data_watermark"]
        since = datetime.fromisoformat(watermark) if watermark else started_at
        rows = [row for begin, length in gaps(since, now) for row in bucket(story, started_at, begin, length)]
        if rows:
            portal.push(story.key, rows)
            sent += len(rows)
    return sent


def gaps(since: datetime, until: datetime) -> Iterator[tuple[datetime, timedelta]]:
    """Buckets from `since` to `until`: whole hours by the clock where they fit, what is left at both ends, in seconds.

    >>> at = datetime.fromisoformat("2026-11-24T06:58:00Z")
    >>> [(f"{begin:%H:%M}", str(length)) for begin, length in gaps(at, at + timedelta(minutes=63))]
    [('06:58', '0:02:00'), ('07:00', '1:00:00'), ('08:00', '0:01:00')]
    """
    begin, until = since, until.replace(microsecond=0)
    while begin < until:
        full = begin.replace(minute=0, second=0, microsecond=0) + HOUR
        end = min(full, until)
        yield begin, end - begin
        begin = end
