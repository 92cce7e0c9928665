"""`/healthz`: the process is up. `/readyz`: reads and writes work. Neither belongs to a team."""

from datetime import timedelta

import redis
from django.conf import settings
from django.db import DatabaseError
from django.http import HttpRequest, JsonResponse
from django.utils import timezone

from decisioning.access.middleware import own_transaction
from decisioning.ledger.models import Heartbeat


@own_transaction
def healthz(_request: HttpRequest) -> JsonResponse:
    return JsonResponse({"status": "ok"})


@own_transaction
def readyz(_request: HttpRequest) -> JsonResponse:
    """200 while the database answers; broker and tick are told, not required: without them data still flows in."""
    try:
        newest = Heartbeat.objects.filter(name="gates.tick").values_list("slot", flat=True).first()
    except DatabaseError:
        return JsonResponse({"database": "down", "broker": _broker(), "tick": "unknown"}, status=503)
    late = newest is None or timezone.now() - newest > timedelta(seconds=900)
    return JsonResponse({"database": "ok", "broker": _broker(), "tick": "late" if late else "ok"})


def _broker() -> str:
    try:
        redis.Redis.from_url(settings.REDIS_URL, socket_timeout=0.2, socket_connect_timeout=0.2).ping()
    except redis.RedisError:
        return "down"
    return "ok"
