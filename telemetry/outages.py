"""Planned outages of a team's feeds: what is due in one is not expected, what comes all the same counts. The only writer of them."""

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from decisioning.access.models import Team
from decisioning.refusals import Fault, Refused
from experiments.models import Metric
from telemetry.models import Outage, Source

LONGEST = dt.timedelta(days=366)
MOST_AHEAD = dt.timedelta(days=2 * 366)
MOST_FEEDS = 200


class OutageRefused(Refused):
    """Nothing was planned or changed."""


@dataclass(frozen=True, kw_only=True)
class NewOutage:
    """A stretch of time, both ends included, and the feeds that are not expected in it: metrics, or all that sources feed."""

    begins_at: dt.datetime
    ends_at: dt.datetime
    reason: str
    metrics: Sequence[str] = field(default=())
    sources: Sequence[str] = field(default=())


def plan(new: NewOutage, *, team: Team, now: dt.datetime) -> Outage:
    """Write one down; one that is over may be entered as well. Raises OutageRefused."""
    _refuse(new, team, now)
    return Outage.objects.create(
        team=team, begins_at=new.begins_at, ends_at=new.ends_at, reason=new.reason.strip(),
        metrics=sorted(set(new.metrics)), sources=sorted(set(new.sources)), created_at=now,
    )  # fmt: skip


def change(outage: Outage, changes: Mapping[str, object], *, now: dt.datetime) -> Outage:
    """Change what was given: begins_at, ends_at, reason, metrics, sources. Raises OutageRefused."""
    names = ("begins_at", "ends_at", "reason", "metrics", "sources")
    before = NewOutage(**{name: getattr(outage, name) for name in names})
    after = replace(before, **changes)  # type: ignore[arg-type] # the door has parsed them
    _refuse(after, outage.team, now)
    for name in changes:
        value = getattr(after, name)
        setattr(outage, name, sorted(set(value)) if name in ("metrics", "sources") else value)
    outage.save(update_fields=list(changes))
    return outage


def check(outage: Outage, *, now: dt.datetime) -> None:
    """Whether it could be planned like this. Raises OutageRefused."""
    names = ("begins_at", "ends_at", "reason", "metrics", "sources")
    _refuse(NewOutage(**{name: getattr(outage, name) for name in names}), outage.team, now)


def take_back(outage: Outage) -> None:
    """As if it had never been planned."""
    outage.delete()


def _refuse(new: NewOutage, team: Team, now: dt.datetime) -> None:
    if faults := list(_faults(new, team, now)):
        raise OutageRefused.of(*faults)


def _faults(new: NewOutage, team: Team, now: dt.datetime) -> Iterator[Fault]:
    begins, ends = (at.isoformat().replace("+00:00", "Z") for at in (new.begins_at, new.ends_at))
    if new.ends_at <= new.begins_at:
        yield Fault(
            "/to", "window_order", f"The outage ends at {ends}, not after it begins ({begins}). Give a later end."
        )
    elif new.ends_at - new.begins_at > LONGEST:
        yield Fault(
            "/to",
            "invalid",
            f"The outage lasts longer than {LONGEST.days} days. End it earlier, or change the schedule.",
        )
    if new.begins_at > now + MOST_AHEAD:
        yield Fault("/from", "timestamp_in_future", f"{begins} is more than two years ahead. Plan it later.")
    if not new.reason.strip():
        yield Fault("/reason", "missing_field", "reason is empty. Say why nothing comes.")
    elif len(new.reason) > 500:
        yield Fault("/reason", "invalid_text", f"reason has {len(new.reason)} characters, at most 500 fit.")
    if not new.metrics and not new.sources:
        yield Fault("/metrics", "missing_field", "An outage is of metrics or of sources. Name one at least.")
    if len(new.metrics) + len(new.sources) > MOST_FEEDS:
        yield Fault(
            "/metrics",
            "invalid",
            f"{len(new.metrics) + len(new.sources)} feeds are more than {MOST_FEEDS}. Make two outages.",
        )
        return
    known = set(Metric.objects.filter(key__in=new.metrics).values_list("key", flat=True))
    bound = set(Source.objects.filter(team=team, key__in=new.sources).values_list("key", flat=True))
    for position, key in enumerate(new.metrics):
        if key not in known:
            yield Fault(f"/metrics/{position}", "unknown_metric", f"There is no metric {key!r}. Correct its key.")
    for position, key in enumerate(new.sources):
        if key not in bound:
            yield Fault(f"/sources/{position}", "unknown_source", f"The team has no source {key!r}. Correct its key.")


# What is read of them -----------------------------------------------------------------------------------------------------


def windows(teams: Collection[int], *, since: dt.datetime) -> dict[tuple[int, str], list[Outage]]:
    """By team and metric: the outages that end after an instant, in the order of their beginning."""
    found: dict[tuple[int, str], list[Outage]] = defaultdict(list)
    planned = list(Outage.objects.filter(team__in=teams, ends_at__gt=since).order_by("begins_at", "pk"))
    feeds: dict[tuple[int, str], Sequence[str]] = {}
    if any(outage.sources for outage in planned):
        sources = Source.objects.filter(team__in=teams, key__in={key for outage in planned for key in outage.sources})
        feeds = {(source.team_id, source.key): source.metrics for source in sources}
    for outage in planned:
        fed = (feeds.get((outage.team_id, key), ()) for key in outage.sources)
        for metric in {*outage.metrics, *(metric for metrics in fed for metric in metrics)}:
            found[outage.team_id, metric].append(outage)
    return dict(found)
