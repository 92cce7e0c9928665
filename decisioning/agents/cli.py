"""`decisioning`: the portal from a terminal, for people and for pipelines that branch on the exit code."""

import json
import os
import re
import secrets
import shlex
import sys
import time
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from decisioning.agents import credentials
from decisioning.agents.client import Json, Portal, PortalError, Receipt, Unreachable, place
from decisioning.agents.news import news
from decisioning.agents.rows import Unreadable, rows_of
from decisioning.agents.terminal import (
    ERROR,
    EXIT_CODES,
    USAGE,
    AsJson,
    Wait,
    acts_on,
    end,
    err,
    print_json,
    print_line,
    print_recommendation,
    print_table,
    refused,
    say,
    seconds,
    tell,
    wait_for,
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Ask and feed a decision portal. Begin with `decisioning login URL`; in pipelines set DECISIONING_URL and "
    "DECISIONING_API_KEY, which win. Everywhere --json prints what programs read. Exit codes: 0 done, 1 refused or "
    "unreachable, 2 wrong usage; `decision show` says scale 0, hold 10, review 11, delete 12.",
    epilog="Example: decisioning decision show checkout --wait 24h && ./deploy.sh",
)


def _group(name: str, words: str) -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=words)
    app.add_typer(group, name=name)
    return group


experiments = _group("experiments", "What is being tried.")
kpis = _group("kpis", "What is measured.")
decision = _group("decision", "What the gates recommend and what people answer.")
policy = _group("policy", "By which rules it is judged.")
events = _group("events", "What happens on the board.")


def main() -> None:
    """The entry point; refusals end with code 1 and say what to do."""
    try:
        app()
    except PortalError as refusal:
        refused(refusal, as_json="--json" in sys.argv)
    except Unreachable as problem:
        end(f"{problem}. Is it running? DECISIONING_URL says where to look.")


def _portal() -> Portal:
    return Portal(*_known())


def _known() -> credentials.Known:
    try:
        return credentials.find()
    except credentials.Unknown as problem:
        end(str(problem), USAGE)


def _some_keys(begun: str) -> list[str]:
    """For the shell's completion; whatever goes wrong there, nothing is proposed."""
    try:
        with Portal(*credentials.find(), patience_s=0, timeout_s=2) as portal:
            return [row["key"] for row in portal.experiments(search=begun) if row["key"].startswith(begun)]
    except (credentials.Unknown, PortalError, Unreachable):
        return []


Key = Annotated[
    str, typer.Argument(help="The experiment's key or number.", metavar="EXPERIMENT", autocompletion=_some_keys)
]
Reason = Annotated[str, typer.Option(help="Why; it stays in the audit.")]
Team = Annotated[str | None, typer.Option(help="The team's key, where the name alone does not tell.")]
Digest = Annotated[str | None, typer.Option(help="The evidence you saw: sha256:... as `decision show` prints it.")]
Variant = Annotated[str | None, typer.Option(help="The variant whose proposal is meant, where there are several.")]
Yes = Annotated[bool, typer.Option("--yes", help="Answer what is proposed now without asking back.")]


# Getting in -----------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: decisioning login https://decisions.example.org")
def login(
    url: Annotated[str, typer.Argument(help="The portal's address.")],
    *,
    key: Annotated[str, typer.Option(help="The key; asked for when left out, so that no shell keeps it.")] = "",
) -> None:
    """Keep an address and a key for the commands to come, readable by you alone.

    The key is tried first; a wrong one is not kept. DECISIONING_URL and DECISIONING_API_KEY win over what is kept.
    """
    if not url.startswith(("http://", "https://")):
        end(f"{url} is no address. Write it with https://.", USAGE)
    key = key or (typer.prompt("API key", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()).strip()
    with Portal(url, key, patience_s=0) as portal:
        portal.get("/api/experiments", limit=1)
    say(f"Logged in to {portal.url}. Kept in {credentials.keep(portal.url, key)}.")


# Experiments ----------------------------------------------------------------------------------------------------------


@experiments.command("list", epilog="Example: decisioning experiments list --status running --recommendation scale")
def list_experiments(
    *,
    status: Annotated[str | None, typer.Option(help="draft, running, paused, scaled, deleted, stopped")] = None,
    recommendation: Annotated[str | None, typer.Option(help="scale, delete, review, hold")] = None,
    freshness: Annotated[str | None, typer.Option(help="fresh, due, late, stale, unknown")] = None,
    team: Team = None,
    owner: Annotated[str | None, typer.Option(help="Whose they are.")] = None,
    metric: Annotated[str | None, typer.Option(help="A metric they measure.")] = None,
    search: Annotated[str | None, typer.Option(help="Words in key, name, hypothesis or owner.")] = None,
    as_json: AsJson = False,
) -> None:
    """Every experiment the key may see, newest first. Filters take several words, separated by commas."""
    asked = {"status": status, "recommendation": recommendation, "freshness": freshness}
    asked |= {"team": team, "owner": owner, "metric": metric, "search": search}
    with _portal() as portal:
        found = list(portal.experiments(**asked))
    if as_json:
        print_json(found)
        return
    rows = [
        (e["key"], e["status"], _short(e["recommendation"]), e["freshness"]["state"], e["owner"], e["name"])
        for e in found
    ]
    print_table(("experiment", "status", "recommendation", "data", "owner", "name"), rows)


@experiments.command("show", epilog="Example: decisioning experiments show checkout")
def show_experiment(key: Key, *, as_json: AsJson = False) -> None:
    """One experiment: what it measures, its gates and the recommendation."""
    with _portal() as portal:
        document = portal.experiment(key)
    if as_json:
        print_json(document)
        return
    state = f"{document['status']}, data {document['freshness']['state']}, as of {document['as_of']}"
    say(f"{document['name']} ({document['key']}): {state}", document["hypothesis"], "")
    rows = [
        (k["metric"], k["role"], v["variant"], f"{v['value']:.6g}", v["n"], v["ts"])
        for k in document["kpis"]
        for v in k["values"]
    ]
    print_table(("metric", "role", "variant", "newest", "n", "at"), rows)
    say("")
    _print_gates(document["gates"])
    say("")
    print_recommendation(document["recommendation"])


@experiments.command("create", epilog="Example: decisioning experiments create plan.json")
def create_experiment(
    file: Annotated[typer.FileText, typer.Argument(help="JSON as POST /api/experiments takes it; - for stdin.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Create an experiment from a JSON file; prints its key, and on stderr what its plan has to be warned of.

    The least it needs: {"name": "...", "hypothesis": "...", "target_kpis": ["metric"]}.
    """
    with _portal() as portal:
        document = portal.create_experiment(_json_of(file))
    tell(document, document["key"], as_json=as_json)
    _warn(goal["warning"] for goal in document.get("planning", []))
    _warn(document.get("warnings", []))


@experiments.command("start", epilog="Example: decisioning experiments start checkout")
def start(key: Key, *, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let a draft run, or go on after a pause."""
    _move(key, "running", reason, as_json=as_json)


@experiments.command("pause", epilog='Example: decisioning experiments pause checkout --reason "Payment outage"')
def pause(key: Key, *, reason: Reason = "", as_json: AsJson = False) -> None:
    """Judge nothing for now; rows are still taken."""
    _move(key, "paused", reason, as_json=as_json)


@experiments.command("stop", epilog='Example: decisioning experiments stop checkout --reason "Overtaken by events"')
def stop(key: Key, *, reason: Reason = "", as_json: AsJson = False) -> None:
    """End it without a decision. This cannot be taken back."""
    _move(key, "stopped", reason, as_json=as_json)


def _move(key: str, to: str, reason: str, *, as_json: bool) -> None:
    with _portal() as portal:
        document = portal.transition(key, to, reason=reason)
    tell(document, f"{document['key']} is {document['status']}.", as_json=as_json)


# Telemetry ------------------------------------------------------------------------------------------------------------


@kpis.command("push", epilog="Example: decisioning kpis push rows.csv -e checkout")
def push_kpis(
    file: Annotated[typer.FileBinaryRead, typer.Argument(help="CSV with a header, or JSON lines; - for stdin.")],
    experiment: Annotated[str, typer.Option("--experiment", "-e", help="The experiment's key or number.")],
    *,
    atomic: Annotated[bool, typer.Option(help="All rows of a batch of 10,000 or none of it.")] = True,
    skip: Annotated[int, typer.Option(min=0, help="Leave out so many rows: where an earlier push stopped.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Send rows: metric, variant, ts, value and, where there are units, n and variance.

    Sending again is harmless: what is there already is counted and changes nothing. When it stops half way it says
    where, and how to go on from there.
    """
    sent, receipt, lines = skip, Receipt(), array("Q")

    def count(rows: int) -> None:
        nonlocal sent
        sent += rows

    def rows() -> Iterator[Json]:
        for line, row in islice(rows_of(progress), skip, None):
            lines.append(line)
            yield row

    with _says_where_it_stopped(file.name, experiment, lambda: sent), _portal() as portal, _progress(file) as progress:
        try:
            receipt = portal.push(experiment, rows(), atomic=atomic, sent=count)
        except PortalError as refusal:
            for error in refusal.errors:
                if found := re.match(r"/rows/(\d+)", str(error.get("pointer"))):
                    error["line"] = lines[sent - skip + int(found[1])]
            raise
    told: Json = {"accepted": receipt.accepted, "changed": receipt.changed, "duplicates": receipt.duplicates}
    told["refused"] = [
        {"row": skip + index + 1, "line": lines[index], "code": code, "detail": detail}
        for index, (code, detail) in sorted(receipt.refused.items())
    ]
    if as_json:
        print_json(told)
    else:
        for bad in told["refused"]:
            err().print(f"line {bad['line']}: {bad['detail']} ({bad['code']})", markup=False)
        say(f"{receipt.accepted} new, {receipt.changed} changed, {receipt.duplicates} there already")
    if receipt.refused:
        raise typer.Exit(ERROR)


@contextmanager
def _says_where_it_stopped(name: str, experiment: str, sent: Any) -> Iterator[None]:
    """Batches go in one after the other; what ends it half way says how many rows are in, and how to go on."""
    try:
        yield
    except (PortalError, Unreachable, Unreadable, KeyboardInterrupt) as problem:
        unreadable = isinstance(problem, Unreadable)
        if unreadable:
            err().print(f"{name}: {problem}", markup=False)
        if sent():
            source = "-" if name == "<stdin>" else shlex.quote(name)
            command = f"decisioning kpis push {source} -e {shlex.quote(experiment)} --skip {sent()}"
            err().print(f"{sent():,} rows are in. To go on from there: {command}", markup=False)
        if unreadable:
            raise SystemExit(USAGE) from problem
        if isinstance(problem, KeyboardInterrupt):
            raise SystemExit(130) from problem
        raise


@contextmanager
def _progress(file: Any) -> Iterator[Any]:
    """The file's lines, with a bar on stderr where somebody looks and the end is known."""
    console = err()
    if not console.is_terminal or not Path(file.name).is_file():
        yield file
        return
    from rich.progress import wrap_file

    with wrap_file(file, os.fstat(file.fileno()).st_size, console=console, description="Sending") as lines:
        yield lines


@app.command(epilog="Example: decisioning freshness --state late,stale")
def freshness(
    experiment: Annotated[
        str | None, typer.Argument(help="Only this experiment's.", metavar="EXPERIMENT", autocompletion=_some_keys)
    ] = None,
    *,
    state: Annotated[str | None, typer.Option(help="fresh, due, late, stale, unknown; several with commas")] = None,
    metric: Annotated[str | None, typer.Option(help="Only this metric.")] = None,
    team: Team = None,
    as_json: AsJson = False,
) -> None:
    """How fresh every KPI is that is being judged, and what its last refresh said."""
    asked = {"experiment": experiment, "state": state, "metric": metric, "team": team}
    with _portal() as portal:
        found = list(portal.pages("/api/freshness", limit=200, **asked))
    if as_json:
        print_json(found)
        return
    rows = [
        (
            f["state"],
            f["experiment"],
            f["metric"],
            f["data_watermark"] or "no rows",
            f["due_at"],
            f["stale_at"],
            None if f["telemetry_p95_s"] is None else f"{f['telemetry_p95_s']:,.0f} s",
            f["last_refresh_at"],
            f["source"],
            (f["last_run"] or {}).get("error") or (f["last_run"] or {}).get("status"),
        )
        for f in found
    ]
    print_table(
        ("data", "experiment", "metric", "newest", "due", "stale at", "p95", "last refresh", "source", "last run"), rows
    )


@app.command(epilog="Example: decisioning refresh orders --wait 10m")
def refresh(
    source: Annotated[str, typer.Argument(help="The source's key.")],
    *,
    wait: Wait = 0.0,
    since: Annotated[str, typer.Option(help="Read again from this time, such as 2026-11-24T06:00:00Z.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what a run would do; keep nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pull a source's rows now. With --wait the exit code says whether the run brought rows; refused ones are told."""
    again: dict[str, Any] = {"since": since} if since else {}
    with _portal() as portal:
        if dry_run:
            told = portal.post(place("sources", source, "refresh"), dry_run="true", **again)
            tell(
                told,
                f"{told['since']} to {told['until']}: {told['accepted']} new, {told['changed']} changed, "
                f"{told['duplicates']} there already, {told['refused']} refused, "
                f"{told['ignored']} of experiments that are not here",
                *told["problems"],
                as_json=as_json,
            )
            return
        told = portal.post(place("sources", source, "refresh"), **again)
        run = wait_for(lambda: _run_of(portal, told), _over, wait)
    if as_json:
        print_json(run)
    else:
        rows = "" if run.get("rows") is None else f", {run['rows']} rows"
        say(f"{source}: {run['status']}{rows} (run {run['id']})", *filter(None, [run.get("error")]))
    if _over(run) and run["status"] not in ("succeeded", "partial"):
        raise typer.Exit(ERROR)


def _run_of(portal: Portal, told: Json) -> Json:
    """The run as the refresh log has it; it is there from the moment it is asked for."""
    runs = (run for run in portal.pages("/api/refresh-log", limit=200) if run["id"] == told["run"])
    return next(runs, {"id": told["run"], "source": told["source"], "status": told["status"]})


def _over(run: Json) -> bool:
    return run["status"] in ("succeeded", "partial", "failed", "aborted")


@app.command(epilog="Example: decisioning lineage checkout")
def lineage(key: Key, *, as_json: AsJson = False) -> None:
    """Where an experiment's recommendation comes from: jobs, sources, metrics, gates, policy, evidence."""
    with _portal() as portal:
        document = portal.experiment(key)
        tracked = {f["metric"]: f for f in portal.pages("/api/freshness", limit=200, experiment=document["key"])}
        sources = {s["key"]: s for s in portal.pages("/api/sources", limit=200, team=document["team"])}
    told = _lineage(document, tracked, sources)
    if as_json:
        print_json(told)
        return
    rows = [
        (
            (k["source"] or {}).get("lineage_job") or "",
            (k["source"] or {}).get("key") or "pushed",
            k["metric"],
            k["role"],
            k["state"],
            k["data_watermark"] or "no rows",
            (k["last_run"] or {}).get("status"),
        )
        for k in told["kpis"]
    ]
    print_table(("job", "source", "metric", "role", "data", "newest", "last run"), rows)
    found = told["recommendation"]
    policy_ = found["policy"] or {"name": "none", "version": 0}
    say(f"gates {', '.join(told['gates']) or 'none yet'}", f"policy {policy_['name']} {policy_['version']}")
    say(f"{found['action']} {found['code']}, evidence {found['evidence_digest'] or 'none yet'}")


def _lineage(document: Json, tracked: dict[str, Json], sources: dict[str, Json]) -> Json:
    kpis_ = []
    for kpi in document["kpis"]:
        beside = tracked.get(kpi["metric"], {})
        source = sources.get(beside.get("source") or "")
        kpis_.append({
            "metric": kpi["metric"],
            "role": kpi["role"],
            "state": kpi["freshness"]["state"],
            "data_watermark": kpi["freshness"]["data_watermark"],
            "source": source and {name: source[name] for name in ("key", "kind", "lineage_job")},
            "last_run": beside.get("last_run"),
        })  # fmt: skip
    told = {name: document["recommendation"][name] for name in ("action", "code", "state", "policy", "evidence_digest")}
    gates_ = sorted({gate["gate"] for gate in document["gates"]})
    head = {"experiment": document["key"], "as_of": document["as_of"]}
    return {**head, "kpis": kpis_, "gates": gates_, "recommendation": told}


@app.command(epilog="Example: decisioning slo")
def slo(*, as_json: AsJson = False) -> None:
    """What the portal promises, what it keeps, and what is left of the budgets."""
    with _portal() as portal:
        found = portal.get("/api/slo")
    if as_json:
        print_json(found)
        return
    rows = []
    for name, promise in found.items():
        if isinstance(promise, dict) and "holds" in promise:
            measured, target = _measured(promise)
            holds = {True: "yes", False: "no", None: "nothing to judge"}[promise["holds"]]
            left = "" if promise["budget_left"] is None else f"{promise['budget_left']:.0%}"
            rows.append((name.replace("_", " "), measured, target, holds, left))
    say(f"As of {found['as_of']}, over {found['window_days']} days")
    print_table(("promise", "measured", "target", "kept", "budget left"), rows)
    days = found["days_to_decide"]
    if days["counted"]:
        say(
            f"{days['median']:.1f} days by median from the first look that could be read to a proposal; {days['waiting']} wait for one."
        )
    answers = found["answers"]
    say(f"{answers['open']} proposals wait for an answer, {answers['overdue']} for longer than they should.")


def _measured(promise: Json) -> tuple[str, str]:
    if "p95_s" in promise:
        return "" if promise["p95_s"] is None else f"p95 {promise['p95_s']:.0f} s", f"{promise['target_s']} s"
    return "" if promise["share"] is None else f"{promise['share']:.1%}", f"{promise['target']:.1%}"


# Decisions ------------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: decisioning gates checkout")
def gates(key: Key, *, as_json: AsJson = False) -> None:
    """What each gate says, on which reading and why."""
    with _portal() as portal:
        found = portal.get(place("experiments", key, "gates"))
    if as_json:
        print_json(found)
        return
    _print_gates(found["results"])


@decision.command("show", epilog="Example: decisioning decision show checkout --wait 24h && ./deploy.sh")
def show_decision(
    key: Key,
    *,
    wait: Wait = 0.0,
    answered: Annotated[bool, typer.Option("--answered", help="Until a person answers, it is a hold.")] = False,
    as_json: AsJson = False,
) -> None:
    """The recommendation, by exit code too: scale 0, hold 10, review 11, delete 12; an error is 1.

    What people answered wins over what was proposed. --wait waits for as long as it is a hold.
    """
    with _portal() as portal:
        found = wait_for(lambda: portal.decision(key), lambda found: acts_on(found, answered=answered) != "hold", wait)
    if as_json:
        print_json(found)
    else:
        print_recommendation(found["recommendation"])
        if given := found["decision"]:
            to = f" to {given['override_to']}" if given["override_to"] else ""
            say(f"Answered: {given['action']}{to} by {given['by']} at {given['at']}")
            if now := given.get("would_now"):
                say(f"Decided on older data: the gates would now say {now['action']} ({now['code']}).")
    raise typer.Exit(EXIT_CODES[acts_on(found, answered=answered)])


@decision.command("accept", epilog="Example: decisioning decision accept checkout --digest sha256:0f3a...")
def accept(
    key: Key, *, digest: Digest = None, variant: Variant = None, yes: Yes = False, as_json: AsJson = False
) -> None:
    """Accept what is proposed, naming the evidence you saw; a newer proposal in between is refused."""
    _answer(key, digest, variant, {"action": "accept"}, yes=yes, as_json=as_json)


@decision.command(
    "override", epilog='Example: decisioning decision override checkout hold --reason "Campaign next week" --yes'
)
def override(
    key: Key,
    to: Annotated[str, typer.Argument(help="scale, delete, stop or hold")],
    *,
    reason: Annotated[str, typer.Option(help="Why the evidence does not settle it. It is required.")],
    digest: Digest = None,
    variant: Variant = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Decide otherwise than proposed, and say why."""
    said = {"action": "override", "override_to": to, "reason": reason}
    _answer(key, digest, variant, said, yes=yes, as_json=as_json)


def _answer(
    key: str, digest: str | None, variant: str | None, said: dict[str, str], *, yes: bool, as_json: bool
) -> None:
    with _portal() as portal:
        if digest is None:
            digest = _seen(portal.decision(key), variant, said, yes=yes)
        given = portal.answer(key, digest, **said)
    tell(given, f"{given['experiment']} is {given['status']}, by {given['by']}.", as_json=as_json)


def _seen(found: Json, variant: str | None, said: dict[str, str], *, yes: bool) -> str:
    """The digest of the proposal that is shown here and now, once a person or --yes has said that it is meant."""
    told = found["recommendation"]
    if variant is not None:
        named = {each["variant"]: each for each in found["variants"]}
        if variant not in named:
            end(f"{found['experiment']} has no variant {variant!r} to answer for: {', '.join(named)}.", USAGE)
        told = named[variant]
    if not told["evidence_digest"]:
        end("Nothing was judged yet, so there is nothing to answer.")
    if not yes:
        if not sys.stdin.isatty():
            end("Say which evidence you saw with --digest, or --yes for whatever is proposed now.", USAGE)
        print_recommendation(told)
        typer.confirm(f"{said['action']} {said.get('override_to', told['action'])}?", abort=True)
    return str(told["evidence_digest"])


# Policies -------------------------------------------------------------------------------------------------------------

Name = Annotated[str, typer.Argument(help="The policy's name.", metavar="POLICY")]
Version = Annotated[int | None, typer.Argument(help="Its newest version when left out.", metavar="VERSION")]
Body = Annotated[typer.FileText, typer.Argument(help="The policy's body as JSON; - for stdin.", metavar="FILE")]


@policy.command("lint", epilog="Example: decisioning policy lint careful.json")
def lint(
    file: Body,
    *,
    version_of: Annotated[str | None, typer.Option("--for", help="As the next version of this policy.")] = None,
    team: Team = None,
    as_json: AsJson = False,
) -> None:
    """Say everything that is wrong with a policy, gate by gate; nothing is kept."""
    body = _json_of(file)
    with _portal() as portal:
        if version_of:
            told = portal.post(
                place("policies", version_of, "versions"), {"body": body}, dry_run="true", **_named(team)
            )
        else:
            asked = {"name": f"lint-{secrets.token_hex(4)}", "body": body, **_named(team)}
            told = portal.post("/api/policies", asked, dry_run="true")["versions"][0]
    gates_ = told["body"]["gates"]
    tell({"valid": True, "gates": len(gates_)}, f"Nothing is wrong: {len(gates_)} gates.", as_json=as_json)
    _warn(told.get("warnings", []))


@policy.command("add", epilog="Example: decisioning policy add careful careful.json")
def add(name: Name, file: Body, *, team: Team = None, as_json: AsJson = False) -> None:
    """Keep a policy, or the next version of one that is there. A later version waits for a backtest and for another person."""
    body = _json_of(file)
    with _portal() as portal:
        try:
            told = portal.post(place("policies", name, "versions"), {"body": body}, **_named(team))
        except PortalError as refusal:
            if refusal.status != 404:
                raise
            told = portal.post("/api/policies", {"name": name, "body": body, **_named(team)})["versions"][0]
    judges = "judges from now on" if told["activated_at"] else f"waits: decisioning policy backtest {name}"
    tell(told, f"{name} {told['version']} {judges}", as_json=as_json)
    _warn(told.get("warnings", []))


@policy.command("backtest", epilog="Example: decisioning policy backtest careful --wait 10m")
def backtest(
    name: Name, version: Version = None, *, team: Team = None, wait: Wait = 600.0, as_json: AsJson = False
) -> None:
    """Hold a version against what is live, over the team's recorded experiments: what would have been decided, and when."""
    with _portal() as portal:
        number = _number(portal, name, version, team)
        where = place("policies", name, "versions", number, "backtest")
        portal.post(where, **_named(team))
        found = wait_for(lambda: portal.get(where, team=team), lambda found: found["state"] != "queued", wait)
    if as_json:
        print_json(found)
    elif found["state"] == "finished":
        say(f"{name} {number}: {_outcome(found)}", f"To let it judge: decisioning policy activate {name} {number}")
    else:
        say(f"{name} {number}: {found['state']}", *filter(None, [found["error"]]))
    if found["state"] == "failed":
        raise typer.Exit(ERROR)


@policy.command("activate", epilog="Example: decisioning policy activate careful 2")
def activate(name: Name, version: Version = None, *, team: Team = None, as_json: AsJson = False) -> None:
    """Let a version judge. It needs a finished backtest, and somebody other than its author."""
    with _portal() as portal:
        number = _number(portal, name, version, team)
        told = portal.post(place("policies", name, "versions", number, "activate"), **_named(team))
    tell(told, f"{name} {number} judges since {told['activated_at']}.", as_json=as_json)


def _number(portal: Portal, name: str, version: int | None, team: str | None) -> int:
    return version or int(portal.get(place("policies", name), team=team)["versions"][0]["version"])


def _named(team: str | None) -> Json:
    return {"team": team} if team else {}


def _outcome(found: Json) -> str:
    agreement = "" if found["agreement"] is None else f", agrees with people in {found['agreement']:.0%}"
    days = "" if found["days_saved"] is None else f", {found['days_saved']:+.1f} days saved"
    of = f"{len(found['experiments'])} experiments"
    return f"{of}: {found['flips']} flips, {found['gained']} gained, {found['lost']} lost{days}{agreement}"


# Watching -------------------------------------------------------------------------------------------------------------


@events.command("tail", epilog="Example: decisioning events tail --json | jq .type")
def tail(
    experiment: Annotated[
        str | None, typer.Argument(help="Only this experiment.", metavar="EXPERIMENT", autocompletion=_some_keys)
    ] = None,
    *,
    every: Annotated[float, typer.Option(parser=seconds, metavar="TIME", help="How often to look.")] = 5.0,
    for_: Annotated[float | None, typer.Option("--for", parser=seconds, metavar="TIME", help="End after this.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what changes from now on: proposals, answers, data that goes stale or comes back, guards that fail.

    It looks at the board again and again; what comes and goes between two looks is not seen. Webhooks miss nothing.
    """
    until = time.monotonic() + for_ if for_ is not None else float("inf")
    with _portal() as portal:
        before = _board(portal, experiment)
        while time.monotonic() < until:
            time.sleep(max(0.0, min(every, until - time.monotonic())))
            try:
                after = _board(portal, experiment)
            except Unreachable as problem:
                err().print(f"{problem}. Looking again.", markup=False)
                continue
            for event in news(before, after):
                print_line(event) if as_json else say(_sentence(event))
            before = after


def _board(portal: Portal, experiment: str | None) -> dict[str, Json]:
    rows = [portal.experiment(experiment)] if experiment else portal.experiments()
    return {row["key"]: row for row in rows}


def _sentence(event: Json) -> str:
    rest = {name: value for name, value in event.items() if name not in ("type", "experiment", "as_of")}
    words = " ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in rest.items())
    return f"{event['as_of']} {event['type']} {event['experiment']} {words}"


# For agents -----------------------------------------------------------------------------------------------------------


@app.command("mcp", epilog="Example: decisioning mcp --http --port 8100")
def serve_agents(
    *,
    http: Annotated[bool, typer.Option("--http", help="Over HTTP at /mcp instead of stdin and stdout.")] = False,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8100,
    name: Annotated[
        list[str] | None, typer.Option(help="A name by which it may be called; needed beyond this machine. Repeatable.")
    ] = None,
) -> None:
    """Serve agents over the Model Context Protocol: they look, create, measure and backtest; they never decide.

    Give it an agent's key: `manage.py create_key --team T --scopes experiments:read,experiments:write,telemetry:write --agent`.
    Over HTTP callers may send a key of their own as Authorization: Bearer; the kept one is lent on this machine only.
    """
    from decisioning.agents import mcp_server

    url, key = _known()
    if not http:
        mcp_server.serve(url, key)
        return
    if host not in mcp_server.LOOPBACK and not name:
        end(f"{host} is not this machine alone: say with --name by which names it may be called.", USAGE)
    mcp_server.serve_http(url, key, host=host, port=port, names=name or ())


# Shown and read in several places -------------------------------------------------------------------------------------


def _short(told: Json) -> str:
    return f"{told['action']} {told['code']}" + ("" if told["state"] in ("open", "proposed") else f" ({told['state']})")


def _print_gates(found: list[Json]) -> None:
    rows = []
    for gate in found:
        reading = gate["reading"] or {}
        told = ""
        if isinstance(estimate := reading.get("estimate"), int | float):
            told = f"{estimate:+.4g}"
            if isinstance(reading.get("lower"), int | float) and isinstance(reading.get("upper"), int | float):
                told += f" ({reading['lower']:+.4g} to {reading['upper']:+.4g})"
        rows.append((gate["gate"], gate["variant"], gate["verdict"], told, gate.get("reason", "")))
    print_table(("gate", "variant", "verdict", "reading", "reason"), rows)


def _warn(lines: Iterable[str | None]) -> None:
    """On stderr, what was taken and yet needs a second look."""
    for line in filter(None, lines):
        err().print(line, markup=False)


def _json_of(file: Any) -> Any:
    try:
        return json.load(file)
    except ValueError as problem:
        end(f"{file.name} is no JSON: {problem}", USAGE)
