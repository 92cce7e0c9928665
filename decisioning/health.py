"""`/healthz`: the process is up. `/readyz`: reads and writes work. `/metrics`: figures for Prometheus. None belongs to a team."""

import ipaddress
import os
import secrets
from collections.abc import Iterator
from datetime import datetime, timedelta
from time import monotonic

import redis
from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.http import require_GET
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from decisioning.access.middleware import own_transaction
from decisioning.access.principal import bind_portal
from decisioning.api.problems import is_out_of_room
from decisioning.database.liveness import PRIMARY
from decisioning.ledger.models import Heartbeat, OutboxMessage
from decisioning.slo import figures as slo

LATE_AFTER = timedelta(seconds=900)
_COUNTED_FOR_S = 15.0


@own_transaction
def healthz(_request: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "ok"})


@own_transaction
def readyz(_request: HttpRequest) -> JsonResponse:
    """200 while the database answers and takes writes; broker and tick are told, not required: without them data still flows in."""
    broker = "ok" if _broker_answers() else "down"
    try:
        newest, writes = (None, "") if PRIMARY.away else (_newest_slot(), _WRITES.standing())
    except DatabaseError:
        return _not_ready(broker)
    if PRIMARY.away:
        return _not_ready(broker)
    late = newest is None or timezone.now() - newest > LATE_AFTER
    told = {"database": "ok", "writes": writes, "broker": broker, "tick": "late" if late else "ok"}
    return JsonResponse(told, status=200 if writes == "ok" else 503)


def _not_ready(broker: str) -> JsonResponse:
    told = {"database": "down", "writes": "down", "broker": broker, "tick": "unknown"}
    return JsonResponse(told, status=503)


class _Writes:
    """Whether the database takes writes, tried at most every few seconds: it may answer, and have no room, or be a replica."""

    TRIED_FOR_S = 5.0
    _ROOM = 50_000  # rows that are put on its disk, about a megabyte, and thrown away

    def __init__(self) -> None:
        self._kept: tuple[float, str] | None = None

    def standing(self) -> str:
        """`ok`, `read_only`, `disk_full` or `failing`. Raises DatabaseError when it does not answer."""
        if self._kept is None or monotonic() - self._kept[0] > self.TRIED_FOR_S:
            self._kept = (monotonic(), self._try())
        return self._kept[1]

    def _try(self) -> str:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT current_setting('transaction_read_only')::bool")
                if cursor.fetchone() == (True,):
                    return "read_only"
                cursor.execute("SET LOCAL work_mem = '64kB'")  # what does not fit is written to disk
                cursor.execute("SELECT count(*) FROM generate_series(1, %s)", [self._ROOM])
        except DatabaseError as failure:
            if not connection.is_usable():
                raise
            return "disk_full" if is_out_of_room(failure) else "failing"
        return "ok"


_WRITES = _Writes()


@own_transaction
@require_GET
def metrics(request: HttpRequest) -> HttpResponse:
    """What this web server counted, and the portal's own promises; from loopback, else with DECISIONING_METRICS_TOKEN."""
    if not _may_scrape(request):
        refusal = HttpResponse(
            "Send Authorization: Bearer with DECISIONING_METRICS_TOKEN.\n", status=401, content_type="text/plain"
        )
        refusal["WWW-Authenticate"] = 'Bearer realm="decisioning metrics"'
        return refusal
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))  # OpenMetrics for those who ask for it
    return HttpResponse(encode(_REGISTRY), content_type=content_type)


def _may_scrape(request: HttpRequest) -> bool:
    token, (kind, _, sent) = settings.METRICS_TOKEN, request.headers.get("Authorization", "").partition(" ")
    if token and kind.lower() == "bearer" and secrets.compare_digest(sent.strip().encode(), token.encode()):
        return True
    try:
        address = ipaddress.ip_address(request.META.get("REMOTE_ADDR", ""))
    except ValueError:
        return False
    return address.is_loopback and not getattr(request, "forwarded", False)


class _Portal:
    """The figures that are in the database, counted at most every 15 seconds. A database that is away leaves only that it is."""

    def __init__(self) -> None:
        self._kept: tuple[float, list[GaugeMetricFamily]] = (0.0, [])

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing, so that registering asks no database."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield _gauge("decisioning_broker_up", "1 while Redis answers.", float(_broker_answers()))
        counted_at, found = self._kept
        up = not PRIMARY.away
        if up and (not found or monotonic() - counted_at > _COUNTED_FOR_S):
            try:
                found = list(_figures(timezone.now()))
            except DatabaseError:
                up = False
            else:
                self._kept = (monotonic(), found)
        yield _gauge("decisioning_database_up", "1 while the database answers.", float(up))
        if up:
            yield from found


def _figures(now: datetime) -> Iterator[GaugeMetricFamily]:
    with transaction.atomic():
        bind_portal("metrics")
        found, newest = slo.recent("portal", now=now), _newest_slot()
        waiting = OutboxMessage.objects.filter(delivered_at__isnull=True).count()
    age = (now - newest).total_seconds() if newest else float("inf")
    yield _gauge(
        "decisioning_newest_slot_age_seconds", "Since the newest slot that was judged; +Inf before the first.", age
    )
    yield _gauge("decisioning_missed_slots", "Slots judged later than their time, ever.", found.missed_slots)
    yield _gauge(
        "decisioning_unjudgeable_experiments",
        "Experiments that cannot be judged; what they propose is suspended.",
        found.unjudgeable,
    )
    yield _gauge("decisioning_outbox_waiting", "Messages not delivered yet.", waiting)
    yield _gauge(
        "decisioning_overdue_answers",
        "Proposals that people have not answered in their team's time.",
        found.answers.overdue,
    )
    latencies = {"telemetry": found.telemetry, "decision": found.decision}
    shares = {"reads": found.reads, "recommended_within_24h": found.recommended, "telemetry_failures": found.failures}
    yield _gauges(
        "decisioning_latency_p95_seconds",
        "95th percentile, by promise.",
        {name: f.p95_s for name, f in latencies.items()},
    )
    yield _gauges("decisioning_share", "Share counted by a promise.", {name: f.share for name, f in shares.items()})
    both: dict[str, slo.Latency | slo.Share] = {**latencies, **shares}
    yield _gauges("decisioning_slo_holds", "1 while the promise holds.", {n: _number(f.holds) for n, f in both.items()})
    yield _gauges(
        "decisioning_slo_budget_left", "Part of the error budget that is left; below 0 when it is overdrawn.",
        {name: f.budget_left for name, f in both.items()},
    )  # fmt: skip
    days = {"50": found.days.median, "95": found.days.p95}
    yield _gauges(
        "decisioning_time_to_decide_seconds",
        "From the first look that could be read to a proposal.",
        {percentile: None if told is None else told * 86_400 for percentile, told in days.items()},
        label="percentile",
    )
    burns = {f"{burn.over.total_seconds() / 3600:.0f}h": burn.rate for burn in found.burns}
    yield _gauges(
        "decisioning_reads_burn", "Speed at which the budget of reads is used; 1 lasts the window.", burns, label="over"
    )


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, what, value=value)


def _gauges(name: str, what: str, values: dict[str, float | None], *, label: str = "promise") -> GaugeMetricFamily:
    """Without those that nothing was counted for."""
    family = GaugeMetricFamily(name, what, labels=[label])
    for word, value in values.items():
        if value is not None:
            family.add_metric([word], value)
    return family


def _number(holds: bool | None) -> float | None:  # noqa: FBT001 - a figure
    return None if holds is None else float(holds)


def _newest_slot() -> datetime | None:
    return Heartbeat.objects.filter(name="gates.tick").values_list("slot", flat=True).first()


def _broker_answers() -> bool:
    try:
        redis.Redis.from_url(settings.REDIS_URL, **settings.REDIS_OPTIONS).ping()
    except redis.RedisError:
        return False
    return True


_REGISTRY = REGISTRY
if "PROMETHEUS_MULTIPROC_DIR" in os.environ:  # several processes answer on one port; each tells what all have counted
    _REGISTRY = CollectorRegistry()
    MultiProcessCollector(_REGISTRY)  # type: ignore[no-untyped-call]
_REGISTRY.register(_Portal())
