"""CSV shapes become experiments, rows and a list of what is no good. No portal here."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from decisioning.agents.client import Portal
from decisioning.agents.history import (
    Brought,
    FileRefused,
    History,
    Recorded,
    bring_in,
    creation,
    plan_of,
    read,
    settle,
)

NOW = datetime(2026, 11, 24, 6, 0, 30, tzinfo=UTC)
WIDE = "experiment_id,variant_id,metric_id,time_since_start,count_c,count_t,mean_c,mean_t,variance_c,variance_t"
ASOS = Path(__file__).parents[2].parent / "shared/data/asos_24_experiments.csv"


def wide(*lines: str) -> History:
    return read([f"{WIDE}\n", *(f"{line}\n" for line in lines)], plan_of(None, "wide"))


def long(*lines: str, plan: dict[str, object] | None = None, header: str = "n,variance") -> History:
    return read(
        [f"experiment,metric,variant,ts,value,{header}\n", *(f"{line}\n" for line in lines)], plan_of(plan, "long")
    )


def reasons(history: History) -> list[str]:
    return [f"{bad.line}: {bad.reason}" for bad in history.bad]


def test_a_wide_line_is_one_row_of_the_control_and_one_of_the_arm() -> None:
    (recorded,) = wide("058875,1,4,1.5,100,101,3.5,3.6,9,10").experiments

    assert recorded.id == "058875"
    assert recorded.rows(NOW) == [
        {"metric": "metric_4", "variant": "arm-1", "ts": "2026-11-25T18:00:30Z", "value": 3.6, "n": 101, "variance": 10.0},
        {"metric": "metric_4", "variant": "control", "ts": "2026-11-25T18:00:30Z", "value": 3.5, "n": 100, "variance": 9.0},
    ]  # fmt: skip


def test_the_shared_control_of_several_arms_is_sent_once() -> None:
    (recorded,) = wide("x1,1,4,1,100,101,3.5,3.6,9,10", "x1,2,4,1,100,99,3.5,3.4,9,10").experiments

    assert sorted(sample.arm for sample in recorded.samples) == ["arm-1", "arm-2", "control"]


def test_every_bad_line_is_listed_with_its_number_and_reason_and_the_good_ones_stay() -> None:
    history = wide(
        "x1,1,4,1,100,101,3.5,3.6,9,10",
        "x1,1,4,2,200,201,3.5,3.6,,10",
        "x1,1,4,3,abc,201,3.5,3.6,9,10",
        "x1,1,4,4,200,201,nan,3.6,9,10",
        "x1,1,4,5,200,-1,3.5,3.6,9,10",
        "x1,1,4,6,200,201.5,3.5,3.6,9,10",
        "x1,1,4,7,200,201,3.5,3.6,9,-10",
        "x1,1,1,8,200,201,0.5,1.5,0.25,0.25",
        "x1,1,4,9,200,201,3.5,3.6,9",
        "x1,2,4,1,100,99,3.7,3.4,9,10",
        "x1,1,4,-1,200,201,3.5,3.6,9,10",
        "x1,1,4,10,,201,3.5,3.6,9,10",
    )

    assert reasons(history) == [
        "3: control: the variance of metric_4 is missing",
        "4: control: n is 'abc', no number",
        "5: control: value is nan, must be finite",
        "6: arm-1: n is -1, must be a whole number of units, 0 or more",
        "7: arm-1: n is 201.5, must be a whole number of units, 0 or more",
        "8: arm-1: variance is -10, must not be negative",
        "9: arm-1: value is 1.5, a proportion lies between 0 and 1",
        "10: 9 cells where the header has 10",
        "11: control: metric_4 contradicts line 2",
        "12: time_since_start is -1 days, must be above 0",
        "13: control: n is missing",
    ]
    assert len(history.experiments[0].samples) == 2


def test_float_dust_goes_to_the_portal_which_rounds_it() -> None:
    assert wide("x1,1,1,1,100,101,1.0000000000000002,-1e-17,,", "x1,1,4,1,100,101,3.5,3.6,-7e-15,9").bad == []


def test_a_proportion_needs_no_variance() -> None:
    assert wide("x1,1,1,1,100,101,0.5,0.5,,").bad == []


def test_the_newest_checkpoint_of_each_experiment_is_now() -> None:
    history = wide("x1,1,4,1,100,101,3.5,3.6,9,10", "x1,1,4,21.5,200,201,3.5,3.6,9,10", "x2,1,4,3,100,101,1,1,1,1")
    plan = plan_of(None, "wide")

    for recorded in history.experiments:
        body = creation(recorded, plan, now=NOW, shape="wide")
        rows = recorded.rows(datetime.fromisoformat(body["started_at"]))
        assert max(row["ts"] for row in rows) == "2026-11-24T06:00:30Z"
        assert min(row["ts"] for row in rows) > body["started_at"]


def test_the_default_plan_is_one_goal_one_guardrail_and_two_shown_cumulative_and_daily() -> None:
    (recorded,) = wide("058875,1,4,1.5,100,101,3.5,3.6,9,10").experiments
    body = creation(recorded, plan_of(None, "wide"), now=NOW, shape="wide")

    assert (body["key"], [v["key"] for v in body["variants"]]) == ("asos-058875", ["control", "arm-1"])
    assert {v["weight"] for v in body["variants"]} == {1.0}
    told = [
        (k["metric"]["key"], k["role"], k.get("minimum_effect"), k.get("max_harm"), k["metric"]["kind"])
        for k in body["target_kpis"]
    ]
    assert told == [
        ("metric_4", "goal", 0.02, None, "mean"),
        ("metric_1", "guardrail", None, 0.01, "proportion"),
        ("metric_2", "shown", None, None, "mean"),
        ("metric_3", "shown", None, None, "mean"),
    ]
    for kpi in body["target_kpis"]:
        metric = kpi["metric"]
        assert metric["temporality"] == "cumulative"
        assert (metric["expected_every_s"], metric["freshness_target_s"]) == (86_400, 86_400)


def test_a_plan_sets_weights_names_and_control_even_for_one_experiment() -> None:
    given = {
        "target_kpis": [{"metric": {"key": "metric_4", "kind": "mean", "temporality": "cumulative"}, "role": "goal"}],
        "weights": {"arm-1": 2},
        "control": "old-page",
        "experiments": {"x1": {"name": "Sizes", "weights": {"old-page": 3}}},
    }
    plan = plan_of(given, "wide")
    (recorded,) = read([WIDE, "x1,1,4,1,100,101,3.5,3.6,9,10"], plan).experiments
    body = creation(recorded, plan, now=NOW, shape="wide", team="asos", policy="fast")

    assert body["variants"] == [
        {"key": "old-page", "weight": 3, "control": True},
        {"key": "arm-1", "weight": 2.0},
    ]
    assert (body["name"], body["team"], body["policy"]) == ("Sizes", "asos", "fast")
    assert body["target_kpis"] == [
        {"metric": {"key": "metric_4", "kind": "mean", "temporality": "cumulative"}, "role": "goal"}
    ]


def test_a_long_file_keeps_its_own_times_and_starts_one_bucket_before_its_first_row() -> None:
    history = long(
        "pay-later,vrps,control,2026-11-20T01:00:00Z,3.0,50,4",
        "pay-later,vrps,new,2026-11-20T03:00:00+02:00,3.1,50,4",
        "pay-later,errors,control,2026-11-20T01:00:00Z,0.5,,",
        plan={"metrics": [{"key": "vrps", "expected_every_s": 3600, "kind": "mean"}], "target_kpis": ["vrps"]},
    )
    (recorded,) = history.experiments
    plan = plan_of({"metrics": [{"key": "vrps", "expected_every_s": 3600}], "target_kpis": ["vrps"]}, "long")
    body = creation(recorded, plan, now=NOW, shape="long")

    assert reasons(history) == []
    assert body["started_at"] <= "2026-11-20T00:45:00Z"
    rows = recorded.rows(datetime.fromisoformat(body["started_at"]))
    assert {row["ts"] for row in rows} == {"2026-11-20T01:00:00Z"}
    assert [k["role"] for k in body["target_kpis"]] == ["goal", "shown"]


def test_a_long_file_lists_what_is_wrong_with_a_line() -> None:
    history = long(
        "a,vrps,control,2026-11-20,3.0,50,4",
        "a,vrps,control,yesterday,3.0,50,4",
        "a,vrps,control,2026-11-20T01:00:00Z,3.0,50,",
        ",vrps,control,2026-11-20T01:00:00Z,3.0,50,4",
        "a,4,control,2026-11-20T01:00:00Z,3.0,50,4",
    )

    assert reasons(history) == [
        "2: ts '2026-11-20' has no offset, write Z for UTC",
        "3: ts 'yesterday' is no RFC 3339 time",
        "4: control: the variance of vrps is missing",
        "5: the experiment is not named",
        "6: '4' makes no metric key: it must begin with a letter",
    ]


def test_a_file_of_another_shape_is_refused_with_the_columns_it_needs() -> None:
    with pytest.raises(FileRefused, match="The first line must name the columns experiment_id"):
        read(["a,b,c\n", "1,2,3\n"], plan_of(None, "wide"))


def test_an_unknown_setting_of_a_plan_is_refused() -> None:
    with pytest.raises(FileRefused, match="no setting 'kpis'"):
        plan_of({"kpis": []}, "wide")


class FakePortal:
    """Answers create, document and rows, and remembers rows, as docs/api.md says."""

    def __init__(self) -> None:
        self.experiments: dict[str, dict[str, object]] = {}
        self.rows: set[tuple[str, str]] = set()

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content or b"{}")
        if request.method == "GET":
            return httpx.Response(200, json=self.experiments[request.url.path.rpartition("/")[2]])
        if request.url.path == "/api/experiments":
            if body["key"] in self.experiments:
                return httpx.Response(409, json={"code": "key_taken", "detail": "taken"})
            self.experiments[body["key"]] = body
            return httpx.Response(201, json=body)
        return self._kpis(request.url.path, body["rows"])

    def _kpis(self, path: str, rows: Sequence[dict[str, object]]) -> httpx.Response:
        bad = [
            {"index": i, "code": "unknown_variant", "detail": "no such"}
            for i, row in enumerate(rows)
            if row["variant"] == "arm-9"
        ]
        keys = {(path, json.dumps([row["metric"], row["variant"], row["ts"]])) for row in rows}
        known = len(keys & self.rows)
        self.rows |= keys
        answer = {"accepted": len(rows) - known - len(bad), "changed": 0, "duplicates": known, "errors": bad}
        return httpx.Response(207, json=answer)


def test_bringing_in_twice_an_hour_apart_sends_the_same_rows_at_the_same_times() -> None:
    fake = FakePortal()
    portal = Portal("http://portal.test", "k", transport=httpx.MockTransport(fake))
    plan = plan_of(None, "wide")
    history = wide("x1,1,4,1,100,101,3.5,3.6,9,10", "x1,1,4,2,200,201,3.5,3.6,9,10")

    (first,) = bring_in(portal, history, plan, now=NOW)
    (second,) = bring_in(portal, history, plan, now=NOW + timedelta(hours=1))

    assert (first.existed, first.accepted, first.duplicates) == (False, 4, 0)
    assert (second.existed, second.accepted, second.duplicates) == (True, 0, 4)


def test_rows_that_the_portal_refuses_are_listed_with_their_line() -> None:
    portal = Portal("http://portal.test", "k", transport=httpx.MockTransport(FakePortal()))
    history = wide("x1,1,4,1,100,101,3.5,3.6,9,10", "x1,9,4,1,100,101,3.5,3.6,9,10")

    (brought,) = bring_in(portal, history, plan_of(None, "wide"), now=NOW)

    assert [(bad.line, bad.reason) for bad in brought.refused] == [(3, "arm-9: no such")]


def test_what_a_plan_is_warned_of_is_kept_beside_its_experiment() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/experiments":
            return httpx.Response(201, json={**json.loads(request.content), "warnings": ["metric_1_guard: 60%."]})
        return httpx.Response(200, json={"accepted": 2, "changed": 0, "duplicates": 0})

    portal = Portal("http://portal.test", "k", transport=httpx.MockTransport(answer))
    (brought,) = bring_in(portal, wide("x1,1,4,1,100,101,3.5,3.6,9,10"), plan_of(None, "wide"), now=NOW)

    assert brought.warnings == ["metric_1_guard: 60%."]


def test_an_experiment_that_is_refused_is_told_and_the_next_goes_in() -> None:
    fake = FakePortal()

    def answer(request: httpx.Request) -> httpx.Response:
        if b'"asos-x1"' in request.content:
            return httpx.Response(422, json={"code": "invalid", "detail": "too old"})
        return fake(request)

    portal = Portal("http://portal.test", "k", transport=httpx.MockTransport(answer))
    history = wide("x1,1,4,1,100,101,3.5,3.6,9,10", "x2,1,4,1,100,101,3.5,3.6,9,10")
    one, two = bring_in(portal, history, plan_of(None, "wide"), now=NOW)

    assert (one.problem, two.problem, two.accepted) == ("too old (invalid, 422)", "", 2)


@pytest.mark.parametrize(("accepted", "judged_after"), [(5, 3), (0, 1)])
def test_new_rows_wait_for_a_new_judgement_of_the_slot_and_repeated_ones_do_not(
    accepted: int, judged_after: int
) -> None:
    """The slot was judged before the rows came; the judgement that knows them comes with the third question."""
    questions = 0

    def answer(request: httpx.Request) -> httpx.Response:
        nonlocal questions
        if request.method == "POST":
            return httpx.Response(202, json={"slot": "2026-11-24T06:00:00Z"})
        questions += 1
        computed = "2026-11-24T06:00:01Z" if questions < 4 else "2026-11-24T06:00:09Z"
        newest = {"slot": "2026-11-24T06:00:00Z", "computed_at": computed}
        return httpx.Response(200, json={"results": [newest], "next": None})

    portal = Portal("http://portal.test", "k", transport=httpx.MockTransport(answer))
    brought = Brought(Recorded("x1"), "asos-x1", accepted=accepted)

    assert settle(portal, [brought], sleep=lambda _s: None) == []
    assert questions == judged_after + (1 if accepted else 0)


@pytest.mark.skipif(not ASOS.exists(), reason="the recorded experiments are not beside the project")
def test_the_recorded_experiments_are_read_whole() -> None:
    history = read(ASOS.read_text().splitlines(), plan_of(None, "wide"))

    assert len(history.experiments) == 24
    assert sum(len(recorded.arms) - 1 for recorded in history.experiments) == 31
    assert {bad.reason for bad in history.bad} == {f"control: the variance of metric_{m} is missing" for m in (2, 3, 4)}
    assert len(history.bad) == 363
