"""Run the ticks in this process while nothing else can wake the worker."""

import logging
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import redis
from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import close_old_connections

from decisioning.celery import app
from decisioning.logs import CAUSE

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 5.0


class Command(BaseCommand):
    help = (
        "Do what beat would ask the worker for, one after the other, until the broker answers again. `up` starts it when it is "
        "needed; elsewhere keep one running with --standby. Two at a time are harmless."
    )
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--standby", action="store_true", help="Wait while the broker answers, and never end.")

    def handle(self, *_args: Any, **options: Any) -> None:
        app.loader.import_default_modules()
        due = dict.fromkeys(app.conf.beat_schedule, 0.0)
        looked_at, answers = 0.0, False
        courier = ThreadPoolExecutor(
            1
        )  # what waits for receivers never holds up the gates, here as little as in the worker
        told: dict[str, Future[None]] = {}
        while True:
            if time.monotonic() - looked_at > _LOOK_EVERY_S:
                looked_at, was = time.monotonic(), answers
                answers = _answers()
                if was and not answers:
                    self.stdout.write("The broker does not answer: ticking here.")
            if answers:
                if not options["standby"]:
                    self.stdout.write("The broker answers.")
                    return
                time.sleep(1)
                continue
            for name, entry in app.conf.beat_schedule.items():
                if time.monotonic() >= due[name]:
                    due[name] = time.monotonic() + entry["schedule"]
                    if not entry["task"].startswith("notices."):
                        _run(entry["task"])
                    elif name not in told or told[name].done():
                        told[name] = courier.submit(_run, entry["task"])
            time.sleep(0.5)


def _answers() -> bool:
    try:
        redis.Redis.from_url(settings.REDIS_URL, **settings.REDIS_OPTIONS).ping()
    except redis.RedisError:
        return False
    return True


def _run(task: str) -> None:
    close_old_connections()
    CAUSE.set(uuid.uuid4().hex)
    try:
        app.tasks[task]()
    except Exception:
        _log.exception("%s failed; it is tried again when it is due", task)
    finally:
        close_old_connections()
