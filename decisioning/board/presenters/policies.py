"""Policies read aloud: what is proposed when, which version is live, what a candidate would change."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from difflib import ndiff
from typing import Any

from django.db.models import Count, Prefetch
from django.urls import reverse
from django.utils.dateparse import parse_datetime

from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope
from decisioning.board import words
from decisioning.board.forms import PolicyForm
from experiments.models import Experiment
from gates import backtests
from gates import policies as rules
from gates.engine.figures import MINUS
from gates.engine.policy import canonical
from gates.engine.policy_checks import parse
from gates.models import Backtest, Cursor, Policy, PolicyVersion
from gates.policies import second_person_missing

MOST_LISTED = 200  # of what is folded away below a backtest


def _live(versions: Sequence[PolicyVersion]) -> PolicyVersion | None:
    """The newest activated version judges."""
    active = [v for v in versions if v.activated_at]
    return max(active, key=lambda v: (v.activated_at, v.number), default=None)


def policies() -> dict[str, Any]:
    newest = PolicyVersion.objects.order_by("-number")
    found = (
        Policy.objects.select_related("team")
        .prefetch_related(Prefetch("versions", newest))
        .order_by("team__name", "name")
    )
    judged = Cursor.objects.filter(policy_version__isnull=False).values_list("policy_version__policy")
    used = dict(judged.annotate(n=Count("pk")).order_by())
    rows = []
    for policy in found:
        versions = list(policy.versions.all())
        live = _live(versions)
        candidates = [v for v in versions if live is None or v.number > live.number]
        rows.append(
            {
                "name": policy.name,
                "url": reverse("policy", args=[policy.pk]),
                "team": policy.team.name if policy.team else "ships with the portal",
                "version": f"Version {live.number}" if live else "none",
                "candidate": words.pill("review", f"Version {candidates[0].number} waits", line=True)
                if candidates
                else None,
                "sentence": _short(live.body) if live else "",
                "used": words.plural(used.get(policy.pk, 0), "experiment"),
            }
        )
    return {
        "policies": rows,
        "empty": {
            "icon": "doc",
            "title": "No policy yet",
            "text": "Every installation ships with one named default.",
            "url": "",
        },
    }


def _short(body: Mapping[str, Any]) -> str:
    p = canonical(parse(body))
    kinds = [g["kind"] for g in p["gates"]]
    gates = ", ".join(words.plural(kinds.count(k), k) for k in dict.fromkeys(kinds))
    return f"{p['min_days']} to {p['max_days']} days, {words.count(p['min_units'])} units in each arm, alpha {p['alpha']:g}; {gates}."


def find(pk: int, number: int | None) -> PolicyVersion | None:
    """A version of a policy the asking person may see; without a number the one that is live."""
    versions = list(PolicyVersion.objects.select_related("policy__team").filter(policy=pk).order_by("number"))
    if number is None:
        return _live(versions) or (versions[-1] if versions else None)
    return next((v for v in versions if v.number == number), None)


def policy(version: PolicyVersion, principal: Principal, *, now: datetime) -> dict[str, Any]:
    versions = list(PolicyVersion.objects.filter(policy=version.policy_id).order_by("-number"))
    live = _live(versions)
    compared = live is not None and live.pk != version.pk
    body = canonical(parse(version.body))
    then = canonical(parse(live.body)) if compared and live else None
    used = Cursor.objects.filter(policy_version__policy=version.policy_id).count()
    is_live = live is not None and live.pk == version.pk
    candidate = not is_live and (live is None or version.number > live.number)
    state = "Live" if is_live else "Candidate" if candidate else "Replaced"
    return {
        "name": version.policy.name,
        "number": version.number,
        "pill": words.pill("pass" if is_live else "review" if candidate else "hold", state, line=not is_live),
        "said": f"used by {words.plural(used, 'experiment')}"
        if is_live
        else f"version {live.number} is live"
        if live
        else "",
        "lead": f"Written by {version.author or 'the portal'}, {words.instant(version.created_at, now)}.",
        "compared": compared,
        "against": f"version {live.number}, which is live" if live else "",
        "sentences": [s._asdict() | {"parts": [p._asdict() for p in s.parts]} for s in words.sentences(body, then)],
        "foot": [part._asdict() for part in words.settings(body, then)],
        "stored": _stored(body, then),
        "steps_title": "Make it live" if candidate else "How it came to be",
        "steps": _steps(version, principal, candidate=candidate, now=now),
        "trial": _trial(version, principal, live=live, now=now) if compared or backtests.newest(version) else None,
        "activate": _activate(version, principal) if candidate else None,
        "next_url": reverse("policy_next", args=[version.policy_id])
        if version.policy.team_id and _may(version, principal)
        else "",
        "copy_url": reverse("policy_copy", args=[version.policy_id, version.number])
        if principal.may(Scope.POLICIES)
        else "",
        "versions_note": "What a version says never changes; another one replaces it."
        if version.policy.team_id
        else "It ships with the portal and never changes; a team copies it into a policy of its own.",
        "versions": [
            {
                "number": v.number,
                "url": reverse("policy_version", args=[v.policy_id, v.number]),
                "here": v.pk == version.pk,
                "pill": words.pill("pass", "Live")
                if live and v.pk == live.pk
                else words.pill("hold", _state(v, live), line=True),
                "written": f"{words.day(v.created_at)} by {v.author or 'the portal'}",
                "activated": f"{words.day(v.activated_at)} by {v.activated_by or 'the portal'}"
                if v.activated_at
                else "not yet",
            }
            for v in versions
        ],
    }


def write(data: Mapping[str, Any], source: PolicyVersion, *, by: Principal, now: datetime) -> PolicyVersion:
    """The version of a valid PolicyForm: of a new policy when it names one, else the next of the source's. Raises PolicyRefused."""
    if "name" in data:
        return rules.create_policy(data["name"], data["body"], team=data["team"], by=by, now=now)
    return rules.add_version(source.policy, data["body"], by=by, now=now)


def writing(form: PolicyForm, source: PolicyVersion, *, copied: bool) -> dict[str, Any]:
    """The form, and what its body says beside the version it began from, once it can be read."""
    body, then = form.cleaned_data.get("body") if form.is_bound else source.body, canonical(parse(source.body))
    read = canonical(parse(body)) if body else None
    name = source.policy.name
    return {
        "title": f"Copy policy {name} into one of a team" if copied else f"The next version of policy {name}",
        "back": reverse("policy_version", args=[source.policy_id, source.number]),
        "from": f"{name}, version {source.number}",
        "lead": "It judges the experiments that name it, or a team's by default, as soon as it is kept."
        if copied
        else "It judges nothing before it is backtested and activated, by a second person where the team asks for one.",
        "form": form,
        "sentences": [s._asdict() | {"parts": [p._asdict() for p in s.parts]} for s in words.sentences(read, then)]
        if read
        else [],
        "foot": [part._asdict() for part in words.settings(read, then)] if read else [],
    }


def _state(version: PolicyVersion, live: PolicyVersion | None) -> str:
    return "Candidate" if live is None or version.number > live.number else "Replaced"


def _stored(body: Mapping[str, Any], then: Mapping[str, Any] | None) -> list[dict[str, str]]:
    new = json.dumps(body, indent=2).splitlines()
    if then is None:
        return [{"kind": "", "text": f"  {line}"} for line in new]
    kinds = {"+": "add", "-": "cut"}
    found = (line for line in ndiff(json.dumps(then, indent=2).splitlines(), new) if line[0] != "?")
    return [
        {"kind": kinds.get(line[0], ""), "text": line.replace("- ", f"{MINUS} ", 1) if line[0] == "-" else line}
        for line in found
    ]


def _steps(version: PolicyVersion, principal: Principal, *, candidate: bool, now: datetime) -> list[dict[str, str]]:
    by, at = version.author or "the portal", words.instant(version.created_at, now)
    steps = [
        {
            "icon": "pass",
            "tone": "",
            "title": "Checked.",
            "text": "Every gate can be reached and every metric is known.",
        },
        {"icon": "edit", "tone": "", "title": "Written", "text": f"by {by}, {at}."},
    ]
    if version.activated_at:
        text = f"by {version.activated_by or 'the portal'}, {words.instant(version.activated_at, now)}."
        return [*steps, {"icon": "pass", "tone": "", "title": "Activated", "text": text}]
    if candidate and not backtests.passed(version):
        text = "Held against what is live over the recorded experiments, it shows what it would have changed."
        steps.append({"icon": "clock", "tone": "hold", "title": "A backtest is missing.", "text": text})
    elif candidate:
        steps.append({"icon": "pass", "tone": "", "title": "Backtested.", "text": "Its report is below."})
    if candidate and (text := second_person_missing(version, principal)):
        steps.append({"icon": "user", "tone": "late", "title": "A second person is missing.", "text": text})
    return steps


def _may(version: PolicyVersion, principal: Principal) -> bool:
    team = version.policy.team_id
    return principal.is_admin or (team is not None and principal.may(Scope.POLICIES, team))


def _activate(version: PolicyVersion, principal: Principal) -> dict[str, Any] | None:
    if not _may(version, principal):
        return None
    waits = not backtests.passed(version) or bool(second_person_missing(version, principal))
    return {
        "url": reverse("policy_activate", args=[version.policy_id, version.number]),
        "waits": waits,
        "hint": "From its activation on it judges; proposals that are open keep the version they were made under.",
    }


def _trial(
    version: PolicyVersion, principal: Principal, *, live: PolicyVersion | None, now: datetime
) -> dict[str, Any]:
    """The newest backtest in words; asking for one is offered where the person may change policies.

    What has gone live keeps the one that it went live on; against itself there is nothing to try.
    """
    newest = backtests.newest(version)
    may_ask = _may(version, principal) and version != live
    ask = reverse("policy_backtest", args=[version.policy_id, version.number]) if may_ask else ""
    if newest is None:
        return {"note": "Not held against the live version yet.", "ask": ask, "tally": [], "rows": []}
    asked = f"asked for by {newest.asked_by}, {words.instant(newest.asked_at, now)}"
    if newest.state == Backtest.State.QUEUED:
        return {"note": f"Running: {asked}. Reload in a moment.", "ask": "", "tally": [], "rows": []}
    if newest.state == Backtest.State.FAILED:
        return {"note": f"Failed: {newest.error} ({asked})", "ask": ask, "tally": [], "rows": []}
    found: dict[str, Any] = newest.result or {}
    saved, agrees, before = found["days_saved"], found["agreement"], found["live_agreement"]
    experiments = found["experiments"]
    tally = [
        ("Turned round", str(found["flips"]), "scale to delete, or back"),
        ("Gained, lost", f"+{found['gained']}, {MINUS}{found['lost']}", "decisions"),
        ("Days saved", "none" if saved is None else f"{saved:+.1f}".replace("-", MINUS), "on average, where both decide"),
        ("Agrees with people", "none yet" if agrees is None else words.share(agrees),
         "" if before is None else f"{'what was live' if version == live else 'live version'}: {words.share(before)}"),
    ]  # fmt: skip
    rows = [
        (e["experiment"], v)
        for e in experiments
        for v in e["variants"]
        if v["flip"] or v["gained"] or v["lost"] or v["days_saved"]
    ]
    keys = [e["experiment"] for e in experiments]
    names = dict(Experiment.objects.filter(key__in=keys).values_list("key", "name"))
    return {
        "note": f"Over {words.plural(len(experiments), 'recorded experiment')}, {asked}.",
        "ask": ask,
        "csv": reverse("policy_backtest_csv", args=[version.policy_id, version.number]),
        "tally": [{"label": label, "figure": figure, "hint": hint} for label, figure, hint in tally],
        "before": "Live says" if live is None or version.number > live.number else "What was live said",
        "lists": [
            found
            for found in (_answers(experiments, names, version, now), _stretches(experiments, names, version, now))
            if found
        ],
        "rows": [
            {
                "name": names.get(key, key),
                "url": reverse("experiment", args=[key]),
                "variant": v["variant"],
                "live": _said(v["live"], line=True),
                "candidate": _said(v["candidate"]),
                "saved": "" if v["days_saved"] is None else f"{v['days_saved']:+.1f}".replace("-", MINUS),
            }
            for key, v in rows
        ],
        "same": words.plural(len(experiments) - len({key for key, _ in rows}), "experiment"),
    }


def _answers(
    experiments: Sequence[Mapping[str, Any]], names: Mapping[str, str], version: PolicyVersion, now: datetime
) -> dict[str, Any] | None:
    """Every answer of people beside what both versions recommended then: what the agreement is counted from."""
    rows = [
        [
            names.get(e["experiment"], e["experiment"]),
            a["variant"] or "all of it",
            words.instant(parse_datetime(a["at"]), now),
            *(a[who].capitalize() for who in ("person", "live", "candidate")),
            "yes" if a["person"] == a["candidate"] else "no",
        ]
        for e in experiments
        for a in e["answers"]
    ]
    heads = ["Experiment", "Variant", "Answered", "People", "Live", f"Version {version.number}", "Agrees"]
    return _list(f"{words.plural(len(rows), 'answer')} of people, one by one", heads, rows)


def _stretches(
    experiments: Sequence[Mapping[str, Any]], names: Mapping[str, str], version: PolicyVersion, now: datetime
) -> dict[str, Any] | None:
    """Every stretch of time over which the two versions recommend different things of an experiment."""
    rows = [
        [
            names.get(e["experiment"], e["experiment"]),
            *(words.instant(parse_datetime(stretch[end]), now) for end in ("begin", "end")),
            *(f"{action.capitalize()}, {words.CODES.get(code, code).lower()}"
              for action, code in (stretch["live"], stretch["candidate"])),
        ]
        for e in experiments
        for stretch in e["stretches"]
    ]  # fmt: skip
    heads = ["Experiment", "From", "To", "Live", f"Version {version.number}"]
    return _list(f"{words.plural(len(rows), 'stretch', 'stretches')} of time in which they differ", heads, rows)


def _list(summary: str, heads: list[str], rows: list[list[str]]) -> dict[str, Any] | None:
    if not rows:
        return None
    cut = f", the first {MOST_LISTED} of them; the CSV has all" if len(rows) > MOST_LISTED else ""
    return {"summary": f"{summary}{cut}", "heads": heads, "rows": rows[:MOST_LISTED]}


def _said(decided: Mapping[str, Any] | None, *, line: bool = False) -> dict[str, Any]:
    if decided is None:
        return words.pill("hold", "Hold", line=line)
    why = words.CODES.get(decided["code"], decided["code"]).lower()
    return words.pill(decided["action"], f"{decided['action'].capitalize()}, {why}", line=line)
