"""Celery's app and the whole beat table. Messages are hints: what may not be lost is a row in PostgreSQL (docs/adr/0004-postgresql-is-the-truth.md)."""

import os

from celery import Celery, Task
from celery.signals import task_postrun, task_prerun

from decisioning.logs import CAUSE, WOKEN_BY

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "decisioning.settings")
os.environ.setdefault("DECISIONING_ROLE", "worker")

app = Celery("decisioning")
app.conf.update(
    broker_url=os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"),
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 2},
    result_backend=None,
    task_ignore_result=True,
    task_default_expires=120,  # a hint that old says nothing any more
    task_soft_time_limit=50,
    task_time_limit=60,
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=False,
    timezone="UTC",
    # What is told to the outside waits for receivers: a process of its own takes this queue, so that no tick of the gates waits behind it.
    # So does what ends readers' sessions: it has to come in time.
    task_routes={"notices.*": {"queue": "notices"}, "access.*": {"queue": "notices"}},
    beat_schedule={
        "evaluate": {"task": "gates.tick", "schedule": 30},
        "backtests": {"task": "gates.backtests", "schedule": 10},
        "hours": {"task": "telemetry.hours", "schedule": 30},
        "sources": {"task": "telemetry.sources", "schedule": 30},
        "partitions": {"task": "telemetry.partitions", "schedule": 3600},
        "retention": {"task": "telemetry.retention", "schedule": 3600},
        "seal": {"task": "ledger.seal", "schedule": 30},
        "verify": {"task": "ledger.verify", "schedule": 3600},
        "erase": {"task": "ledger.erase", "schedule": 60},
        "readers": {"task": "access.readers", "schedule": 10},
        "deliver": {"task": "notices.deliver", "schedule": 5},
        "watch": {"task": "notices.watch", "schedule": 30},
        "promises": {"task": "notices.promises", "schedule": 300},
        "sweep": {"task": "notices.sweep", "schedule": 3600},
    },
)
app.autodiscover_tasks(["telemetry", "gates", "decisioning.ledger", "decisioning.notices"])


@task_prerun.connect
def _begin(task_id: str, task: Task, **_more: object) -> None:
    CAUSE.set(task_id)
    WOKEN_BY.set(tuple(task.request.get("woken_by") or ()))


@task_postrun.connect
def _end(**_more: object) -> None:
    CAUSE.set("")
    WOKEN_BY.set(())
