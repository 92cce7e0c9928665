"""Rows in: what is stored, what is counted, what is refused."""

import datetime as dt
import itertools
import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from django.db import connection, transaction
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from decisioning.access.models import Team
from experiments.models import Experiment, Metric
from telemetry import ingest as module
from telemetry.ingest import Target, _all_fit, _in_key_order, _Keys, _Measured, _misfit, ingest
from telemetry.models import ExperimentKpi
from telemetry.row import FUTURE, Denominator, IngestRefused, Row, check, decode
from tests.conftest import as_role
from tests.examples import examples

NOON = dt.datetime(2026, 11, 23, 12, tzinfo=dt.UTC)


@pytest.fixture
def target(team: Team, now: dt.datetime) -> Target:
    with as_role("owner"):
        Metric.objects.create(key="vrps", name="Value per session", created_at=now)
        Metric.objects.create(key="rate", name="Rate", kind="proportion", created_at=now)
        experiment = Experiment.objects.create(
            key="checkout", name="Checkout", hypothesis="h", owner="o", team=team, status="running",
            created_at=now, started_at=NOON - dt.timedelta(days=1),
        )  # fmt: skip
    return Target(experiment.pk, team.pk, frozenset({"control", "treatment"}))


def row(value: float = 1.0, **fields: object) -> Row:
    said = {"metric": "vrps", "variant": "control", "ts": NOON, "value": value, "n": 10, "variance": 2.0, **fields}
    return Row(**said)  # type: ignore[arg-type]


def send(target: Target, *rows: Row, now: dt.datetime, atomic: bool = True) -> tuple[int, int, int]:
    with as_role("worker"):
        done = ingest(target, list(enumerate(rows)), now=now, atomic=atomic)
    return done.accepted, done.changed, done.duplicates


def stored(target: Target) -> list[float]:
    with as_role("worker"):
        return list(
            ExperimentKpi.objects.filter(experiment_id=target.experiment_id)
            .order_by("ts")
            .values_list("value", flat=True)
        )


def test_a_row_sent_twice_is_stored_once_and_counted_as_a_duplicate(target: Target, now: dt.datetime) -> None:
    assert send(target, row(), now=now) == (1, 0, 0)
    assert send(target, row(), row(), now=now) == (0, 0, 2)
    assert stored(target) == [1.0]


def test_without_a_revision_the_later_arrival_wins_and_keeps_the_first_arrival_time(
    target: Target, now: dt.datetime
) -> None:
    send(target, row(1.0), now=now)
    assert send(target, row(2.0), now=now + dt.timedelta(minutes=1)) == (0, 1, 0)
    with as_role("worker"):
        kept = ExperimentKpi.objects.get(experiment_id=target.experiment_id)
    assert (kept.value, kept.first_received_at, kept.received_at) == (2.0, now, now + dt.timedelta(minutes=1))


def test_a_row_that_differs_in_the_length_of_its_bucket_alone_is_changed(target: Target, now: dt.datetime) -> None:
    send(target, row(window_s=900), now=now)
    assert send(target, row(window_s=3600), now=now) == (0, 1, 0)
    with as_role("worker"):
        assert ExperimentKpi.objects.get(experiment_id=target.experiment_id).window_s == 3600


def test_the_highest_revision_wins_whatever_the_order_of_arrival(target: Target, now: dt.datetime) -> None:
    send(target, row(3.0, revision=3), now=now)
    assert send(target, row(2.0, revision=2), now=now) == (0, 0, 1)
    assert stored(target) == [3.0]
    assert send(target, row(4.0, revision=4), row(1.0, revision=1), now=now) == (0, 1, 1)
    assert stored(target) == [4.0]


@pytest.mark.parametrize("together", [True, False])
def test_the_same_revision_with_another_value_is_a_conflict(target: Target, now: dt.datetime, together: bool) -> None:
    first, second = row(1.0, revision=1), row(2.0, revision=1)
    if not together:
        send(target, first, now=now)
    with pytest.raises(IngestRefused) as refusal:
        send(target, *([first, second] if together else [second]), now=now)
    assert (refusal.value.code, refusal.value.status) == ("conflicting_row", 409)


def test_a_row_without_a_revision_keeps_the_one_it_corrects_so_that_only_a_higher_one_replaces_it(
    target: Target, now: dt.datetime
) -> None:
    send(target, row(1.0, revision=5), now=now)
    assert send(target, row(2.0), now=now) == (0, 1, 0)
    assert send(target, row(9.0, revision=4), now=now) == (0, 0, 1), "what was outdated before is outdated now"
    with pytest.raises(IngestRefused) as refusal:
        send(target, row(1.0, revision=5), now=now)
    assert refusal.value.code == "conflicting_row"
    assert send(target, row(2.0, revision=5), now=now) == (0, 0, 1)
    assert send(target, row(1.0, revision=6), now=now) == (0, 1, 0)
    assert stored(target) == [1.0]


@pytest.mark.parametrize(
    ("wrong", "code", "pointer"),
    [
        (row(variant="nobody"), "unknown_variant", "/rows/1/variant"),
        (row(metric="nothing"), "unknown_metric", "/rows/1/metric"),
        (row(ts=NOON + dt.timedelta(days=2)), "timestamp_in_future", "/rows/1/ts"),
        (row(ts=NOON - dt.timedelta(days=401)), "timestamp_too_old", "/rows/1/ts"),
        (row(ts=dt.datetime(1969, 1, 1, tzinfo=dt.UTC)), "invalid_timestamp", "/rows/1/ts"),
        (row(1.5, metric="rate"), "out_of_bounds", "/rows/1/value"),
    ],
)
def test_one_bad_row_refuses_the_batch_and_is_named(
    target: Target, now: dt.datetime, wrong: Row, code: str, pointer: str
) -> None:
    with pytest.raises(IngestRefused) as refusal:
        send(target, row(), wrong, now=now)
    assert refusal.value.code == "invalid_rows"
    assert [(e.code, e.pointer) for e in refusal.value.errors] == [(code, pointer)]
    assert stored(target) == []


def test_good_rows_go_in_beside_bad_ones_when_asked_to(target: Target, now: dt.datetime) -> None:
    with as_role("worker"):
        done = ingest(target, [(0, row()), (1, row(variant="nobody"))], now=now, atomic=False)
    assert (done.accepted, [fault.index for fault in done.refused]) == (1, [1])
    assert stored(target) == [1.0]


@pytest.mark.parametrize(
    ("raw", "code", "pointer"),
    [
        ({"value": "1"}, "invalid_number", "/rows/0/value"),
        ({"value": True}, "invalid_number", "/rows/0/value"),
        ({"value": None}, "invalid_number", "/rows/0/value"),
        ({"n": -1}, "invalid_number", "/rows/0/n"),
        ({"n": 1.5}, "invalid_number", "/rows/0/n"),
        ({"variance": -0.1}, "invalid_number", "/rows/0/variance"),
        ({"ts": "2026-11-23T12:00:00"}, "naive_timestamp", "/rows/0/ts"),
        ({"ts": "yesterday"}, "invalid_timestamp", "/rows/0/ts"),
        ({"metric": "a\x00b"}, "invalid_text", "/rows/0/metric"),
        ({"variant": "x" * 64}, "invalid_text", "/rows/0/variant"),
        ({"denominator": {"variance": 1}}, "missing_field", "/rows/0/denominator/value"),
    ],
)
def test_each_kind_of_bad_value_has_its_code_and_pointer(raw: dict[str, object], code: str, pointer: str) -> None:
    _, bad, _ = check({"rows": [{"metric": "vrps", "ts": "2026-11-23T12:00:00Z", "value": 1.0, **raw}]})
    assert [(fault.code, fault.pointer) for fault in bad] == [(code, pointer)]


@pytest.mark.parametrize(
    ("raw", "pointer"),
    [
        ({"value": 1.7976931348623157e308}, "/rows/0/value"),
        ({"value": -1.01e100}, "/rows/0/value"),
        ({"value": 10**400}, "/rows/0/value"),
        ({"value": 1e-200}, "/rows/0/value"),
        ({"value": -5e-324}, "/rows/0/value"),
        ({"variance": 1e307}, "/rows/0/variance"),
        ({"variance": 1e-101}, "/rows/0/variance"),
        ({"n": 2**63 - 1}, "/rows/0/n"),
        ({"n": 2**63}, "/rows/0/n"),
        ({"n": 10**15 + 1}, "/rows/0/n"),
        ({"n": 1e300}, "/rows/0/n"),
        ({"denominator": {"value": 1e200}}, "/rows/0/denominator/value"),
        ({"denominator": {"value": 1, "variance": 1e-150}}, "/rows/0/denominator/variance"),
        ({"denominator": {"value": 1, "covariance": -1e120}}, "/rows/0/denominator/covariance"),
    ],
)
def test_a_number_that_nothing_could_be_computed_with_is_out_of_range_however_it_comes(
    target: Target, now: dt.datetime, raw: dict[str, Any], pointer: str
) -> None:
    sent = {"metric": "vrps", "variant": "control", "ts": "2026-11-23T12:00:00Z", "value": 1.0, **raw}
    _, bad, _ = check({"rows": [sent]})
    assert [(fault.code, fault.pointer) for fault in bad] == [("out_of_range", pointer)]
    rows = decode(json.dumps({"rows": [sent]}).encode())
    if rows is not None:  # too small a number is none that the decoder knows of
        with pytest.raises(IngestRefused) as refusal:
            send(target, *rows, now=now)
        assert [(fault.code, fault.pointer) for fault in refusal.value.errors] == [("out_of_range", pointer)]


def test_the_ends_of_the_range_and_zero_are_taken(target: Target, now: dt.datetime) -> None:
    hours = itertools.count()
    ends = [
        row(value, n=n, variance=variance, ts=NOON - dt.timedelta(hours=next(hours)))
        for value, n, variance in [(1e100, 10**15, 1e100), (-1e100, 0, 0.0), (1e-100, 1, 1e-100), (-1e-100, 2, 0.0)]
    ]
    assert decode(msgspec.json.encode({"rows": ends})) == ends
    assert send(target, *ends, row(0.0, ts=NOON - dt.timedelta(hours=5)), now=now) == (5, 0, 0)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"metric": "rate", "value": 1 + 2.3e-16}, {"value": 1.0}),
        ({"metric": "rate", "value": -1e-17}, {"value": 0.0}),
        ({"metric": "rate", "value": -5e-324}, {"value": 0.0}),
        ({"value": 0.1, "variance": -7e-15}, {"variance": 0.0}),
        ({"value": 2_000.0, "variance": -3e-6}, {"variance": 0.0}),
        ({"denominator": {"value": 2, "variance": -7e-15}}, {"denominator_variance": 0.0}),
    ],
)
def test_float_dust_is_rounded_to_the_bound(
    target: Target, now: dt.datetime, raw: dict[str, Any], said: dict[str, float]
) -> None:
    sent = {
        "metric": "vrps",
        "variant": "control",
        "ts": "2026-11-23T12:00:00Z",
        "value": 1.0,
        "n": 9,
        "variance": 1,
        **raw,
    }
    rows = decode(json.dumps({"rows": [sent]}).encode())
    if rows is None:
        good, bad, _ = check({"rows": [sent]})
        assert bad == []
        rows = [found for _, found in good]
    send(target, *rows, now=now)
    assert send(target, *rows, now=now) == (0, 0, 1), "the same again is nothing new"
    with as_role("worker"):
        assert ExperimentKpi.objects.values(*said).get() == said


@pytest.mark.parametrize(
    ("raw", "code", "pointer"),
    [
        ({"metric": "rate", "value": 1 + 1e-9}, "out_of_bounds", "/rows/0/value"),
        ({"metric": "rate", "value": -1e-9}, "out_of_bounds", "/rows/0/value"),
        ({"value": 0.1, "variance": -1e-9}, "invalid_number", "/rows/0/variance"),
        ({"value": 2_000.0, "variance": -1e-5}, "invalid_number", "/rows/0/variance"),
    ],
)
def test_more_than_dust_beyond_a_bound_is_refused(
    target: Target, now: dt.datetime, raw: dict[str, Any], code: str, pointer: str
) -> None:
    sent = {"metric": "vrps", "variant": "control", "ts": "2026-11-23T12:00:00Z", "value": 1.0, **raw}
    good, bad, _ = check({"rows": [sent]})
    with as_role("worker"):
        done = ingest(target, good, bad=bad, now=now, atomic=False)
    assert [(fault.code, fault.pointer) for fault in done.refused] == [(code, pointer)]


def test_a_row_without_its_fields_names_each_of_them() -> None:
    _, bad, _ = check({"rows": [{}]})
    assert [(f.code, f.pointer) for f in bad] == [
        ("missing_field", f"/rows/0/{name}") for name in ("metric", "ts", "value")
    ]


def test_the_fast_and_the_careful_reading_agree() -> None:
    body = b'{"rows": [{"metric": "m", "variant": "a", "ts": "2026-11-23T12:00:00+01:00", "value": 1, "n": 3, "variance": 0.5}]}'
    fast = decode(body)
    careful, bad, _ = check(
        {
            "rows": [
                {
                    "metric": "m",
                    "variant": "a",
                    "ts": "2026-11-23T12:00:00+01:00",
                    "value": 1,
                    "n": 3.0,
                    "variance": 0.5,
                }
            ]
        }
    )
    assert fast == [r for _, r in careful]
    assert bad == []


def test_more_than_ten_thousand_rows_are_refused_whole(target: Target, now: dt.datetime) -> None:
    many = [row(ts=NOON - dt.timedelta(seconds=i)) for i in range(10_001)]
    with pytest.raises(IngestRefused) as refusal:
        send(target, *many, now=now)
    assert (refusal.value.code, refusal.value.status) == ("batch_too_large", 413)


def test_a_ratio_keeps_its_denominator(target: Target, now: dt.datetime) -> None:
    send(target, row(denominator=Denominator(4.0, 1.0, 0.5)), now=now)
    with as_role("worker"):
        kept = ExperimentKpi.objects.get(experiment_id=target.experiment_id)
    assert (kept.denominator_value, kept.denominator_variance, kept.covariance) == (4.0, 1.0, 0.5)


def test_a_batch_leaves_one_audit_entry_and_says_what_changed_once_a_series(target: Target, now: dt.datetime) -> None:
    send(
        target,
        *[row(ts=NOON - dt.timedelta(hours=h), variant=v) for h in range(5) for v in ("control", "treatment")],
        now=now,
    )
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("SELECT object_repr, actor_name FROM audit.entries WHERE object_pk = 'batch'")
        assert cursor.fetchall() == [("10 rows", "decisioning_worker")]
        cursor.execute(
            "SELECT metric, variant, to_ts - from_ts FROM metrics.kpi_changes WHERE job = 'fold' ORDER BY variant"
        )
        assert cursor.fetchall() == [("vrps", v, dt.timedelta(hours=4)) for v in ("control", "treatment")]


def test_a_batch_that_both_adds_and_changes_rows_leaves_one_audit_entry(target: Target, now: dt.datetime) -> None:
    send(target, row(1.0), now=now)
    earlier = NOON - dt.timedelta(hours=2)
    send(target, row(2.0), row(3.0, ts=earlier), row(0.4, ts=earlier, metric="rate", n=None, variance=None), now=now)
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("SELECT action, object_repr, changes FROM audit.entries WHERE object_pk = 'batch' ORDER BY id")
        first, second = cursor.fetchall()
    assert first[:2] == (0, "1 rows")
    assert second[:2] == (1, "3 rows")
    assert json.loads(second[2]) == {
        "rows": [None, 3],
        "changed": [None, 1],
        "ts": ["2026-11-23T10:00:00+00:00", "2026-11-23T12:00:00+00:00"],
        "metric": ["rate", "vrps"],
    }


def test_an_update_and_a_later_insert_of_one_transaction_are_two_entries(target: Target) -> None:
    with as_role("owner"), connection.cursor() as cursor:
        insert = "INSERT INTO metrics.experiment_kpis (experiment_id, ts, metric, value) VALUES (%s, %s, 'vrps', 1)"
        cursor.execute(insert, [target.experiment_id, NOON])
        cursor.execute("UPDATE metrics.experiment_kpis SET value = 2")
        cursor.execute(insert, [target.experiment_id, NOON - dt.timedelta(hours=1)])
        cursor.execute("DELETE FROM metrics.experiment_kpis")
        cursor.execute("SELECT action, object_repr FROM audit.entries WHERE object_pk = 'batch' ORDER BY id")
        assert cursor.fetchall() == [(0, "1 rows"), (1, "1 rows"), (0, "1 rows"), (2, "2 rows")]


def test_rows_for_an_experiment_of_another_team_are_refused_by_the_database(target: Target, now: dt.datetime) -> None:
    from django.db import IntegrityError, transaction

    foreign = replace(target, team_id=target.team_id + 1)
    with pytest.raises(IntegrityError), transaction.atomic():
        send(foreign, row(), now=now)


def test_psql_may_insert_in_the_shape_of_the_requirements(target: Target) -> None:
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO metrics.experiment_kpis (experiment_id, ts, metric, value) VALUES (%s, %s, 'vrps', 1.5)",
            [target.experiment_id, NOON],
        )
    assert stored(target) == [1.5]


def test_a_batch_looked_at_as_a_whole_is_let_through_only_when_each_row_of_it_would_be() -> None:
    target = Target(1, 1, frozenset({"control", "treatment"}))
    measured = {"vrps": _Measured("mean"), "rate": _Measured("proportion", 0.0, 1.0)}
    oldest = NOON - dt.timedelta(days=30)
    near = [edge + dt.timedelta(microseconds=off) for edge in (oldest, NOON + FUTURE) for off in (-1, 0, 1)]
    for metric, ts, value, variant in itertools.product(
        ["vrps", "rate", "unheard"], near, [0.5, -1.0, 2.0], ["control", "treatment", "other"]
    ):
        one = row(value, metric=metric, ts=ts, variant=variant)
        misfit = _misfit(one, target, measured, now=NOON, oldest=oldest)
        for batch in ([one], [row(), one], [one, row()]):
            rows = list(enumerate(batch))
            let_through = _all_fit(_Keys.of(rows), rows, target, measured, now=NOON, oldest=oldest)
            assert let_through is (misfit is None), (one, misfit)


ROWS = st.lists(
    st.builds(
        row,
        st.sampled_from([0.0, 0.5, 1.0]),
        metric=st.sampled_from(["vrps", "rate"]),
        variant=st.sampled_from(["control", "treatment"]),
        ts=st.integers(0, 5).map(lambda hours: NOON - dt.timedelta(hours=hours)),
        revision=st.sampled_from([None, None, 1, 2]),
        window_s=st.sampled_from([None, 900]),
    ),
    max_size=8,
)


@examples(25, ignore=[HealthCheck.function_scoped_fixture], fresh=True)
@given(batches=st.lists(ROWS, max_size=4))
def test_batches_end_alike_whether_they_look_for_rows_expect_some_or_are_surprised_by_them(
    target: Target, now: dt.datetime, batches: list[list[Row]]
) -> None:
    def ended() -> list[object]:
        told: list[object] = []
        with transaction.atomic():
            with as_role("worker"):
                for number, batch in enumerate(batches):
                    at = now + dt.timedelta(minutes=number)
                    try:
                        with transaction.atomic():
                            told.append(ingest(target, list(enumerate(batch)), now=at))
                    except IngestRefused as refusal:
                        told.append((refusal.code, refusal.errors))
                told += ExperimentKpi.objects.order_by("metric", "variant", "ts").values_list()
            transaction.set_rollback(True)
        return told

    looks = ended()
    for answer in ("true", "false"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_MEETS_NONE", answer)
            assert ended() == looks


@examples(25, ignore=[HealthCheck.function_scoped_fixture], fresh=True)
@given(batch=ROWS)
def test_a_batch_ends_as_its_rows_would_one_by_one_but_for_those_that_contradict_each_other(
    target: Target, now: dt.datetime, batch: list[Row]
) -> None:
    def ended(*batches: list[tuple[int, Row]]) -> tuple[list[int], list[Any]]:
        refused: list[int] = []
        with transaction.atomic():
            with as_role("worker"):
                for sent in batches:
                    refused += [fault.index for fault in ingest(target, sent, now=now, atomic=False).refused]
                kept = list(ExperimentKpi.objects.order_by("metric", "variant", "ts").values_list())
            transaction.set_rollback(True)
        return sorted(refused), kept

    rows = list(enumerate(batch))
    contradicting = {index for same in _by_key(rows) if _contradict(same) for index, _ in same}
    refused, kept = ended(rows)
    assert (refused, kept) == (sorted(contradicting), ended(*([one] for one in rows if one[0] not in contradicting))[1])


def _by_key(rows: list[tuple[int, Row]]) -> list[list[tuple[int, Row]]]:
    def key(row: Row) -> tuple[object, ...]:
        return row.metric, row.variant, row.ts

    return [[one for one in rows if key(one[1]) == known] for known in {key(row) for _, row in rows}]


def _contradict(same: list[tuple[int, Row]]) -> bool:
    """Whether nothing tells which of these holds."""
    highest = max((row.revision or 0 for _, row in same), default=0)
    return len({(row.value, row.window_s) for _, row in same if (row.revision or highest) == highest}) > 1


@given(
    st.lists(
        st.builds(
            row,
            metric=st.text("abÄ-_", max_size=3),
            variant=st.text("abÄ-_", max_size=3),
            ts=st.datetimes(timezones=st.timezones(), min_value=dt.datetime(1970, 1, 2), max_value=dt.datetime(9997, 1, 1)),  # noqa: DTZ001
        ),
        max_size=30,
    )
)  # fmt: skip
def test_rows_go_to_the_database_in_the_order_of_their_keys(rows: list[Row]) -> None:
    sent = list(enumerate(rows))
    found = _in_key_order(sent, _Keys.of(sent), str)
    known = [(r.metric, r.variant, r.ts.astimezone(dt.UTC)) for _, r in found.rows]
    assert known == sorted({(r.metric, r.variant, r.ts.astimezone(dt.UTC)) for r in rows})
    assert found.repeated == len(rows) - len(known)
    assert (found.keys.numbers == _Keys.of(found.rows).numbers).all()


def test_looking_for_rows_to_meet_reads_no_whole_partition_where_many_are_expected_and_there_are_none(
    target: Target,
) -> None:
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO metrics.experiment_kpis (experiment_id, team_id, ts, metric, variant, value) "
            "SELECT %s, %s, %s::timestamptz - i * interval '1 minute', 'vrps', variant, 1 "
            "FROM generate_series(1, 10000) AS i, unnest('{control,treatment}'::text[]) AS variant WHERE variant = 'control' OR i <= 5000",
            [target.experiment_id, target.team_id, NOON],
        )
        cursor.execute("ANALYZE metrics.experiment_kpis")
        sent: dict[str, Any] = {"experiment": target.experiment_id, "metrics": ["vrps"], "variants": ["treatment"]}
        sent |= {"first": NOON - dt.timedelta(minutes=9_000), "last": NOON - dt.timedelta(minutes=6_000)}
        cursor.execute(f"SELECT {module._MEETS_NONE}", sent)
        assert cursor.fetchall() == [(True,)]
        cursor.execute(f"EXPLAIN SELECT {module._MEETS_NONE}", sent)
        assert "Seq Scan" not in str(cursor.fetchall())
