"""What every operation takes and answers, for the OpenAPI document. `OPERATIONS` is the whole table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from drf_spectacular.openapi import AutoSchema
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse

from decisioning.api import serializers as bodies
from decisioning.api.shapes import experiments, fields, portal, telemetry
from decisioning.api.shapes.fields import page_of

_JSON, _PROBLEM = "application/json", "application/problem+json"
_OBJECT: dict[str, Any] = {"type": "object", "additionalProperties": True}
_KPI_ROW: dict[str, Any] = {
    "type": "object",
    "description": "One bucket of one series, with its spread once: variance, stddev or standard_error beside value, or sum and sum_squares in place of "
    "both. Sending it again changes nothing.",
    "required": ["metric", "ts"],
    "properties": {
        "metric": {"type": "string", "maxLength": 63, "description": "Key of the metric.", "examples": ["finished_sign_up"]},
        "variant": {"type": "string", "maxLength": 63, "default": "all", "description": "Key of the variant.", "examples": ["control"]},
        "ts": {
            "type": "string", "format": "date-time", "description": "END of the bucket the row covers, with an offset.",
            "examples": ["2026-11-24T06:00:00Z"],
        },
        "value": {"type": "number", "description": "Mean, share or gauge of the bucket.", "examples": [0.41]},
        "n": {"type": ["integer", "null"], "minimum": 0, "description": "Independent units, never the same unit twice.", "examples": [980]},
        "variance": {"type": ["number", "null"], "minimum": 0, "description": "Of one unit's value, by the sample.", "examples": [0.24]},
        "stddev": {"type": ["number", "null"], "minimum": 0, "description": "In place of variance: its root.", "examples": [0.49]},
        "standard_error": {"type": ["number", "null"], "minimum": 0, "description": "In place of variance: of value, the mean of n units.", "examples": [0.016]},
        "sum": {"type": ["number", "null"], "description": "In place of value: the sum of n values, beside sum_squares.", "examples": [402.0]},
        "sum_squares": {"type": ["number", "null"], "minimum": 0, "description": "In place of variance: the sum of their squares.", "examples": [402.0]},
        "revision": {"type": ["integer", "null"], "description": "A higher one replaces what is stored.", "examples": [1]},
        "window_s": {"type": ["integer", "null"], "minimum": 1, "description": "Seconds that the row covers.", "examples": [3600]},
        "denominator": {
            "type": ["object", "null"],
            "description": "Of a ratio: the second moments of its denominator, per unit.",
            "required": ["value"],
            "properties": {
                "value": {"type": "number", "description": "Its mean.", "examples": [2.1]},
                "variance": {"type": ["number", "null"], "minimum": 0, "description": "Its variance.", "examples": [1.3]},
                "covariance": {"type": ["number", "null"], "description": "With the numerator.", "examples": [0.4]},
            },
        },
    },
}  # fmt: skip
_EVENT_WORDS = {
    "specversion": ("1.0 is understood.", "1.0"),
    "id": ("With source: an event is taken in once.", "7f3a"),
    "source": ("Who tells it, a URI reference.", "/jobs/nightly"),
    "type": ("What it tells; /api/schemas/{type} says how.", "decisioning.metric.observed.v1"),
    "time": ("RFC 3339, when it happened.", "2026-11-24T06:00:00Z"),
    "datacontenttype": ("JSON.", "application/json"),
}
COMPONENTS: dict[str, dict[str, Any]] = {
    "KpiRow": _KPI_ROW,
    "KpiRows": {
        "type": "object",
        "description": "A batch of rows of one experiment.",
        "required": ["rows"],
        "properties": {
            "rows": {
                "type": "array", "maxItems": 10_000, "items": {"$ref": "#/components/schemas/KpiRow"},
                "description": "All of them are stored, or none (with ?atomic=false the good ones).",
            }
        },
    },
    "CloudEvent": {
        "type": "object",
        "description": "One CloudEvent in structured mode.",
        "required": ["specversion", "id", "source", "type"],
        "properties": {
            name: {"type": "string", "description": what, "examples": [such_as]} for name, (what, such_as) in _EVENT_WORDS.items()
        } | {"data": {"description": "As the schema of its type says, the JSON object itself.", "examples": [{"experiment": "shorter-sign-up"}]}},
    },
    "CloudEventBatch": {"type": "array", "items": {"$ref": "#/components/schemas/CloudEvent"}, "maxItems": 1000},
    "CloudEventData": {
        "type": "object", "additionalProperties": True, "description": "Binary mode: the event's data, its attributes in ce- headers.",
    },
    "LineageEvent": {
        "type": "object", "additionalProperties": True, "description": "An OpenLineage RunEvent; job and dataset events say nothing here.",
    },
    "LineageEventBatch": {"type": "array", "items": {"$ref": "#/components/schemas/LineageEvent"}, "maxItems": 1000},
}  # fmt: skip
"""Bodies that no serializer reads, by their names in the document."""


def _named(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


@dataclass(frozen=True)
class Operation:
    """answers: what each status of success carries, None for nothing. takes: the body. conflict: whether 409 is possible."""

    answers: Mapping[int | tuple[int, str], Any]
    takes: Any = None
    conflict: bool = False
    more: tuple[int, ...] = field(default=())


_PAGE = page_of
OPERATIONS: dict[tuple[str, str], Operation] = {
    ("Experiments", "GET"): Operation({200: _PAGE(experiments.RowOut)}),
    ("Experiments", "POST"): Operation({201: experiments.CreatedOut}, takes=bodies.ExperimentIn, conflict=True),
    ("OneExperiment", "GET"): Operation({200: experiments.DocumentOut, 304: None}),
    ("OneExperiment", "PATCH"): Operation(
        {200: experiments.ChangedOut}, takes=bodies.ExperimentPatch, conflict=True, more=(412,)
    ),
    ("Transitions", "POST"): Operation({200: experiments.DocumentOut}, takes=bodies.TransitionIn, conflict=True),
    ("Kpis", "GET"): Operation({(200, _JSON): experiments.SeriesOut, (200, "text/csv"): OpenApiTypes.STR}),
    ("Kpis", "POST"): Operation(
        {(200, _JSON): telemetry.IngestedOut, (207, _JSON): telemetry.PartlyIngestedOut},
        takes=_named("KpiRows"),
        conflict=True,
    ),
    ("OneDecision", "GET"): Operation({200: experiments.DecisionOut, 304: None}),
    ("OneDecision", "POST"): Operation({201: experiments.DecidedOut}, takes=bodies.DecisionIn, conflict=True),
    ("Doubt", "GET"): Operation({200: experiments.DoubtOut}),
    ("Doubt", "POST"): Operation({200: experiments.DoubtOut}, takes=bodies.DoubtIn, conflict=True),
    ("Decisions", "GET"): Operation({200: _PAGE(experiments.PastDecisionOut)}),
    ("Gates", "GET"): Operation({200: experiments.GatesOut}),
    ("ForecastOf", "GET"): Operation({200: experiments.ForecastsOut}),
    ("Evaluations", "GET"): Operation({200: _PAGE(experiments.EvaluationOut)}),
    ("Evaluate", "POST"): Operation({202: experiments.SlotOut}, conflict=True),
    ("OneEvidence", "GET"): Operation({200: _OBJECT}, conflict=True),
    ("Verification", "POST"): Operation({200: experiments.SameOut}, conflict=True),
    ("Audit", "GET"): Operation({200: _PAGE(portal.EntryOut)}),
    ("Assets", "GET"): Operation({200: _PAGE(experiments.AssetOut)}),
    ("Metrics", "GET"): Operation({200: _PAGE(telemetry.MetricOut)}),
    ("Metrics", "POST"): Operation({201: telemetry.MetricOut}, takes=bodies.MetricCreate, conflict=True),
    ("OneMetric", "GET"): Operation({200: telemetry.MetricOut}),
    ("OneMetric", "PATCH"): Operation({200: telemetry.MetricOut}, takes=bodies.MetricChange, conflict=True),
    ("ScheduleOf", "GET"): Operation({200: telemetry.ScheduleShownOut}),
    ("RefreshLog", "GET"): Operation({200: _PAGE(telemetry.RunOut)}),
    ("Freshness", "GET"): Operation({200: _PAGE(telemetry.TrackedOut)}),
    ("Promises", "GET"): Operation({200: portal.PromisesOut}),
    ("Policies", "GET"): Operation({200: _PAGE(portal.PolicyOut)}),
    ("Policies", "POST"): Operation(
        {200: portal.PolicyOut, 201: portal.PolicyOut}, takes=bodies.PolicyIn, conflict=True
    ),
    ("OnePolicy", "GET"): Operation({200: portal.PolicyOut}),
    ("Versions", "GET"): Operation({200: _PAGE(portal.PolicyVersionOut)}),
    ("Versions", "POST"): Operation(
        {200: portal.PolicyVersionOut, 201: portal.PolicyVersionOut}, takes=bodies.PolicyVersionIn, conflict=True
    ),
    ("OneVersion", "GET"): Operation({200: portal.PolicyVersionOut}),
    ("Backtests", "GET"): Operation({200: portal.BacktestOut}),
    ("Backtests", "POST"): Operation({202: portal.BacktestOut}, conflict=True),
    ("Activation", "POST"): Operation({200: portal.PolicyVersionOut}, conflict=True),
    ("Keys", "GET"): Operation({200: _PAGE(portal.KeyOut)}),
    ("Keys", "POST"): Operation({201: portal.NewKeyOut}, takes=bodies.KeyIn, conflict=True),
    ("OneKey", "GET"): Operation({200: portal.KeyOut}),
    ("OneKey", "DELETE"): Operation({204: None}),
    ("Webhooks", "GET"): Operation({200: _PAGE(portal.WebhookOut)}),
    ("Webhooks", "POST"): Operation({201: portal.NewWebhookOut}, takes=bodies.WebhookIn, conflict=True),
    ("OneWebhook", "GET"): Operation({200: portal.WebhookOut}),
    ("OneWebhook", "DELETE"): Operation({204: None}),
    ("TriesWebhook", "POST"): Operation({202: portal.DeliveryOut}),
    ("Deliveries", "GET"): Operation({200: _PAGE(portal.DeliveryOut)}),
    ("Redelivery", "POST"): Operation({202: portal.DeliveryOut}, conflict=True),
    ("Alarms", "GET"): Operation({200: _PAGE(portal.AlarmOut)}),
    ("OneAlarm", "GET"): Operation({200: portal.AlarmOut}),
    ("Snooze", "POST"): Operation({200: portal.AlarmOut}, takes=bodies.SnoozeIn),
    ("Snooze", "DELETE"): Operation({204: None}),
    ("Acknowledgement", "POST"): Operation({200: portal.AlarmOut}),
    ("Acknowledgement", "DELETE"): Operation({204: None}),
    ("TakesEvents", "POST"): Operation(
        {200: telemetry.EventsOut, 202: telemetry.EventsOut, 207: telemetry.PartlyTakenOut},
        takes={
            "application/cloudevents+json": _named("CloudEvent"),
            "application/cloudevents-batch+json": _named("CloudEventBatch"),
            _JSON: _named("CloudEventData"),
        },
        conflict=True,
    ),
    ("Schemas", "GET"): Operation({200: _OBJECT}),
    ("Schema", "GET"): Operation({(200, "application/schema+json"): _OBJECT}),
    ("Quarantine", "GET"): Operation({200: _PAGE(telemetry.QuarantinedOut)}),
    ("Replay", "POST"): Operation(
        {200: telemetry.EventsOut, 202: telemetry.EventsOut, 207: telemetry.PartlyTakenOut}, conflict=True
    ),
    ("Lineage", "POST"): Operation({200: _OBJECT}, takes=_named("LineageEvent")),
    ("LineageBatch", "POST"): Operation({200: _OBJECT, 207: _OBJECT}, takes=_named("LineageEventBatch")),
    ("Outages", "GET"): Operation({200: _PAGE(telemetry.OutageOut)}),
    ("Outages", "POST"): Operation({201: telemetry.OutageOut}, takes=bodies.OutageIn),
    ("OneOutage", "GET"): Operation({200: telemetry.OutageOut}),
    ("OneOutage", "PATCH"): Operation({200: telemetry.OutageOut}, takes=bodies.OutageChange),
    ("OneOutage", "DELETE"): Operation({204: None}),
    ("Sources", "GET"): Operation({200: _PAGE(telemetry.SourceOut)}),
    ("Sources", "POST"): Operation(
        {200: telemetry.PreviewOut, 201: telemetry.SourceOut}, takes=bodies.SourceIn, conflict=True
    ),
    ("OneSource", "GET"): Operation({200: telemetry.SourceOut}),
    ("Refresh", "POST"): Operation({200: telemetry.PreviewOut, 202: telemetry.AskedRunOut}, conflict=True),
    ("OpenApi", "GET"): Operation({200: _OBJECT}),
    ("Reference", "GET"): Operation({(200, "text/html"): OpenApiTypes.STR}),
}

_WORDS = {
    400: "A parameter or the JSON itself is not what it should be.",
    401: "No key, or one that is unknown, expired or revoked. See WWW-Authenticate.",
    403: "The scope is missing.",
    404: "Nothing here that you may see.",
    406: "No media type of Accept is served.",
    409: "It does not fit the state of things; code says why.",
    412: "The document has changed since you read it.",
    413: "Too many bytes, rows or events.",
    415: "Another media type or encoding than is taken.",
    422: "Bad values, each in errors.",
    429: "The key's or the address's rate is used up. See Retry-After.",
    500: "A fault of the portal.",
    503: "The database does not answer. See Retry-After.",
}
_PARAMETERS = {
    "limit": ("How many, at most 200 (10,000 for rows).", OpenApiTypes.INT),
    "cursor": ("From `next` or `previous`.", OpenApiTypes.STR),
    "ordering": ("A field, with - for descending.", OpenApiTypes.STR),
    "from": ("RFC 3339, included.", OpenApiTypes.DATETIME),
    "to": ("RFC 3339, included.", OpenApiTypes.DATETIME),
    "as_of": ("A past instant: the recommendation is recomputed for its slot.", OpenApiTypes.DATETIME),
    "atomic": ("false: take the good rows, answer 207.", OpenApiTypes.BOOL),
    "since": ("RFC 3339: read again from then on.", OpenApiTypes.DATETIME),
    "dry_run": ("true: show what would happen and keep nothing.", OpenApiTypes.BOOL),
}


class Contract(AutoSchema):
    """A door's operations as the table has them."""

    def get_tags(self) -> list[str]:
        return [self.path.removeprefix("/api/").partition("/")[0]]

    def get_operation_id(self) -> str:
        return f"{self.method.lower()}{type(self.view).__name__}"

    def get_summary(self) -> str:
        return str(getattr(self.view, self.method.lower()).__doc__ or "").strip().partition("\n")[0]

    def get_description(self) -> str:  # type: ignore[override]
        return str(type(self.view).__doc__ or "").strip()

    def get_auth(self) -> list[dict[str, list[str]]]:
        return [{"key": []}, {"session": []}] if getattr(self.view, "scopes", None) else []

    def get_override_parameters(self) -> list[Any]:
        known = getattr(self.view, "parameters", {}).get(self.method, frozenset())
        found = []
        for name in sorted(known):
            words, kind = _PARAMETERS.get(name, ("Only those that match.", OpenApiTypes.STR))
            found.append(OpenApiParameter(name, kind, OpenApiParameter.QUERY, description=words))
        headers = {"POST": ("Idempotency-Key",), "PATCH": ("If-Match",)}.get(self.method, ())
        if self.method == "GET" and 304 in self._operation().answers:
            headers = ("If-None-Match",)
        return [*found, *(OpenApiParameter(name, OpenApiTypes.STR, OpenApiParameter.HEADER) for name in headers)]

    def get_request_serializer(self) -> Any:
        takes = self._operation().takes
        if isinstance(takes, dict) and all("/" in name for name in takes):
            return takes
        return {_JSON: takes} if takes is not None else None

    def get_response_serializers(self) -> Any:
        operation = self._operation()
        answers: dict[Any, Any] = {
            status: shape if shape is not None else OpenApiResponse(description="No body.")
            for status, shape in operation.answers.items()
        }
        refusals = {400, 401, 403, 406, 429, 500, 503, *operation.more}
        refusals |= {404} if "{" in self.path else set()
        refusals |= {413, 415, 422} if self.method in ("POST", "PATCH") else set()
        refusals |= {409} if operation.conflict or self.method == "POST" else set()
        for status in sorted(refusals):
            answers[status, _PROBLEM] = OpenApiResponse(fields.ProblemOut, description=_WORDS[status])
        return answers

    def _operation(self) -> Operation:
        return OPERATIONS[type(self.view).__name__, self.method]

    def _is_list_view(self, serializer: Any = None) -> bool:
        return False
