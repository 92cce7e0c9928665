"""The client against a portal made of a function: retries, refusals, pages and batches."""

import json
from collections.abc import Callable

import httpx
import pytest

from decisioning.agents.client import Portal, PortalError, Unreachable

Answer = Callable[[httpx.Request], httpx.Response]


def portal(answer: Answer, *, patience_s: float = 10.0) -> tuple[Portal, list[float]]:
    slept: list[float] = []
    return Portal(
        "http://portal.test/", "dk_x", patience_s=patience_s, transport=httpx.MockTransport(answer), sleep=slept.append
    ), slept


def test_a_call_waits_as_long_as_the_portal_says_and_then_succeeds() -> None:
    answers = [
        httpx.Response(429, headers={"Retry-After": "3"}),
        httpx.Response(503),
        httpx.Response(200, json={"a": 1}),
    ]
    asked, slept = portal(lambda _request: answers.pop(0))

    assert asked.get("/api/slo") == {"a": 1}
    assert slept == [3.0, 1.0]


def test_patience_ends_and_the_refusal_is_told() -> None:
    asked, slept = portal(
        lambda _request: httpx.Response(429, headers={"Retry-After": "20"}, json={"code": "throttled"})
    )

    with pytest.raises(PortalError) as refused:
        asked.get("/api/slo")
    assert (refused.value.status, refused.value.code, slept) == (429, "throttled", [])


def test_a_refusal_carries_code_detail_and_every_pointer() -> None:
    problem = {
        "title": "Unprocessable",
        "status": 422,
        "code": "invalid_rows",
        "detail": "2 rows are bad.",
        "errors": [
            {"pointer": "/rows/0/value", "code": "invalid_number", "detail": "true is no number."},
            {"pointer": "/rows/3/ts", "code": "naive_timestamp"},
        ],
    }
    asked, _ = portal(lambda _request: httpx.Response(422, json=problem))

    with pytest.raises(PortalError) as refused:
        asked.push("x", [{"metric": "m"}])
    assert refused.value.code == "invalid_rows"
    told = "2 rows are bad. (invalid_rows, 422): /rows/0/value: true is no number.; /rows/3/ts: naive_timestamp"
    assert str(refused.value) == told


def test_a_number_that_json_has_not_goes_out_as_text_so_that_the_portal_refuses_it_by_its_place() -> None:
    sent: list[object] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json={"accepted": 1, "changed": 0, "duplicates": 0})

    asked, _ = portal(answer)
    asked.push("x", [{"value": 1.5, "n": 3}, {"value": float("nan"), "denominator": {"value": float("-inf")}}])
    assert sent == [{"rows": [{"value": 1.5, "n": 3}, {"value": "nan", "denominator": {"value": "-inf"}}]}]


def test_an_html_error_is_still_an_exception_that_says_where_it_came_from() -> None:
    asked, _ = portal(lambda _request: httpx.Response(404, html="<h1>no</h1>"))

    with pytest.raises(PortalError, match=r"HTTP 404 from http://portal\.test/api/nothing"):
        asked.get("/api/nothing")


def test_a_portal_that_is_away_is_tried_again_with_the_same_idempotency_key() -> None:
    keys: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) < 3:
            raise httpx.ConnectError("refused")
        return httpx.Response(201, json={"key": "x"})

    asked, _ = portal(answer)

    assert asked.create_experiment({"name": "X"}) == {"key": "x"}
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_a_portal_that_stays_away_is_unreachable() -> None:
    def answer(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    asked, _ = portal(answer, patience_s=2)
    with pytest.raises(Unreachable, match=r"http://portal\.test does not answer: refused"):
        asked.get("/readyz")


def test_a_list_is_followed_to_its_last_page() -> None:
    pages = {
        None: {"results": [{"key": "a"}], "next": "http://portal.test/api/experiments?cursor=2"},
        "2": {"results": [{"key": "b"}], "next": None},
    }
    asked, _ = portal(lambda request: httpx.Response(200, json=pages[request.url.params.get("cursor")]))

    assert [e["key"] for e in asked.experiments(status="running")] == ["a", "b"]


def test_rows_go_in_batches_of_ten_thousand_and_a_bad_one_is_named_by_its_place_among_all() -> None:
    sizes: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        rows = json.loads(request.content)["rows"]
        sizes.append(len(rows))
        errors = [{"index": 4, "code": "invalid_number", "detail": "bad"}] if len(sizes) == 2 else []
        good = len(rows) - len(errors)
        assert request.url.params["atomic"] == "false"
        return httpx.Response(207, json={"accepted": good, "changed": good, "duplicates": 0, "errors": errors})

    asked, _ = portal(answer)
    told: list[int] = []
    receipt = asked.push("x", [{"metric": "m"}] * 10_006, atomic=False, sent=told.append)

    assert sizes == told == [10_000, 6]
    assert (receipt.accepted, receipt.refused) == (10_005, {10_004: ("invalid_number", "bad")})
