"""Whatever comes in under /api/, a problem document goes out: never a page, never a 5xx for bad input."""

import base64
import errno
import gzip
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from django.db import DatabaseError, OperationalError, connection, transaction
from django.test import Client
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from decisioning.api.problems import problem_of
from tests.api.conftest import PLAN, Caller, check_problem, errors_of
from tests.examples import examples


def code(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


def test_addresses_nobody_knows_are_problems_too(ops: Caller, nobody: Caller) -> None:
    for path in (
        "/api/",
        "/api/v1/",
        "/api/nothing",
        "/api/v1/v1/x",
        "/api/experiments/",
        "/api/experiments/x/y/z",
        "/api/%00",
    ):
        assert code(ops.get(path)) == (404, "not_found"), path
    assert code(nobody.get("/api/nothing"))[0] == 404


def test_methods_and_media_types_that_do_not_fit(ops: Caller) -> None:
    refused = ops.delete("/api/experiments")
    assert code(refused) == (405, "method_not_allowed")
    assert "POST" in refused["Allow"]
    assert code(ops("OPTIONS", "/api/experiments")) == (405, "method_not_allowed")
    assert code(ops.post("/api/experiments", PLAN, Content_Type="text/plain")) == (415, "unsupported_media_type")
    assert code(ops.get("/api/experiments", Accept="image/png")) == (406, "not_acceptable")
    assert code(ops.post("/api/experiments", PLAN, Content_Encoding="br")) == (415, "unsupported_encoding")


def test_without_a_good_key_it_is_401_and_says_how(ops: Caller, nobody: Caller) -> None:
    for caller in (nobody, Caller("dk_unknown1_x", ops.team), Caller("", ops.team), Caller("\u00e9", ops.team)):
        refused = caller.get("/api/experiments")
        assert code(refused) == (401, "not_authenticated")
        assert refused["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"", 422, "invalid"),
        (b"{", 400, "invalid_json"),
        (b'{"name": NaN}', 400, "invalid_json"),
        (b'{"name": Infinity}', 400, "invalid_json"),
        (b'{"expected_units_per_day": 1e999}', 400, "invalid_json"),
        (b'{"name": "\xff"}', 400, "invalid_json"),
        (b'{"name": "a\x00b"}', 400, "invalid_json"),
        (b"\x00", 400, "invalid_json"),
        (b"[" * 33 + b"]" * 33, 400, "too_deep"),
        (b"[" * 100_000 + b"]" * 100_000, 400, "too_deep"),
        (b"[" * 32 + b"]" * 32, 422, "invalid"),
        (b"[]", 422, "invalid"),
        (b'"text"', 422, "invalid"),
        (b"1" * 10_000, 400, "invalid_json"),
    ],
)
def test_bodies_that_are_no_json_or_no_object(ops: Caller, body: bytes, status: int, told: str) -> None:
    assert code(ops("POST", "/api/experiments", body)) == (status, told)


def test_texts_that_cannot_be_stored_are_named(ops: Caller) -> None:
    body = json.dumps({**PLAN, "name": "a\x00b", "variants": [{"key": "c"}, {"key": "\ud800"}]}).encode()
    assert set(errors_of(ops("POST", "/api/experiments", body))) == {
        ("/name", "invalid_text"),
        ("/variants/1/key", "invalid_text"),
    }
    assert errors_of(ops.post("/api/experiments", {**PLAN, "name": "x" * 201})) == [("/name", "invalid_text")]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("experiments", b'{"name": "a", "name": "b", "hypothesis": "h", "target_kpis": ["vrps"]}'),
        (
            "experiments",
            b'{"name": "a", "hypothesis": "h", "target_kpis": [{"metric": "vrps", "role": "goal", "role": "shown"}]}',
        ),
        ("policies", b'{"name": "p", "body": {"gates": [], "gates": []}}'),
        (
            "experiments/mine/kpis",
            b'{"rows": [{"metric": "vrps", "variant": "control", "ts": "%s", "value": 1, "value": 2, "n": 3}]}',
        ),
        (
            "experiments/mine/kpis",
            b'{"rows": [{"metric": "vrps", "variant": "control", "ts": "%s", "value": 1, "n": 3, "n" : 4}]}',
        ),
        (
            "experiments/mine/kpis",
            b'{"rows": [{"metric": "vrps", "variant": "x", "variant": "control", "ts": "%s", "value": 1}]}',
        ),
        ("experiments/mine/kpis", b'{"rows": [], "rows": []}'),
        ("events", b'{"specversion": "1.0", "id": "1", "id": "2", "source": "s", "type": "t", "data": {}}'),
    ],
)
def test_a_name_that_stands_twice_is_refused(ops: Caller, path: str, body: bytes) -> None:
    ops.experiment(key="mine")
    sent = body.replace(b"%s", datetime.now(UTC).isoformat().encode())
    kind = "application/cloudevents+json" if path == "events" else "application/json"
    answer = ops("POST", f"/api/{path}", sent, Content_Type=kind)
    assert answer.status_code == 422, answer.content
    assert [fault for _, fault in errors_of(answer)] == ["duplicate_key"]


def test_the_same_name_in_several_objects_and_a_null_are_no_duplicates(ops: Caller) -> None:
    ops.experiment(key="mine")
    now = datetime.now(UTC).replace(microsecond=0)
    ratio = {"value": 2, "variance": 1, "covariance": None}
    rows = [
        {
            "metric": "vrps",
            "variant": "control",
            "ts": (now - timedelta(seconds=n)).isoformat(),
            "value": 1,
            "n": None,
            "denominator": ratio,
        }
        for n in range(3)
    ]
    assert ops.post("/api/experiments/mine/kpis", {"rows": rows}).status_code == 200


def test_bodies_have_a_size_also_inflated(ops: Caller) -> None:
    small = gzip.compress(json.dumps(PLAN).encode())
    assert ops("POST", "/api/experiments", small, Content_Encoding="gzip").status_code == 201
    assert code(ops("POST", "/api/experiments", small[:-5], Content_Encoding="gzip")) == (400, "invalid_encoding")
    assert code(ops("POST", "/api/experiments", b"{}", Content_Encoding="gzip")) == (400, "invalid_encoding")
    bomb = gzip.compress(b" " * (33 * 1024 * 1024))
    assert code(ops("POST", "/api/experiments", bomb, Content_Encoding="gzip")) == (413, "body_too_large")
    assert code(ops("POST", "/api/experiments", b" " * (8 * 1024 * 1024 + 1))) == (413, "body_too_large")


def test_a_body_in_chunks_is_read_too(ops: Caller) -> None:
    def post(body: bytes) -> Any:
        environment: Any = {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": ""}
        return ops.client.post(
            "/api/experiments",
            headers={"Authorization": f"Bearer {ops.secret}", "Transfer-Encoding": "chunked"},
            content_type="application/json",
            **environment,
        )

    assert post(json.dumps(PLAN).encode()).status_code == 201
    assert code(post(b" " * (8 * 1024 * 1024 + 1))) == (413, "body_too_large")


def test_a_host_that_is_not_ours_is_a_problem(db: None) -> None:
    response: Any = Client(raise_request_exception=False).get("/api/experiments", headers={"Host": "evil.example"})
    assert response.status_code == 400
    check_problem(response)


def test_a_fault_of_ours_tells_nothing_internal(ops: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object, **_options: object) -> None:
        raise RuntimeError("secret internals")

    monkeypatch.setattr("decisioning.api.experiments.rows", broken)
    response = ops.get("/api/experiments")
    assert code(response) == (500, "internal_error")
    assert b"secret" not in response.content


def test_a_database_that_does_not_answer_is_503_with_retry_after(ops: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_args: object, **_options: object) -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr("decisioning.api.experiments.plan.create", gone)
    inside = ops.post("/api/experiments", PLAN)
    assert code(inside) == (503, "database_unavailable")
    assert int(inside["Retry-After"]) > 0

    with monkeypatch.context() as patch:
        patch.setattr("decisioning.access.middleware.bind", gone)
        outside = ops.post("/api/experiments", PLAN)
    assert code(outside) == (503, "database_unavailable")
    assert int(outside["Retry-After"]) > 0


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        (
            "SET TRANSACTION READ ONLY; CREATE TABLE made_nowhere ()",
            (503, "database_unavailable"),
        ),  # a primary that was
        ("DO $$ BEGIN RAISE SQLSTATE '53100'; END $$", (503, "storage_full")),
        ("DO $$ BEGIN RAISE SQLSTATE 'XX000'; END $$", (500, "internal_error")),
        ("DO $$ BEGIN RAISE SQLSTATE '42501'; END $$", (403, "permission_denied")),
    ],
)
@pytest.mark.django_db(transaction=True)
def test_what_the_database_refuses_is_told_as_what_it_is(statement: str, told: tuple[int, str]) -> None:
    with pytest.raises(DatabaseError) as refused, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
    problem = problem_of(refused.value)
    assert (problem.status_code, problem.code) == told


@pytest.mark.django_db
def test_a_disk_of_the_webs_own_that_is_full_is_told_on_a_page_as_well(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("decisioning.access.middleware.bind", full)
    client.raise_request_exception = False
    page = client.get("/login")
    assert page.status_code == 503
    assert "storage_full" in page.content.decode()


def test_a_refused_request_leaves_nothing_behind(ops: Caller) -> None:
    refused = ops.post("/api/experiments", {**PLAN, "policy": "none"})
    assert refused.status_code == 422
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM metadata.experiments")
        assert cursor.fetchone() == (0,)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_fields = st.sampled_from(
    ["name", "hypothesis", "target_kpis", "variants", "key", "team", "owner", "policy", "started_at", "start",
     "expected_units_per_day", "scopes", "rate", "agent", "body", "gates", "evidence_digest", "action", "reason", "override_to",
     "to", "kind", "direction", "expected_every_s", "expires_at", "metric", "role", "baseline", "target"]
)  # fmt: skip


@examples(20, ignore=[HealthCheck.function_scoped_fixture], fresh=True)
@given(
    path=st.sampled_from(
        ["/api/experiments", "/api/metrics", "/api/keys", "/api/policies", "/api/policies/default/versions", "/api/experiments/1/decision",
         "/api/experiments/mine/transitions", "/api/experiments/mine/decision", "/api/experiments/mine", "/api/metrics/vrps"]
    ),
    method=st.sampled_from(["POST", "PATCH"]),
    body=st.dictionaries(_fields, _json, max_size=6) | _json,
    said=st.booleans(),
)  # fmt: skip
def test_no_body_whatever_makes_the_server_fail(
    ops: Caller,
    path: str,
    method: str,
    body: Any,
    said: bool,
) -> None:
    if ops.get("/api/experiments/mine").status_code == 404:
        ops.experiment(key="mine", start=False)
    if said and isinstance(body, dict):
        body = {**PLAN, "body": {"gates": []}, **body}
    response = ops(method, path, json.dumps(body).encode())
    assert response.status_code < 500, (method, path, body)


@pytest.mark.parametrize(
    ("path", "ordering"),
    [("experiments", "id"), ("experiments", "created_at"), ("experiments", "name"), ("metrics", "key"), ("policies", "id"), ("sources", "due_at"),
     ("quarantine", "received_at"), ("experiments/mine/evaluations", "slot"), ("refresh-log", ""), ("experiments/mine/kpis", "")],
)  # fmt: skip
def test_a_cursor_that_no_list_has_made_is_refused_or_leads_somewhere(ops: Caller, path: str, ordering: str) -> None:
    ops.experiment(key="mine")
    for position in ("\x03M4", "\x00", "9" * 40, "2026-13-01T00:00:00Z", "99999-01-01", "\ud800", "infinity"):
        cursor = base64.b64encode(b"o=1&p=" + quote(position.encode("utf-8", "surrogatepass")).encode()).decode()
        answer = ops.get(f"/api/{path}?cursor={quote(cursor)}" + (f"&ordering={ordering}" if ordering else ""))
        assert answer.status_code in (200, 400), (position, answer.content)
        assert answer.status_code == 200 or answer.json()["code"] == "invalid_parameter"


@examples(15, ignore=[HealthCheck.function_scoped_fixture], fresh=True)
@given(
    path=st.sampled_from(
        ["experiments", "freshness", "refresh-log", "metrics", "keys", "policies", "experiments/mine/kpis", "experiments/mine/audit",
         "experiments/mine/decision"]
    ),
    name=st.sampled_from(["limit", "cursor", "ordering", "status", "search", "from", "to", "metric", "state", "experiment", "as_of",
                          "resolution", "freshness", "recommendation", "team", "owner", "job", "kind", "variant"]),
    value=st.text(max_size=12) | st.sampled_from(["-1", "1e9", "99999999999999999999", "%", "cD0x", "cj0xJnA9eA=="]),
)  # fmt: skip
def test_no_parameter_whatever_makes_the_server_fail(ops: Caller, path: str, name: str, value: str) -> None:
    if ops.get("/api/experiments/mine").status_code == 404:
        ops.experiment(key="mine")
    response = ops.get(f"/api/{path}?{name}={quote(value.encode('utf-8', 'surrogatepass'))}")
    assert response.status_code in (200, 400), (path, name, value, response.content)
