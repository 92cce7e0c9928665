"""The board, its spreadsheet, and what it asks for again and again."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_GET

from decisioning.board.presenters import (
    frame,
    slo,
)
from decisioning.board.presenters.board import page as board_page
from decisioning.board.views.base import page, person, polled, who
from decisioning.literals import whole_number


@require_GET
@person
def board(request: HttpRequest) -> HttpResponse:
    now = timezone.now()
    shown = board_page.board(who(request), request.GET, now=now) | {"summary": slo.summary(who(request), now=now)}
    return page(request, "board/board.html", shown, here="board", title=shown["lead"]["title"])


@require_GET
@polled
def news(request: HttpRequest) -> HttpResponse:
    """What came since the board was opened; the list itself never moves under a reader."""
    since = whole_number(request.GET.get("since", ""))
    number = 0 if since is None else board_page.newer_than(since)
    return render(request, "board/_news.html", {"number": number})


@require_GET
@polled
def watch(request: HttpRequest) -> HttpResponse:
    return render(request, "board/_watch.html", {"watch": frame.watchdog(timezone.now())})
