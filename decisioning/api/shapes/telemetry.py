"""Answers about what comes in: rows, events, metrics, sources and their runs."""

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers as s

from decisioning.api.shapes.fields import (
    FRESHNESS_STATES,
    SCHEDULE_STATES,
    TOLD_BY,
    Shape,
    anything,
    at,
    maybe_at,
    maybe_number,
    maybe_text,
    maybe_whole,
    text,
    texts,
    whole,
)
from experiments.expected import WORDS


class BadRowOut(Shape):
    index = whole()
    pointer = text()
    code = text()
    detail = text()


@extend_schema_field(
    {
        "type": "array",
        "items": {"type": "string"},
        "description": "Fields of the rows that mean nothing here, the first ones; not there without any.",
        "examples": [["region"]],
    }
)
class _IgnoredFields(s.ListField):
    child = text()


class IngestedOut(Shape):
    accepted = whole()
    changed = whole()
    duplicates = whole()
    last_ts = maybe_at()
    ignored = _IgnoredFields(required=False)


class PartlyIngestedOut(IngestedOut):
    errors = BadRowOut(many=True)  # type: ignore[assignment]


class EventsOut(Shape):
    accepted = whole()
    duplicates = whole()
    quarantined = whole()
    rows = IngestedOut()


class PartlyTakenOut(EventsOut):
    errors = BadRowOut(many=True)  # type: ignore[assignment]


class ExpectedOut(Shape):
    """When the buckets of a metric end: `every_s`, or `cron`, or the word `every` with `at` and `on`, on clocks of `timezone`."""

    every_s = s.IntegerField(required=False)
    cron = s.CharField(required=False)
    every = s.ChoiceField(WORDS, required=False)
    at = s.CharField(required=False)
    on = s.JSONField(required=False)
    timezone = s.CharField(required=False)


class ScheduleOut(Shape):
    """From when on a metric is due how; `since` null: from the beginning."""

    since = maybe_at()
    expected = ExpectedOut()
    words = text()


class BoundsOut(Shape):
    """Between which a row's value lies, both ends included; null: no end."""

    def get_fields(self) -> dict[str, s.Field]:  # type: ignore[type-arg]
        """Under names that are Python's own."""
        return {"min": maybe_number(), "max": maybe_number()}


class UsersOut(Shape):
    """Started experiments that are judged by a metric: yours by key, and how many there are of other teams."""

    experiments = texts()
    others = whole()


class MetricOut(Shape):
    key = text()
    name = text()
    kind = text()
    unit = text()
    direction = maybe_text()
    temporality = text()
    expected_every_s = whole()
    expected = ExpectedOut()
    expected_in_words = text()
    schedules = ScheduleOut(many=True)
    freshness_target_s = whole()
    counts_assignment = s.BooleanField()
    definition = text()
    bounds = BoundsOut()
    capped_at = maybe_number()
    used_by = UsersOut()
    retired_at = maybe_at()
    replaced_by = maybe_text()
    team = maybe_text()
    created_at = at()
    warnings = s.ListField(child=text(), required=False)


class FitOut(Shape):
    """How a schedule explains rows, from the due instant that the oldest answers to the one that the newest does."""

    due = whole()
    missing = whole()
    rows = whole()
    shared = whole()
    explained = whole()
    off_s = whole()


class ConfiguredOut(Shape):
    """What is configured, and how it explains the rows; fit: null without any."""

    expected = ExpectedOut()
    words = text()
    fit = FitOut(allow_null=True)


class OtherScheduleOut(Shape):
    """As well what rows show, by other clocks."""

    expected = ExpectedOut()
    words = text()


class FoundOut(Shape):
    """What rows show."""

    expected = ExpectedOut()
    words = text()
    fit = FitOut()
    told_by = s.ChoiceField(TOLD_BY)
    others = OtherScheduleOut(many=True)


class ScheduleShownOut(Shape):
    """The schedule that rows of a metric show, beside the one that is configured; found: null where they show none."""

    metric = text()
    state = s.ChoiceField(SCHEDULE_STATES)
    detail = text()
    configured = ConfiguredOut()
    found = FoundOut(allow_null=True)
    experiment = maybe_text()
    since = maybe_at()
    until = maybe_at()
    arrive_within_s = maybe_whole()


class RunOut(Shape):
    """One run of a job. `partial`: it brought rows, and `refused` some; ignored: rows of experiments that are not here."""

    id = text()
    job_name = text()
    source = maybe_text()  # type: ignore[assignment]
    status = text()
    started_at = maybe_at()
    finished_at = maybe_at()
    rows = maybe_whole()
    refused = maybe_whole()
    ignored = maybe_whole()
    error = maybe_text()
    data_watermark = maybe_at()


class LastRunOut(Shape):
    id = text()
    status = text()
    finished_at = maybe_at()
    error = maybe_text()


class TrackedOut(Shape):
    experiment = text()
    metric = text()
    source = maybe_text()  # type: ignore[assignment]
    state = s.ChoiceField(FRESHNESS_STATES)
    data_watermark = maybe_at()
    due_at = maybe_at()
    stale_at = maybe_at()
    telemetry_p95_s = maybe_number()
    last_refresh_at = maybe_at()
    last_run = LastRunOut(allow_null=True)


class QuarantinedOut(Shape):
    id = whole()
    source = text()  # type: ignore[assignment]
    event_id = text()
    type = text()
    reason = text()
    received_at = at()
    replayed_at = maybe_at()
    event = anything()


class FedOut(Shape):
    """The worst of the KPIs that a source feeds, in experiments that run or pause."""

    state = s.ChoiceField(FRESHNESS_STATES)
    telemetry_p95_s = maybe_number()


class OutageOut(Shape):
    """A stretch of time in which feeds of a team are not expected to bring anything."""

    id = whole()
    team = text()
    to = at()
    metrics = texts()
    sources = texts()
    reason = text()
    created_at = at()

    def get_fields(self) -> dict[str, s.Field]:  # type: ignore[type-arg]
        """With `from`, which is no name in Python."""
        return {"from": at(), **super().get_fields()}


class SourceOut(Shape):
    """Where rows are pulled from, and how it fares. failure_share: failed and missed runs of those due in the last 7 days, null when
    none was. freshness: null when it feeds nothing that is judged now."""

    key = text()
    team = text()
    kind = text()
    url_env = maybe_text()
    token_env = maybe_text()
    path = maybe_text()
    query = text()
    rows_pointer = maybe_text()
    step_s = whole()
    schedule_s = whole()
    overlap_s = whole()
    time_limit_s = whole()
    date_format = maybe_text()
    time_zone = maybe_text()
    time_format = maybe_text()
    columns = s.DictField(child=text())
    null_words = texts()
    delimiter = maybe_text()
    decimal_comma = s.BooleanField()
    encoding = maybe_text()
    metrics = texts()
    lineage_job = maybe_text()
    enabled = s.BooleanField()
    due_at = maybe_at()
    data_watermark = maybe_at()
    last_refresh_at = maybe_at()
    failures = whole()
    failure_share = maybe_number()
    freshness = FedOut(allow_null=True)


class SummaryOut(Shape):
    """The rows of one metric as they are understood: n units in all, mean and standard deviation of the values."""

    metric = text()
    rows = whole()
    n = maybe_whole()
    mean = s.FloatField()
    sd = maybe_number()
    newest = maybe_at()


class PreviewOut(Shape):
    """What a run would do, or would have done. ignored: rows of experiments that are not here, the first of which are named."""

    since = maybe_at()
    until = maybe_at()
    accepted = whole()
    changed = whole()
    duplicates = whole()
    refused = whole()
    ignored = whole()
    ignored_experiments = texts()
    problems = texts()
    summaries = SummaryOut(many=True)
    ignored_columns = texts()
    warnings = texts()
    rows = s.ListField(child=s.DictField())
    more = s.BooleanField()


class AskedRunOut(Shape):
    run = text()
    source = text()  # type: ignore[assignment]
    status = text()
