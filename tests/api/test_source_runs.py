"""What runs of a source read again: rows that came late, rows that were mended, and what somebody asks for. Nothing is lost on the way."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings

from telemetry.models import ExperimentKpi, RefreshRun, Source
from telemetry.tasks import sources as tick
from tests.api.conftest import Caller
from tests.api.warehouse import bind
from tests.conftest import as_role

TOP = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
QUERY = "SELECT * FROM rows WHERE ts > :since AND ts <= :until"
KEY = "one-page-checkout"


class Export:
    """A CSV file below the folder of files, to which rows are added, and the source that reads it."""

    def __init__(self, folder: Path, ops: Caller) -> None:
        self.path, self.ops = folder / "export.csv", ops
        self.lines: list[str] = []

    def add(
        self, hours_ago: float, value: object = 1, *, variant: str = "control", experiment: str = KEY, ts: str = ""
    ) -> None:
        at = ts or (TOP - timedelta(hours=hours_ago)).isoformat()
        self.lines.append(f"{experiment},vrps,{variant},{at},{value},10")
        self.path.write_text("\n".join(["experiment,metric,variant,ts,value,n", *self.lines]))

    def source(self, **said: Any) -> None:
        plan = {"key": "export", "kind": "file", "path": "export.csv", "query": QUERY, "metrics": ["vrps"], **said}
        response = self.ops.post("/api/sources", plan)
        assert response.status_code == 201, response.content

    def run(self, since: str = "") -> RefreshRun:
        response = self.ops.post(f"/api/sources/export/refresh{since}")
        assert response.status_code == 202, response.content
        with as_role("worker"):
            tick()
            return RefreshRun.objects.filter(source="export").latest("id")


@pytest.fixture
def export(ops: Caller, settings: LazySettings, tmp_path: Path) -> Export:
    settings.SOURCES_DIR = tmp_path
    bind(ops.team, folder="export.csv")
    ops.experiment(started_at=(TOP - timedelta(days=60)).isoformat())
    return Export(tmp_path, ops)


def hours_stored(variant: str = "control") -> list[float]:
    with as_role("worker"):
        found = ExperimentKpi.objects.filter(variant=variant).order_by("ts").values_list("ts", flat=True)
        return [(TOP - ts) / timedelta(hours=1) for ts in found]


def one() -> Source:
    with as_role("worker"):
        return Source.objects.get()


def test_one_late_series_of_a_shared_source_is_read_when_it_comes(export: Export) -> None:
    for hours_ago in (30, 29, 1):
        export.add(hours_ago)
    export.add(30, variant="treatment")
    export.source()
    export.run()
    for hours_ago in (29, 28, 27):
        export.add(hours_ago, variant="treatment")
    export.add(28)

    assert export.run().status == "succeeded"

    assert hours_stored("treatment") == [30, 29, 28, 27]
    assert hours_stored("control") == [30, 29, 1], (
        "rows before what was read are read for the series that is behind alone"
    )


def test_a_series_that_begins_long_after_its_experiment_is_read_when_it_comes(export: Export) -> None:
    for hours_ago in (24 * 9, 30, 1):
        export.add(hours_ago)
    export.source()
    export.run()
    for hours_ago in (30, 2):
        export.add(hours_ago, variant="treatment")

    assert export.run().status == "succeeded"

    assert hours_stored("treatment") == [30, 2]


def test_a_series_of_which_nothing_has_come_for_a_week_holds_nothing_back(export: Export) -> None:
    export.add(1)
    export.add(24 * 8, variant="treatment")
    export.source()
    export.run()
    with as_role("worker"):
        from telemetry.sources.window import reading

        asked = reading(one(), now=datetime.now(UTC))
    assert (asked.since, asked.late) == (TOP - timedelta(hours=2), frozenset())


def test_the_rows_that_an_experiment_had_before_it_was_made_here_come_with_the_next_run(
    export: Export, ops: Caller
) -> None:
    for hours_ago in (24 * 20, 24 * 9, 1):
        export.add(hours_ago)
        export.add(hours_ago, variant="treatment")
        export.add(hours_ago, experiment="made-later")
    export.source()
    assert export.run().ignored == 3
    ops.experiment(key="made-later", name="Made later", started_at=(TOP - timedelta(days=30)).isoformat())

    run = export.run()

    assert (run.rows, run.ignored) == (3, 0)
    assert hours_stored() == [480, 480, 216, 216, 1, 1]


def test_a_mended_row_comes_with_the_next_run_though_the_others_went_on(export: Export) -> None:
    export.add(20, "n/a")
    for hours_ago in (10, 1):
        export.add(hours_ago)
    export.source(overlap_s=0)
    first = export.run()
    assert (first.status, first.refused, one().read_to) == ("partial", 1, TOP - timedelta(hours=1))
    assert "Line 2 of export.csv: value is 'n/a'; it must be a finite number. (invalid_number)" in str(first.error)
    assert (export.run().status, one().again_from) == ("partial", TOP - timedelta(hours=20)), "until it is mended"

    export.lines = [line.replace("n/a", "2") for line in export.lines]
    export.add(0.5)
    mended = export.run()

    assert (mended.status, mended.rows, hours_stored()) == ("succeeded", 2, [20, 10, 1, 0.5])
    assert one().again_from is None


def test_a_row_without_a_time_that_can_be_read_is_looked_for_as_far_as_the_run_that_refused_it_read(
    export: Export,
) -> None:
    export.add(50)
    export.add(1)
    export.add(0, ts="soon")
    export.source(overlap_s=0)
    assert export.run().status == "partial"
    export.lines[-1] = export.lines[-1].replace("soon", (TOP - timedelta(hours=40)).isoformat())
    export.add(0.5)
    assert (export.run().status, hours_stored()) == ("succeeded", [50, 40, 1, 0.5])


def test_what_is_older_comes_again_when_somebody_asks_for_it(export: Export, ops: Caller) -> None:
    export.add(1)
    export.add(1, variant="treatment")
    export.source()
    export.run()
    export.add(24 * 30)
    assert export.run().rows == 0
    since = (TOP - timedelta(days=31)).isoformat().replace("+", "%2B")
    tried = ops.post(f"/api/sources/export/refresh?dry_run=true&since={since}").json()
    assert (tried["accepted"], tried["duplicates"]) == (1, 2)
    assert (export.run(f"?since={since}").rows, hours_stored()) == (1, [720, 1])
    assert ops.post("/api/sources/export/refresh?since=yesterday").status_code == 400


def test_a_sum_of_which_a_line_cannot_be_read_is_not_stored(export: Export, ops: Caller) -> None:
    export.add(2)
    export.add(2, "x")
    query = f"SELECT experiment, metric, variant, ts, sum(value) AS value, sum(n) AS n FROM ({QUERY}) GROUP BY ALL"  # noqa: S608
    export.source(query=query)
    run = export.run()
    assert (run.status, hours_stored()) == ("failed", [])
    assert str(run.error).startswith("Line 3 of export.csv: value is 'x'")
    export.lines[1] = f"another-one,vrps,control,{TOP.isoformat()},x,1"
    export.add(1)
    assert (export.run().status, hours_stored()) == ("succeeded", [2, 1]), "a line of somebody else's fails nothing"


def test_an_ambiguous_date_is_refused_until_the_source_says_what_is_first(export: Export, ops: Caller) -> None:
    day = TOP - timedelta(days=1)
    export.add(0, ts=f"{day:%m/%d/%Y}")
    tried = ops.post("/api/sources?dry_run=true", plan := {
        "key": "export", "kind": "file", "path": "export.csv", "query": QUERY, "metrics": ["vrps"],
    }).json()  # fmt: skip
    assert (tried["refused"], "date_format" in tried["problems"][0], "(ambiguous_date)" in tried["problems"][0]) == (
        1,
        True,
        True,
    )
    told = ops.post("/api/sources", {**plan, "date_format": "%m/%d/%Y", "time_zone": "UTC"}).json()
    assert told["date_format"] == "%m/%d/%Y"
    assert export.run().status == "succeeded"
    with as_role("worker"):
        assert ExperimentKpi.objects.get().ts == day.replace(hour=0)


@pytest.mark.parametrize("date_format", ["%Q", "%H:%M", "%m/%Y", "%d/%m/%Y %I:%M", "%j"])
def test_a_date_format_that_leaves_something_open_is_refused(ops: Caller, export: Export, date_format: str) -> None:
    export.add(1)
    plan = {"key": "export", "kind": "file", "path": "export.csv", "query": QUERY, "metrics": ["vrps"]}
    response = ops.post("/api/sources", {**plan, "date_format": date_format})
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "/date_format")
