"""Lists: cursor pagination with a limit that is refused rather than clamped, filters, and an order one may choose."""

from collections.abc import Callable, Sequence
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import Field, Model, QuerySet
from django_filters import FilterSet  # type: ignore[import-untyped]
from rest_framework.exceptions import NotFound
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.response import Response

from decisioning.api.problems import bad_parameter
from decisioning.literals import whole_number

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
PAGING = frozenset({"limit", "cursor", "ordering"})


def limit_of(request: Request, *, default: int = DEFAULT_LIMIT, most: int = MAX_LIMIT) -> int:
    """`?limit=`, 1 to `most`."""
    text = request.query_params.get("limit")
    if text is None:
        return default
    if not (number := whole_number(text, most=most)):
        raise bad_parameter("limit", f"{text[:60]!r} must be a whole number from 1 to {most}")
    return number


class _Pages(CursorPagination):
    field: "Field[Any, Any]"

    def get_page_size(self, request: Request) -> int:
        return limit_of(request)

    def decode_cursor(self, request: Request) -> Any:
        """Raises NotFound, also when where it stands is no value of what the list is ordered by."""
        cursor = super().decode_cursor(request)
        if cursor is not None and cursor.position is not None:
            try:
                self.field.get_prep_value(self.field.to_python(cursor.position))
            except (ValidationError, ValueError, TypeError, OverflowError) as error:
                raise NotFound from error
            if "\x00" in str(cursor.position):
                raise NotFound
        return cursor


def page[M: Model](
    request: Request,
    rows: QuerySet[M],
    *,
    shown: Callable[[Sequence[M]], Sequence[Any]],
    ordering: str = "-id",
    orderings: Sequence[str] = ("id",),
) -> Response:
    """`{results, next, previous}` of a queryset. orderings: fields one may order by, either way; none of them null."""
    asked = request.query_params.get("ordering", ordering)
    if asked.removeprefix("-") not in orderings:
        raise bad_parameter("ordering", f"{asked[:60]!r} must be one of {', '.join(orderings)}, with - for descending")
    pages = _Pages()
    pages.field = rows.model._meta.get_field(asked.removeprefix("-"))
    tie = "-id" if asked.startswith("-") else "id"
    pages.ordering = (asked,) if asked.removeprefix("-") == "id" else (asked, tie)
    try:
        found = pages.paginate_queryset(rows.order_by(*pages.ordering), request) or []
    except NotFound as error:
        raise bad_parameter("cursor", "it was not made by this list. Leave it out to begin again") from error
    return Response(
        {"results": list(shown(found)), "next": pages.get_next_link(), "previous": pages.get_previous_link()}
    )


def filtered[M: Model](request: Request, rows: QuerySet[M], filters: type[FilterSet]) -> QuerySet[M]:
    """Apply a django-filter FilterSet; a value it does not take is a 400."""
    form = filters(request.query_params, queryset=rows)
    if not form.is_valid():
        name, messages = next(iter(form.errors.items()))
        raise bad_parameter(name, " ".join(str(message) for message in messages))
    chosen: QuerySet[M] = form.qs
    return chosen
