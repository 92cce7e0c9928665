"""Which experiments a query asks for: search, filters, views, order, pages."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.db.models import DateTimeField, Exists, ExpressionWrapper, F, OuterRef, Q, QuerySet, Value
from django.http import QueryDict

from decisioning.access.limits import MOST_TEXT
from decisioning.access.models import Team
from decisioning.access.principal import Principal
from decisioning.board import words
from decisioning.board.presenters import freshness
from decisioning.board.presenters.frame import options, query
from decisioning.board.presenters.page_data import CLOSED, PROPOSALS, open_proposals
from decisioning.literals import whole_number
from experiments.models import Experiment

PAGE = 25  # a lane: what is on the page is what costs
SORTS = {"name": ("name",), "-name": ("-name",), "started": ("started_at", "id"), "-started": ("-started_at", "-id")}


def matching(params: QueryDict, *, now: datetime) -> QuerySet[Experiment]:
    """The experiments a query asks for, whatever lane they are in."""
    found = Experiment.objects.all()
    if text := params.get("q", "").strip()[:MOST_TEXT]:
        found = found.filter(
            Q(name__icontains=text) | Q(key__icontains=text) | Q(hypothesis__icontains=text) | Q(owner__icontains=text)
        )
    if team := params.get("team"):
        found = found.filter(team__key=team)
    if (state := params.get("status")) in words.STATUSES:
        found = found.filter(status=state)
    if params.get("view") == "closed":
        found = found.filter(status__in=CLOSED)
    if owner := params.get("owner"):
        found = found.filter(owner=owner)
    if (action := params.get("recommendation")) in (*PROPOSALS, "hold"):
        waiting = Exists(open_proposals().filter(experiment=OuterRef("pk"), action=action))
        found = found.filter(Q(waiting) | Q(cursor__shown__recommendation__action=action))
    if (state := params.get("freshness")) in freshness.STATES:
        found = found.filter(pk__in=freshness.in_state(state, now=now))
    if (hours := whole_number(params.get("due", "").removesuffix("h"), most=9_999)) is not None:
        limit = now + timedelta(hours=hours)
        due = open_proposals().filter(experiment=OuterRef("pk"))
        due = due.annotate(
            due_at=ExpressionWrapper(
                F("proposed_at") + F("team__answer_within_h") * Value(timedelta(hours=1)), output_field=DateTimeField()
            )
        )
        found = found.filter(Exists(due.filter(due_at__lte=limit)))
    return found


def ready_views(params: QueryDict, principal: Principal) -> list[dict[str, Any]]:
    asked = {
        name: value for name, value in params.items() if value and name not in ("needs", "progress", "closed", "sort")
    }
    ready: list[tuple[str, dict[str, str]]] = [
        ("Everything", {}),
        ("Due within 6 h", {"due": "6h"}),
        ("Stale data", {"freshness": "stale"}),
        ("Deletes", {"recommendation": "delete"}),
        ("All closed", {"view": "closed"}),
    ]
    teams = Team.objects.filter(pk__in=principal.teams).order_by("name")[:3] if len(principal.teams) > 1 else []
    ready[2:2] = [(f"Team {t.name}", {"team": t.key}) for t in teams]
    return [{"label": label, "query": f"?{urlencode(wanted)}", "here": wanted == asked} for label, wanted in ready]


def filters(params: QueryDict) -> list[dict[str, Any]]:
    teams = [(t.key, t.name) for t in Team.objects.order_by("name")]
    owners = [(o, o) for o in Experiment.objects.order_by("owner").values_list("owner", flat=True).distinct()[:200]]
    actions = [(a, a.capitalize()) for a in (*PROPOSALS, "hold")]
    return [
        {"name": name, "label": label, "options": options(choices, params.get(name, ""))}
        for name, label, choices in (
            ("team", "Team", teams),
            ("status", "Status", words.STATUSES),
            ("recommendation", "Recommendation", actions),
            ("freshness", "Data", [(s, s.capitalize()) for s in freshness.STATES]),
            ("owner", "Owner", owners),
        )
    ]


def filter_note(params: QueryDict) -> str:
    said = [f"{n} is {params[n]}" for n in ("team", "status", "recommendation", "freshness", "owner") if params.get(n)]
    return f" · {', '.join(said)}" if said else ""


def shown_note(shown: int, hidden: int) -> str:
    note = f"{words.plural(shown, 'experiment')} shown."
    if hidden == 1:
        return f"{note} 1 decision that waits for you is outside this filter."
    return f"{note} {hidden} decisions that wait for you are outside this filter." if hidden > 1 else note


def page_number(params: QueryDict, name: str) -> int:
    return max((whole_number(params.get(name, ""), most=99_999) or 1) - 1, 0)


def pager(params: QueryDict, lane: str, at: int, found: Sequence[int]) -> dict[str, Any] | None:
    more = len(found) > PAGE
    if not at and not more:
        return None
    first = at * PAGE + 1
    return {
        "note": f"{first} to {first + min(len(found), PAGE) - 1}",
        "newest": "",
        "newer": f"{query(params, **{lane: at if at > 1 else None})}#lane-{lane}" if at else "",
        "older": f"{query(params, **{lane: at + 2})}#lane-{lane}" if more else "",
        "numbered": True,
    }


def sort_link(label: str, name: str, params: QueryDict) -> dict[str, str]:
    now = params.get("sort", "")
    up = now == name
    return {
        "label": label,
        "query": query(params, sort=f"-{name}" if up else name, progress=None, closed=None),
        "icon": {name: "up", f"-{name}": "down"}.get(now, "sort"),
        "aria": {name: "ascending", f"-{name}": "descending"}.get(now, ""),
    }
