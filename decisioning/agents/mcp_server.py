"""`decisioning mcp`: the portal for agents, over the Model Context Protocol. Agents measure and propose; people decide.

No tool answers a decision or activates a policy, and the portal would refuse an agent's key that tried. Answers are short JSON
that says as of when it holds and which call helps next, as text and structured, in SUMMARY_BYTES at most; the whole of a thing is a resource.
"""

import functools
import importlib.metadata
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Annotated, Any, Literal

import httpx
import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceError, ResourceNotFoundError, ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolResult, TextContent, ToolAnnotations
from pydantic import Field, WithJsonSchema
from starlette.responses import PlainTextResponse

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
Status = Literal["draft", "running", "paused", "scaled", "deleted", "stopped"]
Action = Literal["scale", "delete", "review", "hold"]
Fresh = Literal["fresh", "due", "late", "stale", "unknown"]
Ref = Annotated[str | int, Field(description="Key or number of the experiment.")]
_EXPECTED: Json = {
    "type": "object",
    "description": "How often its data comes. Gates and alarms count by it; left out it means every 15 minutes.",
    "properties": {
        "every_s": {"type": "integer", "description": "Seconds, alone."},
        "cron": {"type": "string", "description": "Five fields, such as 0 6 * * 1-5, with timezone."},
        "every": {"enum": ["hourly", "daily", "weekdays", "weekly", "monthly"]},
        "at": {"type": "string", "description": "Time of day as 06:00, up to 24:00; of hourly the minute, as :10."},
        "on": {"description": "Of weekly the weekday, such as monday; of monthly 1 to 28 or last."},
        "timezone": {"type": "string", "description": "Whose clocks, such as Europe/Berlin; UTC when left out."},
    },
}
_METRIC: Json = {
    "type": "object",
    "properties": {
        "key": {"type": "string"},
        "name": {"type": "string"},
        "kind": {"enum": ["mean", "proportion", "ratio", "gauge"]},
        "direction": {"enum": ["increase", "decrease"]},
        "expected": _EXPECTED,
        "expected_every_s": {"type": "integer"},
        "freshness_target_s": {"type": "integer"},
    },
    "required": ["key"],
}
_KPI: Json = {
    "type": "object",
    "properties": {
        "metric": {"anyOf": [{"type": "string"}, _METRIC]},
        "role": {"enum": ["goal", "guardrail", "shown"]},
        "minimum_effect": {"type": "number"},
        "max_harm": {"type": "number"},
        "plausible_to": {"type": "number"},
    },
    "required": ["metric"],
}
TargetKpi = Annotated[str | dict[str, Any], WithJsonSchema({"anyOf": [{"type": "string"}, _KPI]})]
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
    known = ("127.0.0.1", "localhost", "[::1]") if local else tuple(names)
    hosts = [form for name in known for form in (name, f"{name}:*")]
    security = TransportSecuritySettings(
        allowed_hosts=hosts, allowed_origins=[f"{scheme}://{form}" for scheme in ("http", "https") for form in hosts]
    )
    app = server(url, key if local else "").streamable_http_app(
        json_response=True, stateless_http=True, host=host, transport_security=security
    )
    uvicorn.run(_Named(app, known), host=host, port=port, log_level="warning")


type _Scope = MutableMapping[str, Any]
type _Receive = Callable[[], Awaitable[_Scope]]
type _Send = Callable[[_Scope], Awaitable[None]]


class _Named:
    """Says of a Host that is none of ours what to do, before the library says no more than that it is invalid."""

    def __init__(self, app: Callable[[_Scope, _Receive, _Send], Awaitable[None]], names: Sequence[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        host = next((value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"host"), "")
        if scope["type"] == "http" and re.sub(r":\d+$", "", host) not in self._names:
            said = (
                f"This server is not called {host[:200]!r}. It is called {', '.join(self._names)}; to call it by another name start it "
                "with --host 0.0.0.0 --name NAME."
            )
            return await PlainTextResponse(said, status_code=421)(scope, receive, send)
        return await self._app(scope, receive, send)


def server(url: str, key: str, *, transport: httpx.BaseTransport | None = None) -> MCPServer[Any]:
    """The server with its tools and resources; `key` is used for callers that bring none, "" for none."""
    tools = Tools(url, key, transport)
    reads = (
        tools.list_experiments, tools.get_experiment, tools.get_decision, tools.explain_gate, tools.forecast, tools.get_freshness,
        tools.list_sources, tools.list_metrics, tools.get_schedule, tools.list_policies,
    )  # fmt: skip
    offered = [
        _strict(tool, annotations)
        for annotations, group in (
            (_READS, reads),
            (_ADDS, (tools.create_experiment,)),
            (_ADDS_ONCE, (tools.push_kpis, tools.backtest_policy)),
        )
        for tool in group
    ]
    mcp = _Server(
        "decisioning",
        instructions=_INSTRUCTIONS,
        log_level="WARNING",
        version=importlib.metadata.version("decisioning"),
        tools=offered,
    )
    for uri, resource in (
        ("decisioning://experiments/{key}", tools.experiment),
        ("decisioning://decisions/{key}", tools.decision),
        ("decisioning://policies/{name}", tools.policy),
    ):
        mcp.resource(uri, mime_type="application/json")(resource)
    return mcp


class _Server(MCPServer[Any]):
    async def call_tool(self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None) -> Any:
        """A tool that is not there is the protocol's own error; what a tool refuses is short."""
        if name not in {tool.name for tool in await self.list_tools()}:
            raise MCPError(code=INVALID_PARAMS, message=f"Unknown tool: {name[:100]}")
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as refusal:
            raise type(refusal)(_fitting(str(refusal))) from refusal.__cause__


def _strict(tool: Callable[..., CallToolResult], annotations: ToolAnnotations) -> Tool:
    """A tool that takes no argument it does not know."""
    made = Tool.from_function(tool, annotations=annotations, structured_output=False)
    arguments = made.fn_metadata.arg_model
    arguments.model_config["extra"] = "forbid"
    arguments.model_rebuild(force=True)
    made.parameters = arguments.model_json_schema(by_alias=True)
    return made


def _fitting(text: str) -> str:
    encoded = text.encode()
    return text if len(encoded) <= SUMMARY_BYTES else encoded[: SUMMARY_BYTES - 3].decode(errors="ignore") + "…"


def _tool[**Asked](tool: Callable[Asked, str]) -> Callable[Asked, CallToolResult]:
    """The answer as text and structured; the portal's refusals in its own words."""

    @functools.wraps(tool)
    def answering(*args: Asked.args, **options: Asked.kwargs) -> CallToolResult:
        try:
            text = tool(*args, **options)
        except PortalError as refusal:
            raise ToolError(str(refusal)) from refusal
        except Unreachable as problem:
            raise ToolError(f"{problem}. Try again later.") from problem
        return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=json.loads(text))

    return answering


def _resource[**Asked](read: Callable[Asked, str]) -> Callable[Asked, str]:
    """The portal's refusals in its own words; what is not there as the protocol says it."""

    @functools.wraps(read)
    def reading(*args: Asked.args, **options: Asked.kwargs) -> str:
        try:
            return read(*args, **options)
        except PortalError as refusal:
            raise (ResourceNotFoundError if refusal.status == 404 else ResourceError)(str(refusal)) from refusal
        except Unreachable as problem:
            raise ResourceError(f"{problem}. Try again later.") from problem

    return reading


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
        status: Status | list[Status] | None = None,
        recommendation: Action | list[Action] | None = None,
        freshness: Fresh | list[Fresh] | None = None,
        search: str | None = None,
        limit: int = 10,
        cursor: str | None = None,
    ) -> str:
        """Experiments, newest first, a line each.

        status, recommendation, freshness: any of these. search: words in key, name, hypothesis or owner. limit: at most 50, fewer where
        they would be too long; `more` goes on from there as cursor.
        """
        given = {"status": status, "recommendation": recommendation, "freshness": freshness}
        words = {name: [one] if isinstance(one, str) else one for name, one in given.items()}
        asked = {name: ",".join(any_of) for name, any_of in words.items() if any_of} | (
            {"search": search} if search else {}
        )
        limit = max(1, min(limit, 50))
        while True:
            with self._portal(ctx) as portal:
                page = portal.get("/api/experiments", limit=limit, cursor=cursor, **asked)
            text = self._listed(page)
            if len(text.encode()) <= SUMMARY_BYTES or limit == 1:
                return text
            limit = max(1, limit // 2)

    def _listed(self, page: Json) -> str:
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
    def get_experiment(self, ctx: Context[Any, Any], experiment: Ref) -> str:
        """One experiment by key or number: status, data, gates that do not pass, recommendation. All there is is the resource
        decisioning://experiments/{key}."""
        with self._portal(ctx) as portal:
            document = portal.experiment(str(experiment))
            board = portal.url + document["links"]["board"]
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
    def get_decision(self, ctx: Context[Any, Any], experiment: Ref, wait_s: int = 0) -> str:
        """What is recommended and why, per variant, and what a person answered.

        wait_s: wait so many seconds, at most 60, for as long as it is a hold; rows are judged within seconds of their arrival.
        """
        with self._portal(ctx) as portal:
            found = wait_for(
                lambda: portal.decision(str(experiment)),
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
    def explain_gate(self, ctx: Context[Any, Any], experiment: Ref, gate: str, variant: str | None = None) -> str:
        """Why one gate says what it says: verdict, reading, reason, and the policy's rule behind it."""
        with self._portal(ctx) as portal:
            document = portal.experiment(str(experiment))
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
    def forecast(self, ctx: Context[Any, Any], experiment: Ref) -> str:
        """What each goal of a plan needs before it is decided, whatever the effect is: units of both arms, days at the expected units a day; a
        warning where the plan cannot end."""
        with self._portal(ctx) as portal:
            key = portal.experiment(str(experiment))["key"]
            goals = portal.get(place("experiments", key, "forecast"))["results"]
            told = {"experiment": key, "as_of": portal.answered_at, "goals": goals}
        return _short(told, f"get_decision({key!r})")

    @_tool
    def list_sources(self, ctx: Context[Any, Any]) -> str:
        """What the portal reads by itself, on a schedule: which metrics each source feeds, how it fares, when it runs next."""
        with self._portal(ctx) as portal:
            found = list(portal.pages("/api/sources", limit=200))
            as_of = portal.answered_at
        names = ("key", "kind", "enabled", "metrics", "failures", "failure_share", "last_refresh_at", "due_at")
        sources = sorted(({name: s[name] for name in names} for s in found), key=lambda s: -s["failures"])
        return _short({"as_of": as_of, "count": len(found), "sources": sources}, "get_freshness() for what they feed")

    @_tool
    def list_metrics(self, ctx: Context[Any, Any], search: str | None = None) -> str:
        """Metrics that are registered, with how often their data comes, to name them in a plan. search: a part of key or name."""
        with self._portal(ctx) as portal:
            found = list(portal.pages("/api/metrics", limit=200))
            as_of = portal.answered_at
        part = (search or "").lower()
        named = [m for m in found if part in m["key"].lower() or part in m["name"].lower()]
        told = {"as_of": as_of, "count": len(named), "metrics": [_metric(m) for m in named]}
        return _short(
            told, "create_experiment(...)" if named else "create_experiment(...), which registers what it names"
        )

    @_tool
    def get_schedule(self, ctx: Context[Any, Any], metric: str) -> str:
        """Which schedule a metric's rows show over two weeks, how well it explains them, and what is configured. Where the two differ a KPI is
        called late or thin that is not: say so to a person, who takes what was found."""
        with self._portal(ctx) as portal:
            found = portal.get(place("metrics", metric, "schedule"))
            as_of = portal.answered_at
        told = {
            "metric": metric,
            "as_of": as_of,
            **{name: found[name] for name in ("state", "detail", "configured", "found", "experiment")},
        }
        differs = found["state"] == "differs"
        next_ = f"a person takes it: decisioning metrics schedule {metric} --take" if differs else "get_freshness()"
        return _short(told, next_)

    @_tool
    def list_policies(self, ctx: Context[Any, Any]) -> str:
        """The policies that may judge, each with its versions. The whole of one is the resource decisioning://policies/{name}."""
        with self._portal(ctx) as portal:
            found = list(portal.pages("/api/policies", limit=200))
            as_of = portal.answered_at
        policies = [
            {
                "policy": p["name"],
                "team": p["team"],
                "active": p.get("active_version"),
                "versions": [v["version"] for v in p["versions"]],
            }
            for p in found
        ]
        return _short({"as_of": as_of, "count": len(found), "policies": policies}, "backtest_policy(policy)")

    @_tool
    def get_freshness(
        self,
        ctx: Context[Any, Any],
        experiment: Annotated[str | int | None, Field(description="Key or number.")] = None,
        state: Fresh | None = None,
    ) -> str:
        """How fresh the data is of every KPI that is judged, the worst first."""
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
        target_kpis: list[TargetKpi],
        key: str | None = None,
        team: str | None = None,
        policy: str | None = None,
        started_at: str | None = None,
        expected_units_per_day: float | None = None,
        variants: list[str | dict[str, Any]] | None = None,
    ) -> str:
        """Create an experiment; it runs at once and has a page, gates and a log.

        target_kpis: metric keys (a goal each) or objects {"metric": key or {"key", "name", "kind": "mean" | "proportion" | "ratio" |
        "gauge", "direction": "increase" | "decrease", "expected", "freshness_target_s"}, "role": "goal" | "guardrail" | "shown",
        "minimum_effect": 0.02, "max_harm": 0.05}. One goal at least, and a guardrail for what must not be hurt. Of a new metric say how often
        its data comes: "expected": {"every_s": 3600}, {"cron": "0 6 * * 1-5", "timezone": "Europe/Berlin"} or {"every": "weekdays", "at":
        "06:00", "timezone": "Europe/Berlin"}; where nothing is said a row is due every 15 minutes, and a warning says so. started_at: RFC 3339
        with an offset, may lie in the past when rows do. variants: control and treatment when left out.
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
    def push_kpis(self, ctx: Context[Any, Any], experiment: Ref, rows: list[dict[str, Any]]) -> str:
        """Send rows: {"metric", "variant", "ts", "value", "n", "variance"}; all of them or none. Sending again changes nothing.

        ts: the END of the time the row covers, RFC 3339 with an offset. n: the independent units in it. variance: of one unit's
        value, for kind mean; or "stddev", or "standard_error" (of the mean of n); or "sum" and "sum_squares" in place of value and variance.
        Exactly one of them. Without n (and a spread) a goal cannot be judged.
        """
        with self._portal(ctx) as portal:
            receipt = portal.push(str(experiment), rows)
            as_of = portal.answered_at
        told = {
            "experiment": experiment,
            "as_of": as_of,
            "new": receipt.accepted,
            "changed": receipt.changed,
            "there_already": receipt.duplicates,
            **({"ignored": list(receipt.ignored)} if receipt.ignored else {}),
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


def _metric(m: Json) -> str:
    users = len(m["used_by"]["experiments"]) + m["used_by"]["others"]
    judges = f", judges {users} running" if users else ""
    return f"{m['key']} ({m['kind']}, {m['direction']}, {m['expected_in_words']}{judges}): {m['name']}"


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
