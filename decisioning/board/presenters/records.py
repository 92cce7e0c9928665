"""Pages that read what was written down: the refresh log, the audit, keys, a person's own page."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth.models import User
from django.db.models import QuerySet
from django.http import QueryDict
from django.urls import reverse
from django.utils.dateparse import parse_date
from django.utils.safestring import SafeString

from decisioning.access.keys import create_key
from decisioning.access.models import ApiKey, Membership, Team
from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope
from decisioning.board import charts, words
from decisioning.board.presenters.frame import before, older, options, query
from decisioning.board.presenters.gates import svg
from decisioning.board.presenters.names import Names, name_of, names, points_to
from decisioning.ledger import seals
from decisioning.ledger.models import Entry, one_of_each
from decisioning.literals import number_or_key
from experiments.models import Experiment
from gates.engine.figures import span
from telemetry.freshness import FAILURES_OVER
from telemetry.models import QuarantinedEvent, RefreshRun, Source
from telemetry.refresh import RunState, failure_shares, fed, newest_runs, runs_feeding
from telemetry.sources.preview import Preview

PAGE = 50
FRESHNESS = {"fresh": "fresh", "due": "due", "late": "late", "stale": "stale", "unknown": "no data"}
RESULTS = {"succeeded": "Ok", "partial": "In part", "failed": "Failed", "aborted": "Aborted", "running": "Running"}

# What people look for in the audit, in their words.
KINDS = {
    "decision": "Decisions",
    "recommendation": "Recommendations",
    "experiment": "Experiments",
    "targetkpi": "Target KPIs",
    "variant": "Variants",
    "metric": "Metrics",
    "metricschedule": "Schedules of metrics",
    "outage": "Planned outages",
    "alarm": "Alarms answered",
    "policyversion": "Policy versions",
    "policybinding": "Which policy judges",
    "experimentkpi": "Rows",
    "membership": "Memberships",
    "invitation": "Invitations",
    "apikey": "Keys",
    "user": "People",
    "refusal": "Refusals",
    "signin": "Sign-ins",
    "failedsignin": "Failed sign-ins",
    "signout": "Sign-outs",
    "export": "Exports",
    "evidence": "Evidence read",
    "erasure": "People erased",
}
# What happened without a change.
_HAPPENED = {
    "signin": "Signed in",
    "failedsignin": "Failed to sign in",
    "signout": "Signed out",
    "export": "Took along",
    "evidence": "Read evidence",
    "erasure": "Erased a person who was deleted",
}
_DID = {
    Entry.Action.CREATE: "made",
    Entry.Action.UPDATE: "changed",
    Entry.Action.DELETE: "removed",
    Entry.Action.ACCESS: "refused",
}
_THINGS = {
    "targetkpi": "target KPI",
    "experimentkpi": "rows",
    "metricschedule": "schedule of a metric",
    "outage": "planned outage",
    "policyversion": "policy version",
    "policybinding": "policy binding",
    "apikey": "key",
    "user": "person",
}
_KINDS_OF_ACTORS = {
    "user": "person",
    "key": "key",
    "job": "job",
    "role": "database login",
    "anonymous": "not signed in",
}
_LONG = 160


def find_experiment(ref: str) -> Experiment | None:
    """By number or key, among those the asking person may see."""
    named = number_or_key(ref)
    wanted = Experiment.objects.select_related("team")
    return wanted.filter(**{"pk" if isinstance(named, int) else "key": named}).first()


def runs_asked(params: QueryDict) -> QuerySet[RefreshRun]:
    """The refresh runs a query asks for, newest first."""
    runs = RefreshRun.objects.all()
    if ref := params.get("experiment", "").strip():
        found = find_experiment(ref)
        runs = runs_feeding(found) if found else runs.none()
    if job := params.get("job", "").strip():
        runs = runs.filter(job_name__icontains=job)
    if (state := params.get("status", "")) in RESULTS:
        runs = runs.filter(status=state)
    return runs.order_by("-id")


def refresh_log(params: QueryDict, *, now: datetime) -> dict[str, Any]:
    runs = runs_asked(params)
    if last := before(params):
        runs = runs.filter(pk__lt=last)
    found = list(runs[: PAGE + 1])
    filtered = any(params.get(name) for name in ("job", "status", "experiment"))
    return {
        "job": params.get("job", ""),
        "experiment": params.get("experiment", ""),
        "states": options(RESULTS, params.get("status", "")),
        "runs": present_runs(found[:PAGE], now=now),
        "pages": older(params, found, size=PAGE, noun="run"),
        "csv": reverse("refresh_log_csv") + query(params, before=None),
        "empty": {
            "icon": "search" if filtered else "clock",
            "title": "No run matches" if filtered else "No run yet",
            "text": "Nothing in the log fits this filter."
            if filtered
            else "As soon as rows are sent or an experiment is evaluated, each run is written down here.",
            "url": reverse("refresh_log") if filtered else "",
            "label": "Show every run",
        },
    }


def present_runs(runs: Iterable[RefreshRun], *, now: datetime) -> list[dict[str, Any]]:
    """Rows of _runs.html."""
    shown = []
    for run in runs:
        start = run.started_at or run.finished_at
        took = (run.finished_at - run.started_at).total_seconds() if run.finished_at and run.started_at else None
        shown.append(
            {
                "id": run.pk,
                "at": start.isoformat() if start else "",
                "when": words.instant(start, now),
                "job": run.job_name,
                "pill": words.pill(run.status, RESULTS[run.status]),
                "rows": words.count(run.rows),
                "left": ", ".join(
                    f"{count:,} {word}"
                    for count, word in ((run.refused, "refused"), (run.ignored, "not of here"))
                    if count
                ),
                "took": "" if took is None else f"{took * 1000:.0f} ms" if took < 1 else span(took),
                "watermark": words.instant(run.data_watermark, now) if run.data_watermark else "",
                "error": run.error or "",
            }
        )
    return shown


def entries_asked(params: QueryDict) -> QuerySet[Entry]:
    """The audit entries a query asks for, newest first."""
    entries = one_of_each(Entry.objects.select_related("content_type").order_by("-id"))
    if who := params.get("who", "").strip():
        entries = entries.filter(actor_name__icontains=who)
    if (what := params.get("what", "")) in KINDS:
        entries = entries.filter(content_type__model=what)
    if ref := params.get("object", "").strip():
        found = find_experiment(ref)
        entries = entries.filter(experiment_id=found.pk) if found else entries.none()
    if since := _date(params.get("from", "")):
        entries = entries.filter(timestamp__gte=since)
    return entries


def audit(params: QueryDict, *, now: datetime) -> dict[str, Any]:
    entries = entries_asked(params)
    if last := before(params):
        entries = entries.filter(pk__lt=last)
    found = list(entries[: PAGE + 1])
    known = Experiment.objects.in_bulk({e.experiment_id for e in found if e.experiment_id})
    called = names(found[:PAGE])
    return {
        "pill": _sealed(now),
        "who": params.get("who", ""),
        "object": params.get("object", ""),
        "since": params.get("from", "") if _date(params.get("from", "")) else "",
        "kinds": options(KINDS, params.get("what", "")),
        "entries": [_entry(e, known, called, now) for e in found[:PAGE]],
        "pages": older(params, found, size=PAGE, noun="entry", nouns="entries"),
        "csv": reverse("audit_csv") + query(params, before=None),
        "empty": {
            "icon": "search",
            "title": "No entry matches",
            "text": "Nothing was written down that fits this filter.",
            "url": reverse("audit"),
            "label": "Show every entry",
        },
    }


def _sealed(now: datetime) -> dict[str, Any]:
    """How far the history is sealed and whether it was last found sound."""
    seen = seals.standing()
    if seen.problem:
        return words.pill("fail", f"Chain broken: {seen.problem}")
    if not seen.sealed_to:
        return words.pill("hold", "Not sealed yet", line=True)
    if seen.verified_at:
        return words.pill(
            "pass", f"Sealed to entry {seen.sealed_to:,}, found sound {words.instant(seen.verified_at, now)}"
        )
    return words.pill("pass", f"Sealed to entry {seen.sealed_to:,}")


def _entry(entry: Entry, known: dict[int, Experiment], called: Names, now: datetime) -> dict[str, Any]:
    thing = entry.content_type.model
    experiment = known.get(entry.experiment_id or 0)
    told = _changes(entry, called)
    on = experiment.name if experiment else name_of(entry, called)
    return {
        "id": entry.pk,
        "at": entry.timestamp.isoformat(),
        "when": words.instant(entry.timestamp, now),
        "who": entry.actor_name or "nobody",
        "kind": _KINDS_OF_ACTORS.get(entry.actor_kind, entry.actor_kind),
        "address": entry.remote_addr or "",
        "what": _HAPPENED.get(thing) or f"{_called(thing)} {_DID[entry.action]}",
        "on": on,
        "url": reverse("experiment", args=[experiment.key]) if experiment else "",
        "change": [{"field": f, "before": _cell(a), "after": _cell(b)} for f, a, b in told[:8]],
        "more": f"and {len(told) - 8} more fields" if len(told) > 8 else "",
    }


def _called(thing: str) -> str:
    said = _THINGS.get(thing, thing)
    return f"{said[0].upper()}{said[1:]}"


def _changes(entry: Entry, called: Names) -> list[tuple[str, object, object]]:
    """(field, before, after); a batch of rows says how many, of what and over which time instead."""
    changes = entry.changes if isinstance(entry.changes, dict) else {}
    if entry.content_type.model == "experimentkpi":
        rows, span = changes.get("rows") or [None, None], changes.get("ts") or [None, None]
        metrics = ", ".join(changes.get("metric") or [])
        return [("rows", *rows), ("of", None, metrics), ("from", None, span[0]), ("to", None, span[1])]
    told = []
    for field, pair in changes.items():
        if not isinstance(pair, list) or len(pair) != 2 or field == "id":
            continue
        to = points_to(entry, field)
        before, after = (called.get((to, value)) for value in pair) if to else pair
        if (to is None and field.endswith("_id")) or (to and not (before or after)):
            continue
        told.append((field.removesuffix("_id") if to else field, before, after))
    return told


def _cell(value: object) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, list) and all(isinstance(one, str) for one in value):
        text = "none" if not value else (" " if any(one.endswith(".") for one in value) else ", ").join(value)
    else:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"


def _date(text: str) -> datetime | None:
    try:
        found = parse_date(text)
    except ValueError:
        return None
    return datetime.fromisoformat(f"{found}T00:00:00+00:00") if found else None


def quarantine(principal: Principal, params: QueryDict, *, now: datetime) -> dict[str, Any]:
    """Events that were not understood, newest first; replaying is offered where the person may write."""
    held = QuarantinedEvent.objects.select_related("team").order_by("-id")
    if last := before(params):
        held = held.filter(pk__lt=last)
    found = list(held[: PAGE + 1])
    return {
        "events": [
            {
                "id": e.pk,
                "at": e.received_at.isoformat(),
                "when": words.instant(e.received_at, now),
                "type": e.type,
                "source": e.source,
                "team": e.team.name,
                "reason": e.reason,
                "body": json.dumps(e.body, indent=2, ensure_ascii=False),
                "pill": words.pill("pass", "Replayed") if e.replayed_at else words.pill("review", "Waits"),
                "replay_url": reverse("quarantine_replay", args=[e.pk])
                if not e.replayed_at and principal.may(Scope.TELEMETRY, e.team_id)
                else "",
            }
            for e in found[:PAGE]
        ],
        "pages": older(params, found, size=PAGE, noun="event"),
        "empty": {
            "icon": "pass",
            "title": "Nothing in quarantine",
            "text": "Every event that was sent could be understood.",
            "url": "",
        },
    }


def sources(principal: Principal, *, is_staff: bool, now: datetime) -> dict[str, Any]:
    """Where rows are pulled from; staff reach the form in the admin."""
    rows = []
    found = list(Source.objects.select_related("team").order_by("key", "team"))
    runs, shares, feeds = newest_runs(found, now=now), failure_shares(found, now=now), fed(found, now=now)
    for s in found:
        state = (
            ("hold", "Off")
            if not s.enabled
            else ("failed", f"Failing, {s.failures}")
            if s.failures
            else ("pass", "Good")
        )
        rows.append(
            {
                "key": s.key,
                "team": s.team.name,
                "kind": _KINDS_OF_SOURCES[s.kind],
                "place": f"${s.url_env} {s.path}".strip() if s.url_env else s.path,
                "pill": words.pill(*state),
                "schedule": f"every {span(s.schedule_s)}",
                "metrics": ", ".join(s.metrics),
                "fed": words.pill(of.state, FRESHNESS[of.state].capitalize()) if (of := feeds.get(s.pk)) else None,
                "p95": span(of.p95_s) if of and of.p95_s is not None else "",
                "last": words.instant(s.last_refresh_at, now),
                "runs": _strip(s, runs[s.pk]),
                "runs_said": _said_of(runs[s.pk]),
                "failing": _failing(shares[s.pk]),
                "due": words.instant(s.due_at, now) if s.enabled else "not while it is off",
                "admin_url": reverse("admin:telemetry_source_change", args=[s.pk]) if is_staff else "",
                "refresh_url": reverse("source_refresh", args=[s.pk])
                if s.enabled and principal.may(Scope.TELEMETRY, s.team_id)
                else "",
                "try_url": reverse("source_try", args=[s.pk]) if principal.may(Scope.TELEMETRY, s.team_id) else "",
            }
        )
    return {
        "sources": rows,
        "empty": {
            "icon": "link",
            "title": "No source yet",
            "text": "Rows are pushed here by programs. A source pulls them by itself, from a query or a file: make one with POST /api/sources.",
            "url": reverse("admin:telemetry_source_add") if is_staff else "",
            "label": "Add a source",
        },
    }


def _strip(source: Source, states: Sequence[RunState]) -> SafeString:
    if not states:
        return svg("")
    title = f"Runs of {source.key} in the last 24 h"
    return svg(charts.run_strip(states, uid=f"runs{source.pk}", title=title, desc=_said_of(states), step=3))


def _said_of(states: Sequence[RunState]) -> str:
    counts = Counter(states)
    return ", ".join(
        f"{counts[state]} {state}" for state in ("ok", "partial", "failed", "missed", "running") if counts[state]
    )


def _failing(share: float | None) -> str:
    return "" if share is None else f"{words.share(share, 1)} failed or missed in {span(FAILURES_OVER.total_seconds())}"


_KINDS_OF_SOURCES = {"sql": "a SQL query", "file": "files", "http": "an address", "prometheus": "a Prometheus"}


def tried(source: Source, seen: Preview, *, now: datetime) -> dict[str, Any]:
    """What a dry run found: the counts a run would report, and the first rows as they are understood."""
    told = seen.stored
    heads = list(dict.fromkeys(name for row in seen.rows for name in row))
    counts = [
        ("new", told.accepted),
        ("changed", told.changed),
        ("duplicate", told.duplicates),
        ("refused", told.refused),
        *([("of experiments that are not here", told.ignored)] if told.ignored else []),
    ]
    return {
        "key": source.key,
        "said": f"Rows since {words.instant(seen.since, now)}: "
        + ", ".join(f"{n:,} {kind}" for kind, n in counts)
        + (", in the first part alone." if seen.more else ".")
        + "".join(f" {of.metric}: n {_cell(of.n)}, mean {of.mean:.6g}, newest {words.instant(of.newest, now)}." for of in seen.summaries)
        + (f" Left out: {', '.join(seen.ignored_columns)}." if seen.ignored_columns else ""),
        "problems": [*seen.warnings, *told.problems[:5]],
        "heads": heads,
        "rows": [[_cell(row.get(name)) if not isinstance(row.get(name), datetime) else row[name].isoformat() for name in heads]
                 for row in seen.rows],
    }  # fmt: skip


def keys(principal: Principal, *, now: datetime) -> dict[str, Any]:
    """Every key the person may see; revoking is offered where they may manage keys."""
    return {
        "keys": [
            _key(key, principal, now)
            for key in ApiKey.objects.judged().select_related("team", "owner", "made_by").order_by("-id")
        ],
        "empty": {
            "icon": "key",
            "title": "No keys yet",
            "text": "Make one below and give it to the program that sends rows.",
            "url": "",
        },
    }


def _key(key: ApiKey, principal: Principal, now: datetime) -> dict[str, Any]:
    problem: str | None = key.problem  # type: ignore[attr-defined] # annotated by judged()
    gone = (
        "Revoked"
        if key.revoked_at
        else "Expired"
        if key.expires_at and key.expires_at <= now
        else "Ended"
        if problem
        else ""
    )
    return {
        "name": str(key),
        "team": key.team.name,
        "owner": str(key.owner or "no one"),
        "made_by": str(key.made_by or ""),
        "problem": problem if gone == "Ended" else "",
        "scopes": ", ".join(key.scopes) + (" · agent" if key.agent else ""),
        "pill": words.pill("fail", gone, line=True) if gone else words.pill("pass", "Good"),
        "used": words.instant(key.last_used_at, now) if key.last_used_at else "not yet",
        "expires": words.day(key.expires_at) if key.expires_at else "never",
        "revoke_url": ""
        if gone or not principal.may(Scope.KEYS, key.team_id)
        else reverse("key_revoke", args=[key.pk]),
    }


def make_key(wanted: Mapping[str, Any], *, owner: User, now: datetime) -> dict[str, str]:
    """A new key and its secret, from what KeyForm found good. Raises KeyRefused."""
    days = wanted["expires_in_days"]
    _, secret = create_key(
        wanted["team"],
        scopes=wanted["scopes"],
        now=now,
        agent=wanted["agent"],
        rate=wanted["rate"],
        expires_at=now + timedelta(days=days) if days else None,
        owner=owner,
    )
    return {"secret": secret}


def teams_with(principal: Principal, scope: Scope) -> QuerySet[Team]:
    """Teams in which the person holds the scope."""
    if principal.is_admin:
        return Team.objects.order_by("name")
    held = [team for team, scopes in principal.teams.items() if scope in scopes]
    return Team.objects.filter(pk__in=held).order_by("name")


NO_TEAM = "You are in no team yet, so the board is empty for you. Ask an admin of one for an invitation: its link takes you in."


def profile(principal: Principal, *, email: str, is_staff: bool, joined: datetime) -> dict[str, Any]:
    held = Membership.objects.select_related("team").filter(user_id=principal.id or 0).order_by("team__name")
    roles = {m.team: m.role for m in held}
    if principal.is_admin:
        roles = {t: roles.get(t, "as admin of the installation") for t in Team.objects.order_by("name")}
    teams = [{"name": t.name, "role": role, "url": reverse("team", args=[t.key])} for t, role in roles.items()]
    return {
        "name": principal.name,
        "facts": [
            {"label": "User name", "text": principal.name},
            {"label": "Email", "text": email or "none"},
            {"label": "Here since", "text": words.day(joined)},
            *(
                [{"label": "Rights", "text": "Admin of the whole installation: sees and does everything"}]
                if principal.is_admin
                else []
            ),
        ],
        "teams": teams,
        "no_teams": NO_TEAM,
        "may_keys": principal.may(Scope.KEYS),
        "is_staff": is_staff,
    }
