"""What goes in and comes out, for validation and for the OpenAPI document. `*In` is parsed strictly: nothing is coerced."""

import re
from datetime import UTC, datetime
from typing import Any, NoReturn

import msgspec
from drf_spectacular.drainage import set_override
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError

from decisioning.access.scopes import Scope
from decisioning.ledger.models import Channel
from decisioning.ledger.outbox import EVENTS
from experiments.expected import WORDS
from experiments.models import Experiment, Metric, TargetKpi
from experiments.plan import NewExperiment, NewKpi, NewMetric, NewVariant
from telemetry.models import Source

# Named in the OpenAPI document like the lists of decisioning.api.shapes.fields.
METRIC_KINDS, DIRECTIONS, TEMPORALITIES = Metric.Kind.values, Metric.Direction.values, Metric.Temporality.values
SOURCE_KINDS, CHANNEL_KINDS, SCOPES, TOLD = Source.Kind.values, Channel.Kind.values, list(Scope), list(EVENTS)

_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)


def timestamp(text: object) -> datetime:
    """RFC 3339 with an offset. Raises ValueError(code, detail).

    >>> timestamp("2026-11-24T06:00:00+01:00").isoformat()
    '2026-11-24T05:00:00+00:00'
    >>> timestamp("2026-11-24T06:00:00")
    Traceback (most recent call last):
    ValueError: ('naive_timestamp', "'2026-11-24T06:00:00' has no offset. Add one, such as Z.")
    """
    try:
        value = msgspec.convert(text, datetime)
        aware = value.tzinfo is not None
        value = value.astimezone(UTC) if aware else value
    except (msgspec.ValidationError, OverflowError, ValueError) as error:
        raise ValueError("invalid_timestamp", f"{str(text)[:60]!r} is no RFC 3339 time.") from error
    if not aware:
        raise ValueError("naive_timestamp", f"{text!r} has no offset. Add one, such as Z.")
    if not _EARLIEST <= value < _LATEST:
        raise ValueError("invalid_timestamp", f"{text!r} is outside the years 1970 to 9998.")
    return value


class _Strict(serializers.Field[Any, Any, Any, Any]):
    """A field that takes its own JSON type only; null is as wrong as any other type unless it is allowed."""

    wrong = "invalid"
    expects = "another type"

    def fail(self, key: str, **_values: Any) -> NoReturn:
        if key == "required":
            raise ValidationError(f"{self.field_name} is missing.", code="missing_field")
        raise ValidationError(f"{self.field_name} is null, must be {self.expects}.", code=self.wrong)

    def refuse(self, detail: str, code: str | None = None) -> NoReturn:
        raise ValidationError(detail, code=code or self.wrong)

    def to_representation(self, value: Any) -> Any:
        return value


@extend_schema_field(OpenApiTypes.STR)
class Text(_Strict):
    """A string."""

    wrong, expects = "invalid_text", "a string"

    def __init__(self, *, max_length: int = 10_000, allow_blank: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.max_length, self.allow_blank = max_length, allow_blank

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.refuse(f"{self.field_name} is {_shown(data)}, must be a string.")
        if len(data) > self.max_length:
            self.refuse(f"{self.field_name} has {len(data)} characters, at most {self.max_length} fit.")
        if not self.allow_blank and not data.strip():
            self.refuse(f"{self.field_name} is empty.", "missing_field")
        return data


@extend_schema_field(OpenApiTypes.DOUBLE)
class Number(_Strict):
    """A finite number; neither "1" nor true is one."""

    wrong, expects = "invalid_number", "a finite number"

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, bool) or not isinstance(data, (int, float)):
            self.refuse(f"{self.field_name} is {_shown(data)}, must be a finite number.")
        try:
            return float(data)
        except OverflowError:
            self.refuse(f"{self.field_name} is larger than a number can be.")


@extend_schema_field(OpenApiTypes.INT)
class Whole(_Strict):
    """A whole number of at most 31 bits."""

    wrong, expects = "invalid_number", "a whole number"

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, bool) or not isinstance(data, int) or not -(2**31) < data < 2**31:
            self.refuse(f"{self.field_name} is {_shown(data)}, must be a whole number.")
        return data


@extend_schema_field(OpenApiTypes.BOOL)
class Truth(_Strict):
    """true or false."""

    expects = "true or false"

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.refuse(f"{self.field_name} is {_shown(data)}, must be true or false.")
        return data


@extend_schema_field(OpenApiTypes.DATETIME)
class Timestamp(_Strict):
    """RFC 3339 with an offset."""

    wrong, expects = "invalid_timestamp", "an RFC 3339 time"

    def to_internal_value(self, data: Any) -> datetime:
        if not isinstance(data, str):
            self.refuse(f"{self.field_name} is {_shown(data)}, must be an RFC 3339 time.")
        try:
            return timestamp(data)
        except ValueError as error:
            code, detail = error.args
            self.refuse(detail, code)


class Choice(Text):
    """One of a few words."""

    wrong = "invalid"

    def __init__(self, choices: Any, **options: Any) -> None:
        self.choices = [str(choice) for choice in choices]
        super().__init__(max_length=60, **options)
        none = [None] if options.get("allow_null") else []
        set_override(self, "field", {"type": "string", "enum": [*self.choices, *none]})

    def to_internal_value(self, data: Any) -> str:
        if data not in self.choices or not isinstance(data, str):
            self.refuse(f"{self.field_name} is {_shown(data)}, must be one of {', '.join(self.choices)}.")
        return data


class Texts(_Strict):
    """A list of keys."""

    expects = "a list of keys"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        set_override(self, "field", {"type": "array", "items": {"type": "string"}})

    def to_internal_value(self, data: Any) -> list[str]:
        if not isinstance(data, list) or not all(isinstance(key, str) and len(key) <= 200 for key in data):
            self.refuse(f"{self.field_name} is {_shown(data)}, must be a list of keys.")
        return data


class Expected(_Strict):
    """When the buckets of a metric end: an object with every_s, cron, or every; what is in it is the domain's to refuse."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        described = {
            "every_s": {"type": "integer"}, "cron": {"type": "string"}, "every": {"type": "string", "enum": list(WORDS)},
            "at": {"type": "string"}, "on": {"oneOf": [{"type": "string"}, {"type": "integer"}]}, "timezone": {"type": "string"},
        }  # fmt: skip
        set_override(self, "field", {"type": "object", "properties": described, "additionalProperties": False})

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict):
            self.refuse(f'{self.field_name} is {_shown(data)}, must be an object such as {{"every_s": 3600}}.')
        return data


def _shown(data: object) -> str:
    return msgspec.json.encode(data).decode()[:60]


# Experiments ------------------------------------------------------------------------------------------------------------


class BaselineIn(serializers.Serializer[Any]):
    mean = Number()
    stddev = Number()


class TargetIn(serializers.Serializer[Any]):
    at_least = Number(required=False, allow_null=True)
    at_most = Number(required=False, allow_null=True)


class BoundsIn(serializers.Serializer[Any]):
    """Between which a row's value lies, both ends included; null: no end."""

    def get_fields(self) -> dict[str, Any]:
        """Under names that are Python's own."""
        return {name: Number(required=False, allow_null=True) for name in ("min", "max")}


class MetricFields(serializers.Serializer[Any]):
    """What PATCH may change of a metric."""

    name = Text(required=False, max_length=200)
    kind = Choice(METRIC_KINDS, required=False)
    unit = Text(required=False, max_length=40, allow_blank=True)
    direction = Choice(DIRECTIONS, required=False, allow_null=True)
    temporality = Choice(TEMPORALITIES, required=False)
    expected_every_s = Whole(required=False)
    expected = Expected(required=False)
    freshness_target_s = Whole(required=False)
    counts_assignment = Truth(required=False)
    definition = Text(required=False, allow_blank=True)
    bounds = BoundsIn(required=False, allow_null=True)
    capped_at = Number(required=False, allow_null=True)


class MetricChange(MetricFields):
    """`expected_from`: from when on the schedule holds, null: always. Left out it holds from now on. `retired_at`: from then on no new plan is judged
    by it; null: it is taken back."""

    expected_from = Timestamp(required=False, allow_null=True)
    retired_at = Timestamp(required=False, allow_null=True)
    replaced_by = Text(required=False, allow_null=True, max_length=63)


class MetricIn(MetricFields):
    key = Text(max_length=200)


class MetricCreate(MetricIn):
    """A new metric, of the caller's team unless another is named."""

    team = Text(required=False, max_length=200)


class MetricOrKey(serializers.Field[Any, Any, Any, Any]):
    """A metric's key, or an object that describes a metric which does not exist yet."""

    def to_internal_value(self, data: Any) -> str | NewMetric:
        if isinstance(data, str):
            return data
        if not isinstance(data, dict):
            raise ValidationError(f"metric is {_shown(data)}, must be a key or an object.", code="invalid")
        described = MetricIn(data=data)
        described.is_valid(raise_exception=True)
        return NewMetric(**described.validated_data)

    def to_representation(self, value: Any) -> Any:
        return value


class TargetKpiIn(serializers.Serializer[Any]):
    metric = extend_schema_field({"oneOf": [{"type": "string"}, {"type": "object"}]})(MetricOrKey)()
    role = Choice(TargetKpi.Role.values, required=False)
    minimum_effect = Number(required=False, allow_null=True)
    max_harm = Number(required=False, allow_null=True)
    plausible_to = Number(required=False, allow_null=True)
    baseline = BaselineIn(required=False, allow_null=True)
    target = TargetIn(required=False, allow_null=True)
    sparse = Truth(required=False)

    def to_internal_value(self, data: Any) -> NewKpi:
        if isinstance(data, str):
            return NewKpi(metric=data)
        if isinstance(data, dict) and "metric" not in data and isinstance(data.get("key"), str):
            data = {**data, "metric": {k: v for k, v in data.items() if k in MetricIn().fields}}
        values = super().to_internal_value(data)
        baseline, target = values.pop("baseline", None) or {}, values.pop("target", None)
        if target is not None and all(value is None for value in target.values()):
            raise ValidationError({"target": ErrorDetail("A target needs at_least or at_most.", code="missing_field")})
        return NewKpi(
            **values,
            baseline_mean=baseline.get("mean"),
            baseline_stddev=baseline.get("stddev"),
            target_at_least=(target or {}).get("at_least"),
            target_at_most=(target or {}).get("at_most"),
        )


class VariantIn(serializers.Serializer[Any]):
    key = Text(max_length=200)
    weight = Number(required=False)
    control = Truth(required=False)
    name = Text(required=False, max_length=200, allow_blank=True)

    def to_internal_value(self, data: Any) -> NewVariant:
        if isinstance(data, str):
            return NewVariant(key=data)
        return NewVariant(**super().to_internal_value(data))


class WordsIn(serializers.Serializer[Any]):
    """What may change at any time."""

    name = Text(max_length=200)
    hypothesis = Text()
    owner = Text(required=False, max_length=200)


class ExperimentIn(WordsIn):
    """A new experiment; only name, hypothesis and target_kpis are required."""

    key = Text(required=False, max_length=200)
    team = Text(required=False, max_length=200)
    policy = Text(required=False, max_length=200, allow_null=True)
    variants = VariantIn(many=True, required=False)
    target_kpis = TargetKpiIn(many=True)
    expected_units_per_day = Number(required=False, allow_null=True)
    start = Truth(required=False)
    started_at = Timestamp(required=False, allow_null=True)

    @staticmethod
    def domain(values: dict[str, Any], *, owner: str) -> NewExperiment:
        """Validated values as the domain takes them."""
        return NewExperiment(**{"owner": owner, **{k: v for k, v in values.items() if k not in ("team", "policy")}})


class ExperimentPatch(ExperimentIn):
    """Any of the fields of a new one but key, team and start."""

    name = Text(max_length=200, required=False)
    hypothesis = Text(required=False)
    target_kpis = TargetKpiIn(many=True, required=False)


class TransitionIn(serializers.Serializer[Any]):
    to = Choice(Experiment.Status.values)
    reason = Text(required=False, allow_blank=True, max_length=2000)


class DecisionIn(serializers.Serializer[Any]):
    evidence_digest = Text(max_length=71)
    action = Choice(["accept", "override"])
    override_to = Choice(["scale", "delete", "stop", "hold"], required=False, allow_null=True)
    reason = Text(required=False, allow_blank=True, allow_null=True, max_length=10_000)


class DoubtIn(serializers.Serializer[Any]):
    """Whether rows of a KPI that look wrong hold the experiment up."""

    doubt = Choice(["on", "off"])
    reason = Text(required=False, allow_blank=True, allow_null=True, max_length=10_000)


# Policies and keys ------------------------------------------------------------------------------------------------------


class PolicyIn(serializers.Serializer[Any]):
    name = Text(max_length=200)
    team = Text(required=False, max_length=200)
    body = serializers.DictField()


class PolicyVersionIn(serializers.Serializer[Any]):
    body = serializers.DictField()


class KeyIn(serializers.Serializer[Any]):
    team = Text(required=False, max_length=200)
    scopes = serializers.ListField(child=Choice(SCOPES), allow_empty=False)
    agent = Truth(required=False)
    expires_at = Timestamp(required=False, allow_null=True)
    rate = Text(required=False, allow_blank=True, allow_null=True, max_length=20)

    def validate_rate(self, rate: str | None) -> str | None:
        if rate and not re.fullmatch(r"[1-9][0-9]{0,6}/[1-9]?[0-9]{0,3}[smhd]", rate):
            raise ValidationError(
                f'rate is {rate!r}, must be requests per window, such as "40/m".', code="invalid_rate"
            )
        return rate


class WebhookIn(serializers.Serializer[Any]):
    """A new receiver of events. `url` is https://..., or mailto:... for e-mail; `kind` goes by it unless it is given."""

    url = Text(max_length=2000)
    events = serializers.ListField(child=Choice(TOLD), allow_empty=False)
    kind = Choice(CHANNEL_KINDS, required=False)
    team = Text(required=False, max_length=200)


# Sources ----------------------------------------------------------------------------------------------------------------


class SnoozeIn(serializers.Serializer[Any]):
    """Until when nothing is told of an alarm, and why."""

    until = Timestamp()
    reason = Text(max_length=500)


class OutageChange(serializers.Serializer[Any]):
    """What PATCH may change of an outage."""

    metrics = Texts(required=False)
    sources = Texts(required=False)
    reason = Text(required=False, max_length=500)

    def get_fields(self) -> dict[str, Any]:
        """With `from` and `to`, the first of which is no name in Python."""
        return {"from": Timestamp(required=self.needed), "to": Timestamp(required=self.needed), **super().get_fields()}

    needed = False


class OutageIn(OutageChange):
    """A stretch of time, both ends included, in which these metrics, or all that these sources feed, are not expected."""

    reason = Text(max_length=500)
    team = Text(required=False, max_length=200)

    needed = True


class SourceIn(serializers.Serializer[Any]):
    """A new source; `url_env` of a database, an address or a Prometheus, `path` of files or below an address."""

    key = Text(max_length=200)
    team = Text(required=False, max_length=200)
    kind = Choice(SOURCE_KINDS)
    url_env = Text(required=False, max_length=100, allow_blank=True)
    token_env = Text(required=False, max_length=100, allow_blank=True)
    path = Text(required=False, max_length=500, allow_blank=True)
    query = Text(required=False, allow_blank=True)
    rows_pointer = Text(required=False, max_length=200, allow_blank=True)
    step_s = Whole(required=False)
    schedule_s = Whole(required=False)
    overlap_s = Whole(required=False)
    time_limit_s = Whole(required=False)
    date_format = Text(required=False, max_length=40, allow_blank=True)
    time_zone = Text(required=False, max_length=40, allow_blank=True)
    time_format = Text(required=False, max_length=8, allow_blank=True)
    columns = serializers.DictField(child=Text(max_length=63), required=False)
    null_words = serializers.ListField(child=Text(max_length=20), required=False)
    delimiter = serializers.CharField(required=False, max_length=1, allow_blank=True, trim_whitespace=False)
    decimal_comma = Truth(required=False)
    encoding = Text(required=False, max_length=8, allow_blank=True)
    metrics = serializers.ListField(child=Text(max_length=63), allow_empty=False)
    lineage_job = Text(required=False, max_length=2000, allow_blank=True)
    enabled = Truth(required=False)
