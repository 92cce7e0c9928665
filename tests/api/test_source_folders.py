"""Sources of many files: the newest first, each once, and never more than the team may read."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings

from telemetry.models import ExperimentKpi, RefreshRun, Source, SourceFile
from telemetry.sources import folders
from telemetry.tasks import sources as tick
from tests.api.conftest import Caller, errors_of
from tests.api.warehouse import bind
from tests.conftest import as_role

TOP = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
PLAN = {
    "key": "exports", "kind": "file", "path": "growth/*.csv", "query": "SELECT * FROM rows WHERE ts > :since AND ts <= :until",
    "metrics": ["vrps"],
}  # fmt: skip


@pytest.fixture
def exports(ops: Caller, settings: LazySettings, tmp_path: Path) -> Path:
    settings.SOURCES_DIR = tmp_path
    (folder := tmp_path / "growth").mkdir()
    bind(ops.team, folder="growth")
    ops.experiment(started_at=(TOP - timedelta(days=60)).isoformat())
    return folder


def put(path: Path, hours_ago: float, value: object = 1, *, age_s: int = 0) -> Path:
    """A file of one row, changed so many seconds ago."""
    ts = (TOP - timedelta(hours=hours_ago)).isoformat()
    path.write_text(f"experiment,metric,variant,ts,value,n\none-page-checkout,vrps,control,{ts},{value},10\n")
    at = datetime.now(UTC).timestamp() - age_s
    os.utime(path, (at, at))
    return path


def create(ops: Caller, **said: Any) -> None:
    response = ops.post("/api/sources", PLAN | said)
    assert response.status_code == 201, response.content


def run(ops: Caller, since: str = "") -> RefreshRun:
    ops.post(f"/api/sources/exports/refresh{since}")
    with as_role("worker"):
        tick()
        return RefreshRun.objects.filter(source="exports").latest("id")


def stored() -> list[tuple[float, float]]:
    with as_role("worker"):
        return [((TOP - row.ts) / timedelta(hours=1), row.value) for row in ExperimentKpi.objects.order_by("ts")]


@pytest.mark.parametrize("path", ["growth/*.csv", "growth/", "growth", "gr*/k*.csv", "growth/*"])
def test_each_file_of_a_folder_is_read_once_however_old_its_rows_are(ops: Caller, exports: Path, path: str) -> None:
    put(exports / "k2.csv", 1)
    put(exports / "k1.csv", 24 * 30, age_s=100)
    put(exports / "_k.csv", 5), put(exports / ".k.csv", 5)
    create(ops, path=path)
    first, second = run(ops), run(ops)
    assert (first.status, first.rows, second.status, second.rows) == ("succeeded", 2, "succeeded", 0)
    put(exports / "k3.csv", 24 * 20)
    third = run(ops)
    assert (third.rows, stored()) == (1, [(720, 1), (480, 1), (1, 1)])


def test_the_newest_comes_first_and_what_is_left_the_next_run_reads_at_once(
    ops: Caller, exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(exports / "old.csv", 5, age_s=100)
    put(exports / "new.csv", 1)
    monkeypatch.setattr("telemetry.sources.runs.MOST_ROWS", 1)
    create(ops)
    run(ops)
    assert stored() == [(1, 1)]
    with as_role("worker"):
        assert Source.objects.get().due_at <= datetime.now(UTC)
        tick()
    assert stored() == [(5, 1), (1, 1)]


def test_a_file_that_has_changed_is_read_again_and_one_that_is_gone_forgotten(ops: Caller, exports: Path) -> None:
    put(exports / "a.csv", 1, age_s=100)
    create(ops)
    run(ops)
    put(exports / "a.csv", 1, 2)
    assert (run(ops).rows, stored()) == (1, [(1, 2)])
    (exports / "a.csv").rename(exports / "b.csv")
    assert run(ops).rows == 0, "the same row, in a file of another name"
    with as_role("worker"):
        assert [file.path for file in SourceFile.objects.all()] == ["growth/b.csv"]


def test_files_changed_since_somebody_asks_are_read_again(ops: Caller, exports: Path) -> None:
    put(exports / "a.csv", 1, age_s=7_200)
    put(exports / "b.csv", 2)
    create(ops)
    run(ops)
    with as_role("owner"):
        ExperimentKpi.objects.all().delete()
    since = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert (run(ops, f"?since={since}").rows, stored()) == (1, [(2, 1)])


def test_a_file_that_cannot_be_read_holds_no_other_up_and_is_told_by_its_name(ops: Caller, exports: Path) -> None:
    (exports / "newest.csv").write_text("")
    put(exports / "a.csv", 1, age_s=100)
    create(ops)
    for _ in range(2):
        told = run(ops)
        assert told.status == "partial"
        assert str(told.error).startswith("1 of 2 files could not be read. growth/newest.csv: The file is empty")
    assert stored() == [(1, 1)]


def test_a_file_of_which_a_row_was_refused_is_read_until_it_is_mended(ops: Caller, exports: Path) -> None:
    put(exports / "a.csv", 1, age_s=100)
    put(exports / "b.csv", 2, "x")
    create(ops)
    first, second = run(ops), run(ops)
    assert (first.status, second.status) == ("partial", "partial")
    assert "Line 2 of growth/b.csv: value is 'x'" in str(second.error)
    put(exports / "b.csv", 2, 5)
    assert (run(ops).status, stored()) == ("succeeded", [(2, 5), (1, 1)])


def test_where_no_file_matches_a_run_fails_and_a_dry_run_reads_the_newest(ops: Caller, exports: Path) -> None:
    create(ops)
    assert (run(ops).status, "No file matches" in str(run(ops).error)) == ("failed", True)
    put(exports / "a.csv", 2, age_s=100)
    put(exports / "b.csv", 1)
    tried = ops.post("/api/sources/exports/refresh?dry_run=true").json()
    assert [row["ts"] for row in tried["rows"]] == [str(TOP - timedelta(hours=1))]


@pytest.mark.parametrize(
    "path", ["**/*.csv", "growth/**", "../*.csv", "/etc/*", "growth/../../*", "other/*.csv", "other/", "growth/*.txt", "*\x00.csv"]
)  # fmt: skip
def test_a_pattern_that_leads_elsewhere_is_refused(ops: Caller, stranger: Caller, exports: Path, path: str) -> None:
    (exports.parent / "other").mkdir()
    bind(stranger.team, folder="other")
    response = ops.post("/api/sources", PLAN | {"path": path})
    assert response.status_code == 422
    assert [pointer for pointer, _ in errors_of(response)] == ["/path"]


def test_a_link_in_a_folder_leads_nowhere_else(ops: Caller, stranger: Caller, exports: Path) -> None:
    (other := exports.parent / "other").mkdir()
    bind(stranger.team, folder="other")
    (exports / "a.csv").symlink_to(put(other / "theirs.csv", 1))
    create(ops)
    told = run(ops)
    assert (told.status, "'growth/a.csv'" in str(told.error), stored()) == ("failed", True, [])
    (exports / "a.csv").unlink()
    (exports / "a.csv").symlink_to(put(exports.parent.parent / "outside.csv", 1))
    assert "is not below the folder of files" in str(run(ops).error)


def test_more_files_than_can_be_watched_are_refused(
    ops: Caller, exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(exports / "a.csv", 1), put(exports / "b.csv", 2)
    monkeypatch.setattr(folders, "MOST_FILES", 1)
    create(ops)
    assert "More than 1 files match" in str(run(ops).error)
