"""However rows arrive - late, twice, corrected, in any order, from many at once - the end is what one sorted pass gives."""

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from io import StringIO
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.test import Client
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from decisioning.access.models import Membership
from experiments.models import Experiment
from gates.consistency import differences
from gates.tasks import tick
from telemetry import hours
from telemetry.ingest import Target, ingest
from telemetry.row import Row
from telemetry.tasks import hours as hours_tick
from tests.api.conftest import Caller
from tests.conftest import as_role
from tests.examples import examples

TOP = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
HOURLY = {"expected_every_s": 1800, "freshness_target_s": 3600}
KPIS = [
    {"metric": {"key": "vrps", **HOURLY}, "role": "goal", "baseline": {"mean": 3.0, "stddev": 3.0}},
    {"metric": {"key": "total", "temporality": "cumulative", **HOURLY}, "role": "guardrail", "max_harm": 0.2},
]
BUCKETS = 8


def experiment(ops: Caller, key: str) -> dict[str, Any]:
    started = (TOP - timedelta(days=2)).isoformat()
    return ops.experiment(key=key, target_kpis=KPIS, started_at=started)


def row(metric: str, variant: str, bucket: int, version: int) -> dict[str, Any]:
    n = 50 * (BUCKETS - bucket) if metric == "total" else 40
    value = 3.0 + 0.1 * version + (0.5 if variant == "treatment" else 0.0) + bucket / 7
    return {
        "metric": metric,
        "variant": variant,
        "ts": (TOP - timedelta(minutes=30 * bucket)).isoformat(),
        "value": value,
        "n": n,
        "variance": 9.0,
        "revision": version,
    }


def shown(ops: Caller, key: str) -> Any:
    document = ops.get(f"/api/experiments/{key}").json()
    for kpi in document["kpis"]:
        kpi["freshness"].pop("last_refresh_at")
    for gate in document["gates"]:
        gate.pop("evidence", None)
    series = ops.get(f"/api/experiments/{key}/kpis?limit=10000").json()["results"]
    hourly = ops.get(f"/api/experiments/{key}/kpis?resolution=hour&limit=10000").json()["results"]
    for one in (*series, *hourly):
        one.pop("received_at", None)
    told = document["recommendation"]
    return document["kpis"], document["gates"], (told["action"], told["code"]), series, hourly


def work() -> None:
    with as_role("worker"):
        tick()
        hours_tick()


@examples(3, ignore=[HealthCheck.function_scoped_fixture], fresh=True)
@given(data=st.data())
def test_late_repeated_and_corrected_rows_in_any_order_end_where_one_sorted_pass_ends(
    ops: Caller, data: st.DataObject
) -> None:
    name = f"e{uuid4().hex[:12]}"
    mixed, sorted_ = experiment(ops, f"{name}-mixed"), experiment(ops, f"{name}-sorted")
    keys = [(m, v, b) for m in ("vrps", "total") for v in ("control", "treatment") for b in range(BUCKETS)]
    newest = {key: data.draw(st.integers(0, 2), label=str(key)) for key in keys}
    sent = [row(*key, version) for key in keys for version in range(newest[key] + 1)]
    sent += data.draw(st.lists(st.sampled_from(sent), max_size=10), label="repeats")
    shuffled = data.draw(st.permutations(sent), label="order")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=3), label="cuts"))

    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        if start < end:
            response = ops.post(f"/api/experiments/{mixed['id']}/kpis", {"rows": shuffled[start:end]})
            assert response.status_code == 200, response.content
        if data.draw(st.booleans(), label="a tick between"):
            work()
    once = sorted((row(*key, newest[key]) for key in keys), key=lambda r: str(r["ts"]))
    ops.post(f"/api/experiments/{sorted_['id']}/kpis", {"rows": once})
    work()

    for ended, expected in zip(shown(ops, f"{name}-mixed"), shown(ops, f"{name}-sorted"), strict=True):
        assert ended == expected
    with as_role("worker"):
        assert hours.differences() == []
        assert differences(Experiment.objects.get(pk=mixed["id"])) == []


def test_rows_find_their_experiment_by_number_and_by_key_and_no_other(ops: Caller) -> None:
    made = experiment(ops, "found")
    body = {"rows": [row("vrps", "control", 0, 0)]}
    for ref in (made["id"], "found"):
        assert ops.post(f"/api/experiments/{ref}/kpis", body).status_code == 200, ref
    for ref in ("lost", "0", "9" * 19, "9" * 5000):
        assert ops.post(f"/api/experiments/{ref}/kpis", body).status_code == 404, ref


def test_who_may_send_rows_in_one_team_and_only_look_in_another_sends_none_there(ops: Caller, stranger: Caller) -> None:
    experiment(ops, "looked-at")
    experiment(stranger, "measured")
    with as_role("owner"):
        person = User.objects.create_user("ada")
        for team, role in ((ops.team, "viewer"), (stranger.team, "operator")):
            Membership.objects.create(team=team, user=person, role=role)
    client = Client()
    client.force_login(person)
    for key, status in (("looked-at", 403), ("measured", 200)):
        sent = {"rows": [row("vrps", "control", 0, 0)]}
        response = client.post(f"/api/experiments/{key}/kpis", sent, content_type="application/json")
        assert response.status_code == status, response.content


@pytest.mark.django_db(transaction=True)
def test_many_writers_of_the_same_keys_in_opposite_orders_neither_deadlock_nor_lose_a_row(ops: Caller) -> None:
    made = experiment(ops, "crowded")
    target = Target(made["id"], ops.team.pk, frozenset({"control", "treatment"}))
    stamps = [TOP - timedelta(minutes=m) for m in range(60)]
    now = datetime.now(UTC)

    def write(writer: int) -> tuple[int, int, int]:
        rows = [Row("vrps", ts, float(writer), v, 5, 1.0, writer) for ts in stamps for v in ("control", "treatment")]
        random.Random(writer).shuffle(rows)
        try:
            with as_role("worker"):
                done = ingest(target, list(enumerate(rows)), now=now)
        finally:
            connection.close()
        return done.accepted, done.changed, done.duplicates

    with ThreadPoolExecutor(6) as pool:
        told = list(pool.map(write, range(12)))
    assert sum(accepted for accepted, _, _ in told) == 120
    assert all(sum(counts) == 120 for counts in told)
    work()
    with as_role("worker"), connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT value, revision FROM metrics.experiment_kpis")
        assert cursor.fetchall() == [(11.0, 11)]
        assert hours.differences() == []


def test_verify_hours_finds_what_was_changed_behind_its_back(ops: Caller) -> None:
    made = experiment(ops, "verified")
    ops.post(f"/api/experiments/{made['id']}/kpis", {"rows": [row("vrps", "control", b, 0) for b in range(4)]})
    out = StringIO()
    with as_role("worker"):
        call_command("verify_hours", stdout=out)
    assert out.getvalue().splitlines()[-1] == "No hour differs from its rows."
    with as_role("worker"), connection.cursor() as cursor:
        cursor.execute(
            "UPDATE metrics.kpi_hours SET value = value + 1 WHERE hour = (SELECT min(hour) FROM metrics.kpi_hours)"
        )
    with as_role("worker"), pytest.raises(Exception, match=r"^1 hours differ"):
        call_command("verify_hours", stdout=out)
