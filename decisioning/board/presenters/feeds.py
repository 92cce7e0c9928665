"""The freshness page: feeds, the worst first, each with its calendar; a feed is a source and all it feeds, or a metric that none feeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import QuerySet
from django.http import QueryDict
from django.urls import reverse

from decisioning.access.models import Team
from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope
from decisioning.board import words
from decisioning.board.presenters import alarms, outages, strips
from decisioning.board.presenters.frame import query
from decisioning.board.presenters.freshness import Age, ages, table
from decisioning.board.presenters.records import FRESHNESS, present_runs
from decisioning.ledger import snoozing
from decisioning.ledger.models import Alarm
from decisioning.literals import whole_number
from experiments.expected import in_words
from experiments.feeds import expected_of
from experiments.models import Metric
from gates.models import Cursor
from telemetry.breaches import EVENT
from telemetry.feeds import Proposal
from telemetry.models import Outage, RefreshRun, Source
from telemetry.outages import windows

PAGE = 12
KPIS, ALL_KPIS = 6, 200
STRIPS = 4
STATES = {"late": "Late", "never": "Never sent", "fine": "In time"}
_LATE = ("late", "stale")


@dataclass
class Feed:
    """KPIs of one team that come together, the worst first."""

    team: int
    source: str | None
    ages: list[Age] = field(default_factory=list)

    @property
    def subject(self) -> str:
        """As its alarm names it."""
        return f"source {self.source}" if self.source else f"metric {self.ages[0].metric}"

    @property
    def name(self) -> str:
        return self.source or self.ages[0].name

    @property
    def worst(self) -> Age:
        return self.ages[0]

    @property
    def sent(self) -> list[Age]:
        return [age for age in self.ages if age.state != "unknown"]

    @property
    def state(self) -> str:
        """A word of STATES: `never` of one that never had a row, `late` of one with a KPI that is."""
        if not self.sent:
            return "never"
        return "late" if any(age.state in _LATE for age in self.ages) else "fine"

    @property
    def badness(self) -> tuple[float, ...]:
        """Late before in time, the later the worse; among those that never sent, what is overdue first."""
        sent = max((age.badness for age in self.sent), default=(0, 0.0))
        return (self.state == "late", *sent, any(age.overdue for age in self.ages), len(self.ages))


def page(principal: Principal, params: QueryDict, *, now: datetime) -> dict[str, Any]:
    every = _feeds(ages(None, now=now))
    asked, state = params.get("q", "").strip(), params.get("state", "") if params.get("state", "") in STATES else ""
    matching = [feed for feed in every if _matches(feed, asked.lower())]
    chosen = [feed for feed in matching if not state or feed.state == state]
    at = max((whole_number(params.get("page", ""), most=9_999) or 1) - 1, 0)
    shown = chosen[at * PAGE : (at + 1) * PAGE]
    behind = [feed for feed in every if feed.state == "late"]
    never = [feed for feed in every if feed.state == "never"]
    kept = {state: sum(feed.state == state for feed in matching) for state in STATES}
    return {
        "title": _title(every, behind, never),
        "lead": _lead(behind, any_found=bool(every)),
        "q": asked,
        "state": state,
        "views": [
            {"label": f"{label} {count}", "url": query(params, state=value, page=None), "here": value == state}
            for value, label, count in (("", "All", len(matching)), *((s, STATES[s], kept[s]) for s in STATES))
        ],
        **_shown(shown, principal, whole=len(chosen) == 1, now=now),
        "pages": {
            "note": f"{at * PAGE + 1} to {min((at + 1) * PAGE, len(chosen))} of {len(chosen)} feeds",
            "newer": f"{query(params, page=at if at > 1 else None)}#list" if at else "",
            "older": f"{query(params, page=at + 2)}#list" if (at + 1) * PAGE < len(chosen) else "",
            "numbered": True,
        }
        if len(chosen) > PAGE
        else None,
        **_failures(now),
        "empty": _empty(any_found=bool(every)),
    }


def _feeds(found: Sequence[Age]) -> list[Feed]:
    """The worst first; those that never sent anything after those that are late."""
    feeding: dict[tuple[int, str], str] = {}
    teams = {age.team_id for age in found}
    for team, key, metrics in (
        Source.objects.filter(team__in=teams).order_by("-key").values_list("team_id", "key", "metrics")
    ):
        feeding.update({(team, metric): key for metric in metrics})
    feeds: dict[tuple[int, str], Feed] = {}
    for age in sorted(found, key=lambda age: age.badness, reverse=True):
        source = feeding.get((age.team_id, age.metric))
        feed = feeds.setdefault(
            (age.team_id, f"s {source}" if source else f"m {age.metric}"), Feed(age.team_id, source)
        )
        feed.ages.append(age)
    return sorted(feeds.values(), key=lambda feed: (feed.badness, feed.state == "never"), reverse=True)


def _matches(feed: Feed, asked: str) -> bool:
    """Whether every word is in the name of the feed, of one of its metrics or of one of its experiments."""
    texts = [
        feed.source or "",
        *(text for a in feed.ages for text in (a.metric, a.name, a.experiment_key, a.experiment_name)),
    ]
    return all(any(word in text.lower() for text in texts) for word in asked.split())


def _title(every: Sequence[Feed], behind: Sequence[Feed], never: Sequence[Feed]) -> str:
    if not every:
        return "No KPI is tracked yet"
    said = (
        f"{len(behind)} of {words.plural(len(every), 'feed')} {'is' if len(behind) == 1 else 'are'} late"
        if behind
        else ""
    )
    silent = f"{len(never)} never sent anything" if never else ""
    return ", ".join(filter(None, (said, silent))) or "Every feed is in time"


def _lead(behind: Sequence[Feed], *, any_found: bool) -> str:
    late = [age for feed in behind for age in feed.ages if age.state in _LATE]
    read = _read(late)
    names = sorted({age.experiment_name for age in late if (age.experiment_id, age.metric) in read})
    if not names:
        return (
            ("Nothing waits for what is late: it is shown only." if late else "Nothing waits for data.")
            if any_found
            else "Age is counted from the first row on."
        )
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{listed} cannot be judged on what is late, until it is back."


def _read(late: Sequence[Age]) -> set[tuple[int, str]]:
    """Those that a gate reads: what is only shown holds up nothing."""
    shown = {age.experiment_id for age in late if age.role == "shown"}
    gates = {
        (pk, gate.get("metric"))
        for pk, told in Cursor.objects.filter(pk__in=shown).values_list("pk", "shown")
        for gate in (told or {}).get("gates") or ()
    }
    return {(a.experiment_id, a.metric) for a in late if a.role != "shown" or (a.experiment_id, a.metric) in gates}


def _empty(*, any_found: bool) -> dict[str, str]:
    if any_found:
        text = "No feed, metric or experiment of that name is in this state."
        return {
            "icon": "search",
            "title": "No feed matches",
            "text": text,
            "url": reverse("freshness"),
            "label": "Show every feed",
        }
    text = "As soon as an experiment runs, what feeds its KPIs is listed here with what is due and what came."
    return {
        "icon": "clock",
        "title": "Nothing is tracked yet",
        "text": text,
        "url": reverse("board"),
        "label": "To the board",
    }


# One feed ---------------------------------------------------------------------------------------------------------------


def _shown(feeds: Sequence[Feed], principal: Principal, *, whole: bool, now: datetime) -> dict[str, Any]:
    """The feeds of a page; whole: it is one alone, with all its KPIs."""
    most = ALL_KPIS if whole else KPIS
    lines = [age for feed in feeds for age in _drawn(feed)]
    dues = dict(zip([(a.experiment_id, a.metric) for a in lines], strips.dues(lines, now=now), strict=True))
    kpis = table([age for feed in feeds for age in feed.ages[:most]], now=now)
    teams = dict(Team.objects.filter(pk__in={feed.team for feed in feeds}).values_list("pk", "name"))
    keys = {age.metric for feed in feeds for age in feed.ages}
    said = {
        m.key: in_words(expected_of(m, now=now))
        for m in Metric.objects.filter(key__in=keys).prefetch_related("schedules")
    }
    told = {(a.team_id, a.subject): a for a in snoozing.told().filter(type=EVENT, ended_at__isnull=True)}
    away = windows({feed.team for feed in feeds}, since=now)
    shown = []
    for i, feed in enumerate(feeds):
        mine, kpis = kpis[: len(feed.ages[:most])], kpis[len(feed.ages[:most]) :]
        shown.append(
            _feed(feed, principal, i, now, dues=dues, kpis=mine, team=teams.get(feed.team, ""), said=said,
                  alarm=told.get((feed.team, feed.subject)), away=_away(feed, away))
        )  # fmt: skip
    return {"feeds": shown, "legend": strips.legend(list(dues.values()))}


def _drawn(feed: Feed) -> list[Age]:
    """Of each metric the KPI that is worst off of those that ever had a row; of a feed with many the worst few."""
    each: dict[str, Age] = {}
    for age in [*feed.sent, *feed.ages]:
        each.setdefault(age.metric, age)
    return list(each.values())[:STRIPS]


def _away(feed: Feed, planned: Mapping[tuple[int, str], Sequence[Outage]]) -> Outage | None:
    found = [o for metric in {age.metric for age in feed.ages} for o in planned.get((feed.team, metric), ())]
    return min(found, key=lambda outage: outage.begins_at, default=None)


def _feed(
    feed: Feed,
    principal: Principal,
    i: int,
    now: datetime,
    *,
    dues: Mapping[tuple[int, str], Sequence[strips.Due]],
    kpis: Sequence[Mapping[str, Any]],
    team: str,
    said: Mapping[str, str],
    alarm: Alarm | None,
    away: Outage | None,
) -> dict[str, Any]:
    drawn = _drawn(feed)
    metrics = {age.metric for age in feed.ages}
    waiting = {age.experiment_key for age in feed.ages if age.role != "shown"}
    may_plan = principal.may(Scope.TELEMETRY, feed.team)
    of = f"source={feed.source}" if feed.source else f"metric={feed.worst.metric}"
    silent = [age for age in feed.ages if age.state == "unknown"]
    return {
        "id": f"feed-{i}",
        "name": feed.name,
        "what": f"source of {team}" if feed.source else f"{feed.worst.metric}, sent to {team}",
        "pill": _pill(feed),
        "facts": _facts(feed, len(waiting), now),
        "silent": ""
        if feed.state == "never" or not silent
        else f"{words.plural(len(silent), 'KPI')} of it never had a row: {', '.join(sorted({a.experiment_name for a in silent})[:3])}.",
        "strips": [
            {"name": age.name, "said": said.get(age.metric, ""), "experiment": age.experiment_name,
             "several": len({a.experiment_id for a in feed.ages if a.metric == age.metric}) > 1,
             **strips.strip(age.name, dues[age.experiment_id, age.metric], uid=f"d{i}-{j}", now=now)}
            for j, age in enumerate(drawn)
        ],
        "others": len(metrics) - len(drawn),
        "alarm": {"url": reverse("alarm", args=[alarm.pk]),
                  "text": alarms.snoozed(alarm, now) or (f"{alarm.acknowledged_by} deals with it." if alarm.acknowledged_at else f"Told {words.instant(alarm.told_at, now)}; snooze or acknowledge it."),
                  "icon": "clock" if alarm.is_snoozed(now) else "user" if alarm.acknowledged_at else "late"}
        if alarm else None,
        "away": f"Planned outage {outages.said(away, now)}" if away else "",
        "schedules": [{"key": age.metric, "name": age.name, "url": reverse("schedule", args=[age.metric])} for age in drawn],
        "ask": feed.state == "late",
        "kpis": kpis,
        "kpis_note": f"{words.plural(len(feed.ages), 'KPI')} of {words.plural(len({a.experiment_id for a in feed.ages}), 'experiment')}",
        "all_url": f"{reverse('freshness')}?q={feed.source or feed.worst.metric}" if len(feed.ages) > len(kpis) else "",
        "plan_url": f"{reverse('outages')}?{of}#new" if may_plan else "",
    }  # fmt: skip


def _pill(feed: Feed) -> dict[str, Any]:
    if feed.state == "never":
        overdue = any(age.overdue for age in feed.ages)
        return words.pill("unknown" if overdue else "hold", "Never sent" if overdue else "Awaits its first row")
    worst = max(feed.sent, key=lambda age: age.badness).state
    return words.pill(worst, FRESHNESS[worst].capitalize())


def _facts(feed: Feed, waiting: int, now: datetime) -> list[dict[str, str]]:
    worst = max(feed.sent, key=lambda age: age.badness) if feed.sent else feed.worst
    facts = [("Newest row", words.instant(worst.watermark, now))]
    if worst.due_at:
        facts.append(("Due", words.instant(worst.due_at, now)))
    if worst.stale_at:
        facts.append(("Stale" if worst.watermark else "First row missing", words.instant(worst.stale_at, now)))
    facts.append(("Waits for it", words.plural(waiting, "experiment") if waiting else "nothing: it is shown only"))
    return [{"label": label, "text": text} for label, text in facts]


def _failures(now: datetime) -> dict[str, Any]:
    """What failed lately; the portal's own jobs work for every team at once, so they are counted apart from the runs of the person's teams."""
    ran = RefreshRun.objects.filter(finished_at__gte=now - timedelta(days=1))
    failed: QuerySet[RefreshRun] = ran.filter(status__in=("failed", "aborted"))
    theirs, ours = (
        f"{failed.filter(team__isnull=portal).count():,} of {words.plural(ran.filter(team__isnull=portal).count(), 'run')}"
        for portal in (False, True)
    )
    note = f"{theirs} of your teams' sources failed, and {ours} of the portal's own jobs, which work for all teams."
    return {"failures": present_runs(list(failed.order_by("-id")[:20]), now=now), "failures_note": note}


# A schedule that rows show ----------------------------------------------------------------------------------------------


def may_schedule(principal: Principal, metric: Metric) -> bool:
    """Whether the person may take another schedule: in the metric's own team, or as an admin of the portal."""
    return principal.is_admin or (metric.team_id is not None and principal.may(Scope.WRITE, metric.team_id))


def proposed(metric: Metric, found: Proposal, *, now: datetime, may: bool) -> dict[str, Any]:
    """What rows show, and the step that takes it for whoever may."""
    differs = found.expected is not None
    pill = (
        words.pill("review", "Another schedule")
        if differs
        else words.pill(
            "pass" if found.state == "as_configured" else "hold",
            {"as_configured": "As configured"}.get(found.state, "None found"),
        )
    )
    looked = (
        f"Looked at rows of {found.experiment} from {words.instant(found.since, now)} to {words.instant(found.until, now)}."
        if found.experiment
        else ""
    )
    return {
        "title": f"When {metric.name or metric.key} comes",
        "pill": pill,
        "detail": found.detail,
        "looked": looked,
        "configured": in_words(found.configured),
        "expected": in_words(found.expected) if found.expected else "",
        "take_url": reverse("schedule", args=[metric.key]) if differs and may else "",
        "whose": "" if may or not differs else f"The metric is of {metric.team.name if metric.team else 'no team'}: its team changes its schedule, or an admin.",
        "back": f"{reverse('freshness')}?q={metric.key}",
    }  # fmt: skip
