"""`decisioning mcp`: the portal for agents, over the Model Context Protocol. Agents measure and propose; people decide.

No tool answers a decision or activates a policy, and the portal would refuse an agent's key that tried. Answers are short JSON
that says as of when it holds and which call helps next; the whole of a thing is there on request, as `detail` or as a resource.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import httpx
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import ToolAnnotations

from decisioning.agents.client import Json, Portal, PortalError, Unreachable, place
from decisioning.agents.terminal import wait_for

SUMMARY_BYTES = 2_000
LONGEST_WAIT_S = 60
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_INSTRUCTIONS = (
    "A decision portal. Experiments get KPI rows, gates judge them, and it proposes scale, delete or review; hold means wait, and "
    "says for what. Never act on a proposal as if it were a decision: a person answers it on the board. Begin with "
    "list_experiments or create_experiment; each answer names the next useful call."
)
_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_ADDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False)
_ADDS_ONCE = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)


def serve(url: str, key: str) -> None:
    """Over stdin and stdout, until the client goes."""
    server(url, key).run("stdio")


def serve_http(url: str, key: str, *, host: str, port: int, names: Sequence[str] = ()) -> None:
    """Over streamable HTTP at /mcp. Callers bring a key of their own; `key` is lent to those who bring none on loopback only.

    names: under which names it may be called (the Host header) when it is not bound to loopback; without them a page in
    somebody's browser could reach it under a name of its own.
    """
    local = host in LOOPBACK
    security = None  # on loopback the library takes loopback names alone
    if not local:
        hosts = [known for name in names for known in (name, f"{name}:*")]
        security = TransportSecuritySettings(
            allowed_hosts=hosts,
            allowed_origins=[f"{scheme}://{known}" for scheme in ("http", "https") for known in hosts],
        )
    server(url, key if local else "").run(
        "streamable-http", host=host, port=port, json_response=True, stateless_http=True, transport_security=security
    )


def server(url: str, key: str, *, transport: httpx.BaseTransport | None = None) -> MCPServer[Any]:
    """The server with its tools and resources; `key` is used for callers that bring none, "" for none."""
    mcp: MCPServer[Any] = MCPServer("decisioning", instructions=_INSTRUCTIONS, log_level="WARNING")
    tools = Tools(url, key, transport)
    for annotations, group in (
        (_READS, (tools.list_experiments, tools.get_experiment, tools.get_decision, tools.explain_gate)),
        (_READS, (tools.get_freshness,)),
        (_ADDS, (tools.create_experiment,)),
        (_ADDS_ONCE, (tools.push_kpis, tools.backtest_policy)),
    ):
        for tool in group:
            mcp.tool(annotations=annotations, structured_output=False)(tool)
    for uri, resource in (
        ("decisioning://experiments/{key}", tools.experiment),
        ("decisioning://decisions/{key}", tools.decision),
        ("decisioning://policies/{name}", tools.policy),
    ):
        mcp.resource(uri, mime_type="application/json")(resource)
    return mcp


def _refusing[**Asked](kind: type[Exception]) -> Callable[[Callable[Asked, str]], Callable[Asked, str]]:
    """Let the portal's refusals reach the model in the portal's own words."""

    def decorate(tool: Callable[Asked, str]) -> Callable[Asked, str]:
        @functools.wraps(tool)
        def refusing(*args: Asked.args, **options: Asked.kwargs) -> str:
            try:
                return tool(*args, **options)
            except PortalError as refusal:
                raise kind(str(refusal)) from refusal
            except Unreachable as problem:
                raise kind(f"{problem}. Try again later.") from problem

        return refusing

    return decorate


_tool, _resource = _refusing(ToolError), _refusing(ResourceError)


class Tools:
    """What an agent may ask, each a call or two to the portal with the caller's own key."""

    def __init__(self, url: str, key: str, transport: httpx.BaseTransport | None) -> None:
        self._url, self._key, self._transport = url, key, transport

    def _portal(self, ctx: Context[Any, Any]) -> Portal:
        brought = (ctx.headers or {}).get("authorization", "")
        kind, _, secret = brought.partition(" ")
        key = secret.strip() if kind.lower() == "bearer" else self._key
        if not key:
            raise PortalError(401, "not_authenticated", "Send your own key of the portal: Authorization: Bearer dk_...")
        return Portal(self._url, key, patience_s=10, transport=self._transport)

    @_tool
    def list_experiments(
        self,
        ctx: Context[Any, Any],
        status: str | None = None,
        recommendation: str | None = None,
        freshness: str | None = None,
        search: str | None = None,
        limit: int = 10,
        cursor: str | None = None,
    ) -> str:
        """Experiments, newest first, a line each.

        status: draft, running, paused, scaled, deleted, stopped. recommendation: scale, delete, review, hold. freshness: fresh,
        due, late, stale, unknown. Several words with commas. search: words in key, name, hypothesis or owner. limit: at most 50.
        """
        asked = {"status": status, "recommendation": recommendation, "freshness": freshness, "search": search}
        with self._portal(ctx) as portal:
            page = portal.get("/api/experiments", limit=max(1, min(limit, 50)), cursor=cursor, **asked)
        found = [
            {
                "experiment": e["key"],
                "status": e["status"],
                "recommendation": _word(e["recommendation"]),
                "data": e["freshness"]["state"],
            }
            for e in page["results"]
        ]
        told: Json = {"as_of": max((e["as_of"] for e in page["results"]), default=None), "experiments": found}
        if page["next"]:
            told["more"] = httpx.URL(page["next"]).params["cursor"]
        told["next"] = "get_experiment(experiment)" if found else "create_experiment(...), or other filters"
        return _json(told)

    @_tool
    def get_experiment(self, ctx: Context[Any, Any], experiment: str, *, detail: bool = False) -> str:
        """One experiment by key or number: status, data, gates that do not pass, recommendation. detail: all there is, large."""
        with self._portal(ctx) as portal:
            document = portal.experiment(experiment)
            board = portal.url + document["links"]["board"]
        if detail:
            return _json(document)
        open_gates = [gate for gate in document["gates"] if gate["verdict"] != "pass"]
        told = {
            "experiment": document["key"],
            "name": document["name"],
            "hypothesis": document["hypothesis"],
            "status": document["status"],
            "as_of": document["as_of"],
            "stale": document["stale"],
            "data": document["freshness"]["state"],
            "data_watermark": document["freshness"]["data_watermark"],
            "kpis": [f"{k['metric']} ({k['role']}): {k['freshness']['state']}" for k in document["kpis"]],
            "gates_passing": len(document["gates"]) - len(open_gates),
            "gates_not_passing": [_gate(gate) for gate in open_gates],
            "recommendation": _told(document["recommendation"]),
            "board": board,
        }
        return _short(told, _next_of(document, open_gates))

    @_tool
    def get_decision(self, ctx: Context[Any, Any], experiment: str, wait_s: int = 0) -> str:
        """What is recommended and why, per variant, and what a person answered.

        wait_s: wait so many seconds, at most 60, for as long as it is a hold; rows are judged within seconds of their arrival.
        """
        with self._portal(ctx) as portal:
            found = wait_for(
                lambda: portal.decision(experiment),
                lambda found: found["recommendation"]["action"] != "hold",
                max(0, min(wait_s, LONGEST_WAIT_S)),
            )
            board = f"{portal.url}/experiments/{found['experiment']}"
        told = {
            "experiment": found["experiment"],
            "as_of": found["as_of"],
            "stale": found["stale"],
            "recommendation": _told(found["recommendation"]),
            "variants": [f"{each['variant']}: {_word(each)}" for each in found["variants"]],
            "answered": found["decision"],
        }
        state = found["recommendation"]["state"]
        next_ = f"get_decision({experiment!r}, wait_s=60), or get_experiment for what it waits for"
        if state == "proposed":
            next_ = f"a person answers at {board}; resource decisioning://decisions/{found['experiment']} has it all"
        elif state == "suspended":
            next_ = f"get_freshness({experiment!r}): its data has died"
        elif state == "answered":
            next_ = "nothing: a person has answered"
        return _short(told, next_)

    @_tool
    def explain_gate(self, ctx: Context[Any, Any], experiment: str, gate: str, variant: str | None = None) -> str:
        """Why one gate says what it says: verdict, reading, reason, and the policy's rule behind it."""
        with self._portal(ctx) as portal:
            document = portal.experiment(experiment)
            named = [g for g in document["gates"] if g["gate"] == gate and variant in (None, g["variant"])]
            if not named:
                there = ", ".join(sorted({g["gate"] for g in document["gates"]})) or "none before the first look"
                raise ToolError(f"{document['key']} has no such gate. There: {there}.")
            policy = document["recommendation"]["policy"]
            rule = _rule(portal, policy, document["team"], gate) if policy else None
        told = {
            "experiment": document["key"],
            "as_of": document["as_of"],
            "gate": gate,
            "policy": policy,
            "rule": rule,
            "verdicts": [
                {name: g.get(name) for name in ("variant", "verdict", "reason", "since", "reading")} for g in named
            ],
        }
        stale = any(g["verdict"] in ("stale", "no_data") for g in named)
        return _short(told, f"get_freshness({experiment!r})" if stale else f"get_decision({experiment!r})")

    @_tool
    def get_freshness(self, ctx: Context[Any, Any], experiment: str | None = None, state: str | None = None) -> str:
        """How fresh the data is of every KPI that is judged, the worst first. state: fresh, due, late, stale, unknown."""
        with self._portal(ctx) as portal:
            found = list(portal.pages("/api/freshness", limit=200, experiment=experiment, state=state))
            as_of = portal.answered_at
        worst_first = sorted(found, key=lambda f: ("stale", "unknown", "late", "due", "fresh").index(f["state"]))
        kpis = [
            {
                "experiment": f["experiment"],
                "metric": f["metric"],
                "state": f["state"],
                "data_watermark": f["data_watermark"],
                "stale_at": f["stale_at"],
                **({"source": f["source"]} if f["source"] else {}),
                **({"error": f["last_run"]["error"]} if (f["last_run"] or {}).get("error") else {}),
            }
            for f in worst_first
        ]
        bad = [f for f in worst_first if f["state"] != "fresh"]
        next_ = f"push_kpis({bad[0]['experiment']!r}, rows) with {bad[0]['metric']}" if bad else "nothing: all is fresh"
        return _short({"as_of": as_of, "tracked": len(found), "kpis": kpis}, next_)

    @_tool
    def create_experiment(
        self,
        ctx: Context[Any, Any],
        name: str,
        hypothesis: str,
        target_kpis: list[str | dict[str, Any]],
        key: str | None = None,
        team: str | None = None,
        policy: str | None = None,
        started_at: str | None = None,
        expected_units_per_day: float | None = None,
        variants: list[str | dict[str, Any]] | None = None,
    ) -> str:
        """Create an experiment; it runs at once and has a page, gates and a log.

        target_kpis: metric keys (a goal each) or objects {"metric": key or {"key", "name", "kind": "mean" | "proportion" | "ratio" |
        "gauge", "direction": "increase" | "decrease", "expected_every_s", "freshness_target_s"}, "role": "goal" | "guardrail" | "shown",
        "minimum_effect": 0.02, "max_harm": 0.05}. One goal at least, and a guardrail for what must not be hurt. started_at: RFC 3339 with
        an offset, may lie in the past when rows do. variants: control and treatment when left out.
        """
        said: Json = {"name": name, "hypothesis": hypothesis, "target_kpis": target_kpis, "key": key, "team": team}
        said |= {"policy": policy, "started_at": started_at, "expected_units_per_day": expected_units_per_day}
        said["variants"] = variants
        with self._portal(ctx) as portal:
            document = portal.create_experiment({word: value for word, value in said.items() if value is not None})
            board = portal.url + document["links"]["board"]
        told = {
            "experiment": document["key"],
            "as_of": document["as_of"],
            "status": document["status"],
            "variants": [variant["key"] for variant in document["variants"]],
            "kpis": [f"{k['metric']} ({k['role']})" for k in document["kpis"]],
            "policy": document["recommendation"]["policy"],
            "board": board,
            **({"warnings": document["warnings"]} if document.get("warnings") else {}),
        }
        return _short(told, f"push_kpis({document['key']!r}, rows)")

    @_tool
    def push_kpis(self, ctx: Context[Any, Any], experiment: str, rows: list[dict[str, Any]]) -> str:
        """Send rows: {"metric", "variant", "ts", "value", "n", "variance"}; all of them or none. Sending again changes nothing.

        ts: the END of the time the row covers, RFC 3339 with an offset. n: the independent units in it. variance: of one unit's
        value, for kind mean. Without n (and variance) a goal cannot be judged.
        """
        with self._portal(ctx) as portal:
            receipt = portal.push(experiment, rows)
            as_of = portal.answered_at
        told = {
            "experiment": experiment,
            "as_of": as_of,
            "new": receipt.accepted,
            "changed": receipt.changed,
            "there_already": receipt.duplicates,
        }
        return _short(told, f"get_decision({experiment!r}, wait_s=30)")

    @_tool
    def backtest_policy(
        self, ctx: Context[Any, Any], policy: str, version: int | None = None, team: str | None = None, wait_s: int = 30
    ) -> str:
        """What a policy version would have decided over recorded experiments, beside what is live: flips, gained, lost, days saved.

        Shows the newest backtest. Where there is none yet it asks for one, which needs a key that may write policies; an agent's
        key cannot, then a person asks. Nothing is activated: a person does that too. wait_s: at most 60.
        """
        named = {"team": team} if team else {}
        with self._portal(ctx) as portal:
            number = version or portal.get(place("policies", policy), team=team)["versions"][0]["version"]
            where = place("policies", policy, "versions", number, "backtest")
            try:
                portal.get(where, team=team)
            except PortalError as refusal:
                if refusal.code != "not_found":
                    raise
                _ask_for_backtest(portal, where, named, f"decisioning policy backtest {policy} {number}")
            found = wait_for(
                lambda: portal.get(where, team=team),
                lambda found: found["state"] != "queued",
                max(0, min(wait_s, LONGEST_WAIT_S)),
            )
        told = {
            "policy": policy,
            "version": number,
            "as_of": found["finished_at"] or found["asked_at"],
            **{name: found[name] for name in ("state", "flips", "gained", "lost", "days_saved", "agreement", "error")},
            "experiments": found["experiments"],
        }
        next_ = f"backtest_policy({policy!r}, {number}) again in a minute"
        if found["state"] == "finished":
            next_ = f"a person lets it judge: decisioning policy activate {policy} {number}"
        return _short(told, next_)

    @_resource
    def experiment(self, ctx: Context[Any, Any], key: str) -> str:
        """The whole document of an experiment."""
        with self._portal(ctx) as portal:
            return _json(portal.experiment(key))

    @_resource
    def decision(self, ctx: Context[Any, Any], key: str) -> str:
        """The recommendation of an experiment, per variant, with every reason, and what was answered."""
        with self._portal(ctx) as portal:
            return _json(portal.decision(key))

    @_resource
    def policy(self, ctx: Context[Any, Any], name: str) -> str:
        """A policy with all its versions."""
        with self._portal(ctx) as portal:
            return _json(portal.get(place("policies", name)))


def _ask_for_backtest(portal: Portal, where: str, named: Json, command: str) -> None:
    try:
        portal.post(where, **named)
    except PortalError as refusal:
        if refusal.status != 403:
            raise
        raise ToolError(
            f"{refusal}. There is no backtest yet and this key may not ask for one: a person runs `{command}`."
        ) from refusal


def _next_of(document: Json, open_gates: Sequence[Json]) -> str:
    key, told = document["key"], document["recommendation"]
    if document["status"] == "draft":
        return f"a person starts it: decisioning experiments start {key}"
    if document["freshness"]["state"] in ("stale", "unknown") and document["status"] == "running":
        return f"get_freshness({key!r})"
    if told["state"] in ("proposed", "answered") or not open_gates:
        return f"get_decision({key!r})"
    return f"explain_gate({key!r}, {open_gates[0]['gate']!r})"


def _rule(portal: Portal, policy: Json, team: str, gate: str) -> Json | None:
    """The entry of the policy's body that the gate was made of; None for the gates that every experiment has."""
    found = [
        p for p in portal.pages("/api/policies", limit=200) if p["name"] == policy["name"] and p["team"] in (team, None)
    ]
    own_first = sorted(found, key=lambda p: p["team"] is None)
    versions = own_first[0]["versions"] if own_first else []
    bodies = [version["body"] for version in versions if version["version"] == policy["version"]]
    for rule in [rule for body in bodies for rule in body["gates"]]:
        if re.fullmatch(re.escape(rule["name"]).replace(r"\{metric\}", ".+"), gate):
            return dict(rule)
    return None


def _word(told: Json) -> str:
    return f"{told['action']} {told['code']} ({told['state']})"


def _told(told: Json) -> Json:
    names = ("action", "code", "state", "variant", "rationale", "blockers", "policy", "evidence_digest")
    return {name: told[name] for name in names}


def _gate(gate: Json) -> str:
    of = f" of {gate['variant']}" if gate["variant"] else ""
    return f"{gate['gate']}{of}: {gate['verdict']}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _short(told: Json, next_: str) -> str:
    """As JSON of at most SUMMARY_BYTES: long texts and lists are cut, the more the less fits, and say that they are."""
    for items, letters in ((12, 400), (6, 240), (4, 160), (3, 120), (2, 90), (1, 80)):
        text = _json({**_cut(told, items, letters), "next": next_})
        if len(text.encode()) <= SUMMARY_BYTES:
            return text
    return _json({name: told[name] for name in ("experiment", "as_of") if name in told} | {"next": next_})


def _cut(value: Any, items: int, letters: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= letters else value[: letters - 1] + "…"
    if isinstance(value, list):
        more = [f"and {len(value) - items} more"] if len(value) > items else []
        return [_cut(each, items, letters) for each in value[:items]] + more
    if isinstance(value, dict):
        return {name: _cut(each, items, letters) for name, each in value.items()}
    return value
