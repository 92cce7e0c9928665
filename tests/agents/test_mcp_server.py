"""What agents are told: short answers that say as of when, and what to call next; refusals in the portal's words."""

import importlib.metadata
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError

from decisioning.agents import mcp_server
from tests.agents import loop

Told = dict[str, Any]
Ask = Callable[..., Told]

LONG = "ü" * 400


def gate(n: int, verdict: str = "fail") -> Told:
    return {
        "gate": f"metric_{n}_{'x' * 40}",
        "kind": "guard",
        "variant": f"arm-{n}",
        "verdict": verdict,
        "since": "2026-11-24T06:00:00Z",
        "reading": {"estimate": 0.1, "lower": 0.0, "upper": 0.2, "n": 100},
        "reason": LONG,
    }


DOCUMENT: Told = {
    "key": "checkout",
    "name": LONG,
    "hypothesis": LONG * 10,
    "status": "running",
    "team": "growth",
    "as_of": "2026-11-24T06:00:00Z",
    "stale": False,
    "freshness": {"state": "fresh", "data_watermark": "2026-11-24T06:00:00Z"},
    "variants": [{"key": f"arm-{n}"} for n in range(30)],
    "kpis": [{"metric": f"metric_{n}", "role": "goal", "freshness": {"state": "fresh"}} for n in range(50)],
    "gates": [gate(n) for n in range(60)],
    "recommendation": {
        "action": "hold",
        "code": "open",
        "variant": None,
        "state": "open",
        "rationale": [LONG] * 20,
        "blockers": [LONG] * 20,
        "policy": {"name": "default", "version": 1},
        "evidence_digest": f"sha256:{'0' * 64}",
    },
    "links": {"board": "/experiments/checkout"},
}


@pytest.fixture
def answers() -> dict[str, httpx.Response]:
    return {}


@pytest.fixture
def asked() -> list[httpx.Request]:
    return []


@pytest.fixture
def ask(answers: dict[str, httpx.Response], asked: list[httpx.Request]) -> Ask:
    """What a tool says, of a server whose portal gives `answers` by method and path."""

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answers[f"{request.method} {request.url.path}"]

    def call(tool: str, *, key: str = "dk_own", **arguments: object) -> Told:
        async def within() -> Told:
            mcp = mcp_server.server("http://portal.test", key, transport=httpx.MockTransport(answer))
            async with Client(mcp) as client:
                result = await client.call_tool(tool, arguments)
                (content,) = result.content
                text = str(getattr(content, "text", ""))
                assert len(text.encode()) <= 2048
                if result.is_error:
                    return {"refused": text}
                assert result.structured_content == json.loads(text)
                return {"bytes": len(text.encode()), **json.loads(text)}

        return loop.run(within)

    return call


def test_a_summary_of_the_largest_experiment_is_short_and_structured_too(
    ask: Ask, answers: dict[str, httpx.Response]
) -> None:
    answers["GET /api/experiments/checkout"] = httpx.Response(200, json=DOCUMENT)

    told = ask("get_experiment", experiment="checkout")
    assert told["bytes"] <= 2048
    assert (told["experiment"], told["as_of"]) == ("checkout", "2026-11-24T06:00:00Z")
    assert told["recommendation"]["evidence_digest"] == DOCUMENT["recommendation"]["evidence_digest"]
    assert told["gates_not_passing"][-1].startswith("and ")
    assert told["next"].startswith("explain_gate('checkout', ")
    answers["GET /api/experiments/7"] = answers["GET /api/experiments/checkout"]
    assert ask("get_experiment", experiment=7) == told, "a number is as good as a key"


@pytest.mark.parametrize(
    ("state", "next_"),
    [("proposed", "a person answers at "), ("suspended", "get_freshness("), ("open", "get_decision(")],
)
def test_a_decision_says_what_to_do_with_it(
    ask: Ask, answers: dict[str, httpx.Response], state: str, next_: str
) -> None:
    told = DOCUMENT["recommendation"] | {"state": state}
    body = {"experiment": "checkout", "as_of": DOCUMENT["as_of"], "stale": False, "recommendation": told}
    answers["GET /api/experiments/checkout/decision"] = httpx.Response(
        200, json={**body, "variants": [told] * 20, "decision": None}
    )

    said = ask("get_decision", experiment="checkout")
    assert said["bytes"] <= 2048
    assert said["next"].startswith(next_)


def test_a_gate_is_explained_with_the_rule_it_was_made_of(ask: Ask, answers: dict[str, httpx.Response]) -> None:
    uplift = gate(0) | {"gate": "vrps_uplift", "reason": "Not certain yet."}
    rule = {"name": "{metric}_uplift", "kind": "uplift", "for": "goal", "scale_above": 0.0}
    version = {"version": 1, "body": {"gates": [{"name": "density", "kind": "density"}, rule]}}
    policies = [{"name": "default", "team": None, "versions": [version]}]
    answers["GET /api/experiments/checkout"] = httpx.Response(200, json=DOCUMENT | {"gates": [uplift]})
    answers["GET /api/policies"] = httpx.Response(200, json={"results": policies, "next": None})

    told = ask("explain_gate", experiment="checkout", gate="vrps_uplift")
    assert (told["rule"], told["verdicts"][0]["reason"]) == (rule, "Not certain yet.")
    assert ask("explain_gate", experiment="checkout", gate="nothing")["refused"].endswith("There: vrps_uplift.")


def test_the_worst_data_comes_first(ask: Ask, answers: dict[str, httpx.Response]) -> None:
    def tracked(metric: str, state: str, error: str | None = None) -> Told:
        run = {"status": "failed", "error": error} if error else None
        head = {"experiment": "checkout", "metric": metric, "state": state, "source": None, "last_run": run}
        return head | {"data_watermark": None, "stale_at": None}

    found = [tracked("a", "fresh"), tracked("b", "late"), tracked("c", "stale", "No such table.")]
    answers["GET /api/freshness"] = httpx.Response(
        200, json={"results": found, "next": None}, headers={"Date": "Tue, 24 Nov 2026 06:17:00 GMT"}
    )

    told = ask("get_freshness")
    assert [kpi["metric"] for kpi in told["kpis"]] == ["c", "b", "a"]
    assert (told["kpis"][0]["error"], told["as_of"]) == ("No such table.", "2026-11-24T06:17:00Z")
    assert told["next"] == "push_kpis('checkout', rows) with c"


def test_a_refusal_reaches_the_agent_with_every_pointer(ask: Ask, answers: dict[str, httpx.Response]) -> None:
    errors = [
        {"pointer": "/rows/0/ts", "code": "naive_timestamp", "detail": "No offset."},
        {"pointer": "/rows/3/value", "code": "invalid_number", "detail": "true."},
    ]
    answers["POST /api/experiments/x/kpis"] = httpx.Response(
        422, json={"code": "invalid_rows", "detail": "2 rows are bad.", "errors": errors}
    )

    told = ask("push_kpis", experiment="x", rows=[{"metric": "m"}])["refused"]
    assert told.endswith("2 rows are bad. (invalid_rows, 422): /rows/0/ts: No offset.; /rows/3/value: true.")


def test_a_backtest_that_nobody_asked_for_is_asked_for_by_a_person_where_the_key_may_not(
    ask: Ask, answers: dict[str, httpx.Response]
) -> None:
    answers["GET /api/policies/bold"] = httpx.Response(200, json={"versions": [{"version": 2}]})
    where = "/api/policies/bold/versions/2/backtest"
    answers[f"GET {where}"] = httpx.Response(404, json={"code": "not_found", "detail": "Nothing."})
    answers[f"POST {where}"] = httpx.Response(403, json={"code": "permission_denied", "detail": "No."})

    assert "a person runs `decisioning policy backtest bold 2`" in ask("backtest_policy", policy="bold")["refused"]


def test_without_a_key_nothing_is_asked(ask: Ask, asked: list[httpx.Request]) -> None:
    assert "Send your own key" in ask("list_experiments", key="")["refused"]
    assert asked == []


def test_what_a_plan_is_warned_of_reaches_the_agent(ask: Ask, answers: dict[str, httpx.Response]) -> None:
    answers["POST /api/experiments"] = httpx.Response(201, json=DOCUMENT | {"warnings": ["kept: 60%."]})
    assert ask("create_experiment", name="n", hypothesis="h", target_kpis=["m"])["warnings"] == ["kept: 60%."]


# The protocol ---------------------------------------------------------------------------------------------------------------


def with_client(use: Callable[[Client], Any]) -> Any:
    """What is found over a client of a server whose portal has nothing."""

    async def within() -> Any:
        gone = httpx.Response(404, json={"code": "not_found", "detail": "There is no such experiment."})
        portal = httpx.MockTransport(lambda _request: gone)
        async with Client(mcp_server.server("http://portal.test", "dk_own", transport=portal)) as client:
            return await use(client)

    return loop.run(within)


def test_an_argument_that_nobody_knows_is_refused(ask: Ask, asked: list[httpx.Request]) -> None:
    for tool, said in (
        ("get_experiment", {"experiment": "checkout", "detail": True}),
        ("list_experiments", {"state": "running"}),
        ("list_experiments", {"status": ["lost"]}),
        ("get_experiment", {"experiment": ["checkout"]}),
    ):
        assert "validation error" in ask(tool, **said)["refused"], (tool, said)
    assert asked == []


def test_a_schedule_that_rows_show_is_told_and_a_person_takes_it(
    ask: Ask, answers: dict[str, httpx.Response], asked: list[httpx.Request]
) -> None:
    answers["GET /api/metrics/visits/schedule"] = httpx.Response(200, json={
        "metric": "visits", "state": "differs", "detail": "Rows come weekdays at 06:10 UTC.", "experiment": "checkout",
        "configured": {"words": "every 15 minutes"}, "found": {"words": "weekdays at 06:10 UTC"}, "since": None, "until": None,
    })  # fmt: skip

    told = ask("get_schedule", metric="visits")

    assert (told["state"], told["found"]["words"]) == ("differs", "weekdays at 06:10 UTC")
    assert told["next"] == "a person takes it: decisioning metrics schedule visits --take"
    assert [request.method for request in asked] == ["GET"]


def test_a_plan_is_told_how_to_say_how_often_data_comes() -> None:
    listed = with_client(lambda client: client.list_tools())
    (create,) = [tool for tool in listed.tools if tool.name == "create_experiment"]
    assert "where nothing is said a row is due every 15 minutes" in " ".join((create.description or "").split())
    text = json.dumps(create.input_schema)
    for words in (
        '"every_s"',
        '"cron"',
        '"timezone"',
        json.dumps(["hourly", "daily", "weekdays", "weekly", "monthly"]),
    ):
        assert words in text


def test_every_tool_says_what_it_takes_and_what_words_there_are() -> None:
    listed = with_client(lambda client: client.list_tools())
    tools = {tool.name: tool.input_schema for tool in listed.tools}
    assert {name for name, schema in tools.items() if schema.get("additionalProperties") is not False} == set()
    assert {"list_sources", "list_metrics", "get_schedule", "list_policies", "forecast"} <= tools.keys()
    text = json.dumps(tools)
    for words in (["draft", "running", "paused", "scaled", "deleted", "stopped"], ["goal", "guardrail", "shown"]):
        assert json.dumps(words) in text
    assert {kind["type"] for kind in tools["get_experiment"]["properties"]["experiment"]["anyOf"]} == {
        "string",
        "integer",
    }


def test_what_is_not_there_is_an_error_of_the_protocol_and_the_server_has_a_version() -> None:
    async def codes(client: Client) -> list[int]:
        found = []
        for asking in (
            lambda: client.call_tool("decide", {}),
            lambda: client.read_resource("decisioning://nothing/x"),
            lambda: client.read_resource("decisioning://experiments/x"),
        ):
            with pytest.raises(MCPError) as told:
                await asking()
            found.append(told.value.error.code)
        return found

    assert with_client(codes) == [-32602] * 3

    async def version(client: Client) -> str:
        return str(getattr(client.server_info, "version", ""))

    assert with_client(version) == importlib.metadata.version("decisioning")


def test_a_list_that_is_too_long_is_asked_for_again_shorter(asked: list[httpx.Request]) -> None:
    one = {"key": "x" * 63, "status": "running", "recommendation": DOCUMENT["recommendation"],
           "freshness": {"state": "fresh"}, "as_of": "2026-11-24T06:00:00Z"}  # fmt: skip

    def page(request: httpx.Request) -> httpx.Response:
        limit = int(request.url.params["limit"])
        return httpx.Response(200, json={"results": [one] * limit, "next": f"http://portal.test/?cursor=c{limit}"})

    async def within() -> Any:
        mcp = mcp_server.server("http://portal.test", "dk_own", transport=httpx.MockTransport(page))
        async with Client(mcp) as client:
            return await client.call_tool("list_experiments", {"limit": 50})

    result = loop.run(within)
    (content,) = result.content
    told = json.loads(content.text)
    assert len(content.text.encode()) <= 2048
    assert told["more"] == f"c{len(told['experiments'])}", "the cursor goes on where the list was cut"


def test_a_host_of_another_name_is_told_what_to_do() -> None:
    async def inner(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError

    async def within() -> httpx.Response:
        app = mcp_server._Named(inner, ("127.0.0.1", "localhost"))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://evil.test:8100") as client:
            return await client.post("/mcp", json={})

    answer = loop.run(within)
    assert (answer.status_code, "not called 'evil.test:8100'" in answer.text, "--name NAME" in answer.text) == (
        421,
        True,
        True,
    )
