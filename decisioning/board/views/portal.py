"""What the portal says of itself: its promises and its audit."""

from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_GET

from decisioning.board.presenters import (
    records,
    slo,
)
from decisioning.board.views.base import page, person, who


@require_GET
@person
def promises_page(request: HttpRequest) -> HttpResponse:
    return page(
        request, "board/slo.html", slo.page(who(request), now=timezone.now()), here="promises", title="Promises"
    )


@require_GET
@person
def audit(request: HttpRequest) -> HttpResponse:
    return page(
        request, "board/audit.html", records.audit(request.GET, now=timezone.now()), here="audit", title="Audit log"
    )
