"""What the shapes of answers are made of: the words of docs/api.md, fields, and what every answer may be."""

from typing import Any

from rest_framework import serializers as s

Shape = s.Serializer[Any]

# The words of docs/api.md. The OpenAPI document names each list (settings: ENUM_NAME_OVERRIDES), so that generated clients have names too.
ACTIONS = ["scale", "delete", "review", "hold"]
RECOMMENDATION_STATES = ["open", "proposed", "answered", "suspended", "superseded", "withdrawn"]
ANSWERS = ["accept", "override"]
OVERRIDES = ["scale", "delete", "stop", "hold"]
FRESHNESS_STATES = ["fresh", "due", "late", "unknown", "stale"]
SCHEDULE_STATES = ["as_configured", "differs", "mixed", "irregular", "not_enough_rows"]
TOLD_BY = ["rows", "team", "assumed"]
ROLES = ["goal", "guardrail", "shown", "exposure"]
VERDICTS = ["pass", "fail", "inconclusive", "no_data", "stale", "invalid"]
DOUBTS = ["on", "off"]
STATUSES = ["draft", "running", "paused", "scaled", "deleted", "stopped"]
CHANGES = ["create", "update", "delete", "refuse", "access"]
BACKTEST_STATES = ["queued", "finished", "failed"]
DELIVERY_STATES = ["waiting", "delivered", "dead"]


def text(**options: Any) -> s.CharField:
    return s.CharField(**options)


def maybe_text() -> s.CharField:
    return s.CharField(allow_null=True)


def at() -> s.DateTimeField:
    return s.DateTimeField()


def maybe_at() -> s.DateTimeField:
    return s.DateTimeField(allow_null=True)


def number() -> s.FloatField:
    return s.FloatField()


def maybe_number() -> s.FloatField:
    return s.FloatField(allow_null=True)


def whole() -> s.IntegerField:
    return s.IntegerField()


def maybe_whole() -> s.IntegerField:
    return s.IntegerField(allow_null=True)


def texts() -> s.ListField:
    return s.ListField(child=s.CharField())


def anything() -> s.JSONField:
    return s.JSONField()


class ErrorOut(Shape):
    pointer = text(help_text="JSON pointer into the body, or ?name of a query parameter.")
    code = text()
    detail = text()


class ProblemOut(Shape):
    """RFC 9457. `code` is stable; `detail` says what happened with the value and what to do."""

    type = text()
    title = text()
    status = whole()
    code = text()
    detail = text()
    errors = ErrorOut(many=True)  # type: ignore[assignment]


def page_of(shape: type[Shape]) -> type[Shape]:
    """`{results, next, previous}` of a shape."""
    return type(
        f"PageOf{shape.__name__.removesuffix('Out')}Out",
        (s.Serializer,),
        {"results": shape(many=True), "next": maybe_text(), "previous": maybe_text(), "__doc__": "One page of a list."},
    )
