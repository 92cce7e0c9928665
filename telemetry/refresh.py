"""The refresh log's own jobs: every run of a job the portal runs leaves a row, whatever happens."""

import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from django.db import transaction

from telemetry.models import RefreshRun


@dataclass
class Run:
    """What a job says of itself while it works; a run that did nothing leaves no row. `failures`: parts that went wrong."""

    rows: int = 0
    data_watermark: dt.datetime | None = None
    worked: bool = False
    failures: list[str] = field(default_factory=list)


@contextmanager
def logged(job_name: str, *, clock: Callable[[], dt.datetime]) -> Iterator[Run]:
    """Run a job in one transaction and log it: succeeded with its rows in that transaction, or failed with its error.

    clock: the door's clock, read at start and end.
    """
    run, started_at = Run(), clock()
    try:
        with transaction.atomic():
            yield run
            if run.worked or run.failures:
                status = RefreshRun.Status.FAILED if run.failures else RefreshRun.Status.SUCCEEDED
                _record(job_name, run, started_at, clock(), status, "; ".join(run.failures) or None)
    except Exception as failure:
        _record(job_name, run, started_at, clock(), RefreshRun.Status.FAILED, f"{type(failure).__name__}: {failure}")
        raise


def _record(
    job_name: str, run: Run, started_at: dt.datetime, finished_at: dt.datetime, status: str, error: str | None
) -> None:
    RefreshRun.objects.create(
        run_id=uuid.uuid4(),
        job_name=job_name,
        started_at=started_at,
        finished_at=finished_at,
        status=status,
        rows=run.rows if run.worked else None,
        error=error,
        data_watermark=run.data_watermark,
    )
