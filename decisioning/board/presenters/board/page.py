"""The board: what needs a person, what is in progress, what is closed; a constant number of queries."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.http import QueryDict
from django.urls import reverse

from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope
from decisioning.board import words
from decisioning.board.presenters.board.filters import (
    PAGE,
    SORTS,
    filter_note,
    filters,
    matching,
    page_number,
    pager,
    ready_views,
    shown_note,
    sort_link,
)
from decisioning.board.presenters.board.rows import URGENT, case, row
from decisioning.board.presenters.frame import query
from decisioning.board.presenters.page_data import CLOSED, OPEN, load, open_proposals
from decisioning.board.presenters.records import NO_TEAM
from experiments.models import Experiment
from gates.engine.figures import span

RECENTLY = timedelta(days=7)


def board(principal: Principal, params: QueryDict, *, now: datetime) -> dict[str, Any]:
    wanted = matching(params, now=now)
    filtered = params.get("view") == "closed" or any(
        params.get(f) for f in ("q", "team", "status", "owner", "recommendation", "freshness", "due")
    )
    everyone, newest = _waiting()
    here = set(wanted.filter(pk__in=everyone).values_list("pk", flat=True)) if filtered else everyone.keys()
    waiting = {pk: due for pk, due in everyone.items() if pk in here}
    ids = list(waiting)
    lanes = {
        "needs": page_number(params, "needs"),
        "progress": page_number(params, "progress"),
        "closed": page_number(params, "closed"),
    }
    sort = SORTS.get(params.get("sort", ""), ())
    progress = wanted.filter(status__in=OPEN).exclude(pk__in=ids).order_by(*sort or ("-started_at", "-id"))
    closed = wanted.filter(status__in=CLOSED)
    if not filtered:
        closed = closed.filter(ended_at__gte=now - RECENTLY)
    closed = closed.order_by(*sort or ("-ended_at", "-id"))
    slices = {
        "needs": ids[lanes["needs"] * PAGE : (lanes["needs"] + 1) * PAGE + 1],
        "progress": list(progress.values_list("pk", flat=True)[lanes["progress"] * PAGE :][: PAGE + 1]),
        "closed": list(closed.values_list("pk", flat=True)[lanes["closed"] * PAGE :][: PAGE + 1]),
    }
    data = load([pk for lane in slices.values() for pk in lane[:PAGE]], waiting=slices["needs"][:PAGE], now=now)
    needs = [case(pk, data, first=i == 0 and not lanes["needs"]) for i, pk in enumerate(slices["needs"][:PAGE])]
    rows = {lane: [row(pk, data, lane=lane) for pk in slices[lane][:PAGE]] for lane in ("progress", "closed")}
    hidden_needs = len(everyone) - len(ids)
    shown = len(ids) + len(rows["progress"]) + len(rows["closed"])
    return {
        "lead": _lead(params, waiting, any_shown=bool(shown), filtered=filtered, now=now),
        "may_create": principal.may(Scope.WRITE),
        "views": ready_views(params, principal),
        "search": params.get("q", ""),
        "hidden": [
            {"name": n, "value": v} for n, v in params.items() if n not in ("q", "needs", "progress", "closed") and v
        ],
        "filters": filters(params),
        "filtered": any(params.get(f) for f in ("team", "status", "owner", "recommendation", "freshness")),
        "filter_note": filter_note(params),
        "note": shown_note(shown, hidden_needs) if filtered else "",
        "csv": reverse("board_csv") + query(params, needs=None, progress=None, closed=None),
        "news_since": newest,
        "needs": needs,
        "needs_pages": pager(params, "needs", lanes["needs"], slices["needs"]),
        "calm": None if ids or filtered or not shown else _calm(),
        "lanes": [
            lane
            for lane in (
                _lane("progress", rows["progress"], params, lanes["progress"], slices["progress"]),
                _lane("closed", rows["closed"], params, lanes["closed"], slices["closed"], everything=filtered),
            )
            if lane["rows"]
        ],
        "empty": None if shown else _empty(params, hidden_needs, principal, filtered=filtered),
    }


def newer_than(since: int) -> int:
    return open_proposals().filter(pk__gt=since).count()


def waits_next(principal: Principal) -> tuple[int, Experiment | None]:
    """How many experiments wait for this person's answer, and the one that is to be answered first."""
    waiting, _ = _waiting()
    mine = Experiment.objects.filter(pk__in=waiting).only("key", "name", "team_id").in_bulk()
    ids = [pk for pk in waiting if principal.may(Scope.REVIEW, mine[pk].team_id)]
    return len(ids), mine[ids[0]] if ids else None


def _waiting() -> tuple[dict[int, datetime], int]:
    """Experiments that need a person, safety first, then by when they are due; and the number of the newest proposal.

    A page asks later whether there is a newer one. A suspended proposal needs nobody yet.
    """
    state = "experiment__cursor__shown__recommendation__state"
    rows = open_proposals().values_list("experiment_id", "code", "proposed_at", "team__answer_within_h", "pk", state)
    best: dict[int, tuple[int, datetime, int]] = {}
    newest = 0
    for experiment, code, proposed_at, within, pk, said in rows:
        newest = max(newest, pk)
        if said != "suspended":
            rank = (URGENT.get(code, 2), proposed_at + timedelta(hours=within), pk)
            best[experiment] = min(best.get(experiment, rank), rank)
    due = {experiment: rank[1] for experiment, rank in sorted(best.items(), key=lambda item: item[1])}
    return due, newest


def _lead(
    params: QueryDict, waiting: Mapping[int, datetime], *, any_shown: bool, filtered: bool, now: datetime
) -> dict[str, str]:
    if params.get("view") == "closed" and any_shown:
        return {"title": "What has ended", "text": "With the answer that ended it, newest first."}
    if filtered and not any_shown:
        return {"title": "Nothing matches", "text": "Take a word or a filter away to see more."}
    if filtered and not waiting:
        return {"title": "Nothing here needs you", "text": "No open proposal fits this search or filter."}
    if not waiting and not any_shown:
        return {
            "title": "Nothing here yet",
            "text": "Experiments that need a decision come first here, then what runs, then what ended.",
        }
    if not waiting:
        return {
            "title": "Nothing needs you",
            "text": "Every proposal has its answer. What runs is listed below with what it waits for.",
        }
    title = f"{words.plural(len(waiting), 'decision')} {'needs' if len(waiting) == 1 else 'need'} you"
    soonest = min(waiting.values())
    left = (soonest - now).total_seconds()
    when = words.instant(soonest, now)
    if left <= 0:
        return {"title": title, "text": f"The oldest promise ran out at {when}, {span(-left)} ago."}
    return {"title": title, "text": f"The next promise runs out at {when}, in {span(left)}."}


def _lane(
    lane: str, rows: list[dict[str, Any]], params: QueryDict, at: int, found: Sequence[int], *, everything: bool = False
) -> dict[str, Any]:
    closed = lane == "closed"
    last = "Decided" if closed else "Ready"
    return {
        "id": lane,
        "title": "Closed" if closed else "In progress",
        "note": ("Newest first." if everything else "Ended in the last 7 days.")
        if closed
        else "No decision is possible yet; each says what it waits for.",
        "last": last,
        "rows": rows,
        "pages": pager(params, lane, at, found),
        "heads": [
            {"class": "w-name", "sort": sort_link("Experiment", "name", params)},
            {"class": "w-rec", "label": "Decision" if closed else "Recommendation"},
            {"class": "w-gates", "label": "Gates"},
            {"class": "w-kpi", "label": "Goal KPI"},
            {"class": "w-age", "label": "Data age"},
            {"class": "", "label": last} if closed else {"class": "", "sort": sort_link(last, "started", params)},
        ],
    }


def _calm() -> dict[str, str]:
    return {
        "icon": "pass",
        "title": "Nothing needs you",
        "text": "No proposal is open. What runs is below, each with what it waits for.",
    }


def _empty(params: QueryDict, hidden: int, principal: Principal, *, filtered: bool) -> dict[str, Any]:
    if filtered:
        outside = f" {words.plural(hidden, 'decision')} still wait outside of it." if hidden > 0 else ""
        return {
            "icon": "search",
            "title": "No experiment matches",
            "text": f"Nothing fits this filter.{outside}",
            "url": reverse("board"),
            "label": "Show everything",
        }
    may = principal.may(Scope.WRITE)
    if not principal.teams and not principal.is_admin:
        return {
            "icon": "user",
            "title": "You are in no team yet",
            "text": NO_TEAM,
            "url": reverse("profile"),
            "label": "Your profile",
        }
    return {
        "icon": "inconclusive",
        "title": "No experiments yet",
        "text": "Name an idea, its hypothesis and one KPI; the dashboard, the gates and the log come with it."
        if may
        else "As soon as somebody in your team creates one, it is listed here.",
        "url": reverse("experiment_new") if may else "",
        "label": "Create the first",
        "go": False,
    }
