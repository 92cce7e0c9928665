"""Several programs at once, each in its own connection."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection

from tests.api.conftest import PLAN, Caller, Makes


@pytest.fixture
def ops(transactional_db: None, caller: Makes) -> Caller:
    return caller("growth", owner="ops@example.org")


def at_once(ops: Caller, count: int, body: Mapping[str, object]) -> list[tuple[int, str]]:
    def one(_: int) -> tuple[int, str]:
        try:
            answer = Caller(ops.secret, ops.team).post("/api/experiments", body)
            return answer.status_code, answer.json().get("key", answer.json().get("code"))
        finally:
            connection.close()

    with ThreadPoolExecutor(count) as pool:
        return sorted(pool.map(one, range(count)))


def test_of_equal_keys_one_is_made_and_the_others_are_told(ops: Caller) -> None:
    assert at_once(ops, 4, {**PLAN, "key": "mine"}) == [(201, "mine")] + [(409, "key_taken")] * 3


def test_equal_names_and_new_metrics_get_along(ops: Caller) -> None:
    plan = {**PLAN, "target_kpis": ["b_metric", {"metric": "a_metric", "role": "shown"}]}
    assert at_once(ops, 4, plan) == [(201, "one-page-checkout"), *((201, f"one-page-checkout-{n}") for n in (2, 3, 4))]
