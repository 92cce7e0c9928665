"""The shapes of answers, for the OpenAPI document. Nothing is serialized by them; tests hold every answer against them."""

from typing import Any

from rest_framework import serializers as s

from experiments.expected import WORDS

Shape = s.Serializer[Any]

# The words of docs/api.md. The OpenAPI document names each list (settings: ENUM_NAME_OVERRIDES), so that generated clients have names too.
ACTIONS = ["scale", "delete", "review", "hold"]
RECOMMENDATION_STATES = ["open", "proposed", "answered", "suspended", "superseded", "withdrawn"]
ANSWERS = ["accept", "override"]
OVERRIDES = ["scale", "delete", "stop", "hold"]
FRESHNESS_STATES = ["fresh", "due", "late", "unknown", "stale"]
ROLES = ["goal", "guardrail", "shown", "exposure"]
VERDICTS = ["pass", "fail", "inconclusive", "no_data", "stale", "invalid"]
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


class PolicyNameOut(Shape):
    name = text()
    version = whole()


class RecommendationOut(Shape):
    action = s.ChoiceField(ACTIONS)
    code = text()
    variant = maybe_text()
    state = s.ChoiceField(RECOMMENDATION_STATES)
    proposed_at = maybe_at()
    first_stable_at = maybe_at()
    rationale = texts()
    blockers = texts()
    evidence_digest = maybe_text()
    policy = PolicyNameOut(allow_null=True)


class VariantRecommendationOut(RecommendationOut):
    dropped_at = s.DateTimeField(required=False, allow_null=True)


class VariantOut(Shape):
    key = text()
    name = text()
    weight = number()
    control = s.BooleanField()
    dropped_at = maybe_at()


class FreshnessOut(Shape):
    state = s.ChoiceField(FRESHNESS_STATES)
    last_refresh_at = maybe_at()
    data_watermark = maybe_at()
    telemetry_p95_s = s.FloatField(allow_null=True, required=False)


class KpiFreshnessOut(Shape):
    state = s.ChoiceField(FRESHNESS_STATES)
    data_watermark = maybe_at()
    due_at = maybe_at()
    last_refresh_at = maybe_at()


class ValueOut(Shape):
    variant = text()
    value = number()
    n = maybe_whole()
    ts = at()
    judged = s.BooleanField(
        help_text="Whether the gates have read up to it; false of a value newer than that, where no gate reads the metric, and of a "
        "metric with a target alone, whose gate reads days that are over."
    )


class KpiOut(Shape):
    metric = text()
    role = s.ChoiceField(ROLES)
    unit = text()
    freshness = KpiFreshnessOut()
    values = ValueOut(many=True)


class GateOut(Shape):
    gate = text()
    kind = text()
    variant = maybe_text()
    verdict = s.ChoiceField(VERDICTS)
    since = s.DateTimeField(required=False)
    reading = s.DictField(allow_null=True)
    reason = s.CharField(required=False)


class LinksOut(Shape):
    board = text()
    evidence = maybe_text()
    audit = text()


class RowToBlameOut(Shape):
    """A stored number that nothing can be computed with."""

    metric = text()
    variant = text()
    ts = text()
    field = text()
    value = s.CharField(help_text="The number as it is stored, as text: JSON has no NaN and no infinity.")


class UnjudgeableOut(Shape):
    """Why the gates cannot judge the experiment now. What is proposed is suspended meanwhile."""

    since = at()
    reason = text()
    row = RowToBlameOut(allow_null=True)


class RowOut(Shape):
    """What the list and the board show of an experiment."""

    id = whole()
    key = text()
    name = text()
    hypothesis = text()
    owner = text()
    team = text()
    status = s.ChoiceField(STATUSES)
    created_at = at()
    started_at = maybe_at()
    ended_at = maybe_at()
    as_of = at()
    stale = s.BooleanField(help_text="Whether this is a copy from before the database stopped to answer.")
    freshness = FreshnessOut()
    kpis = KpiOut(many=True)
    gates = GateOut(many=True)
    unjudgeable = UnjudgeableOut(
        allow_null=True,
        help_text="Set while the newest slot cannot be judged; gates and recommendation are as of `as_of`.",
    )
    recommendation = RecommendationOut()


class DocumentOut(RowOut):
    """The whole experiment."""

    expected_units_per_day = maybe_number()
    variants = VariantOut(many=True)
    links = LinksOut()


class OutlookOut(Shape):
    """What one goal needs, known when its baseline and the expected units a day are."""

    metric = text()
    units = s.IntegerField(
        allow_null=True, help_text="Of both arms, by which it is decided whatever the effect is; null: out of reach."
    )
    days = maybe_number()
    max_days = whole()
    smallest_effect = number()
    relative = s.BooleanField()
    warning = maybe_text()


class ChangedOut(DocumentOut):
    warnings = s.ListField(
        child=s.CharField(),
        help_text="What was taken and is hardly meant, such as fractions over one half: 0.05 is 5%.",
    )


class CreatedOut(ChangedOut):
    planning = OutlookOut(many=True)


class RevisedOut(Shape):
    """What the gates would advise on the rows stored now."""

    action = s.ChoiceField(ACTIONS)
    code = text()


class AnswerOut(Shape):
    action = s.ChoiceField(ANSWERS)
    override_to = maybe_text()
    reason = s.CharField(allow_blank=True)
    by = text()
    at = at()
    evidence_digest = text()
    would_now = RevisedOut(
        allow_null=True, help_text="Set when rows were corrected since and another action would be advised."
    )


class DecisionOut(Shape):
    experiment = text()
    as_of = at()
    stale = s.BooleanField()
    unjudgeable = UnjudgeableOut(allow_null=True)
    recommendation = RecommendationOut()
    variants = VariantRecommendationOut(many=True)
    decision = AnswerOut(allow_null=True)


class DecidedOut(AnswerOut):
    experiment = text()
    status = text()


class AnsweredOut(Shape):
    action = text()
    code = text()
    variant = maybe_text()
    proposed_at = at()
    rationale = texts()


class PastDecisionOut(AnswerOut):
    recommended = AnsweredOut()


class GatesOut(Shape):
    results = GateOut(many=True)
    as_of = at()
    next = maybe_text()
    previous = maybe_text()


class ProposalOut(Shape):
    """What was proposed at a slot and what became of it: its state now, since when (a suspended one: when it was proposed), and why it was superseded."""

    variant = maybe_text()
    action = s.ChoiceField(ACTIONS)
    code = text()
    evidence_digest = text()
    state = s.ChoiceField(RECOMMENDATION_STATES)
    since = at()
    because = maybe_text()


class EvaluationOut(Shape):
    slot = at()
    computed_at = at()
    action = text()
    code = text()
    evidence_digest = text()
    proposals = ProposalOut(many=True)


class SlotOut(Shape):
    slot = at()


class SameOut(Shape):
    same = s.BooleanField()
    digest = text()
    recomputed = text()


class SeriesRowOut(Shape):
    metric = text()
    variant = text()
    ts = at()
    value = number()
    n = maybe_whole()
    variance = maybe_number()
    revision = maybe_whole()
    received_at = maybe_at()


class SeriesOut(Shape):
    results = SeriesRowOut(many=True)
    next = maybe_text()


class BadRowOut(Shape):
    index = whole()
    pointer = text()
    code = text()
    detail = text()


class IngestedOut(Shape):
    accepted = whole()
    changed = whole()
    duplicates = whole()
    last_ts = maybe_at()


class PartlyIngestedOut(IngestedOut):
    errors = BadRowOut(many=True)  # type: ignore[assignment]


class EventsOut(Shape):
    accepted = whole()
    duplicates = whole()
    quarantined = whole()
    rows = IngestedOut()


class PartlyTakenOut(EventsOut):
    errors = BadRowOut(many=True)  # type: ignore[assignment]


class ActorOut(Shape):
    kind = text()
    name = text()


class ObjectOut(Shape):
    type = text()
    id = text()
    name = text()


class EntryOut(Shape):
    id = whole()
    at = at()
    actor = ActorOut()
    address = maybe_text()
    action = s.ChoiceField(CHANGES)
    object = ObjectOut()
    before = s.DictField(allow_null=True)
    after = s.DictField(allow_null=True)
    hash = text()


class AssetOut(Shape):
    id = whole()
    variant = text()
    title = text()
    alt = text()
    media_type = text()
    created_at = at()
    url = text()


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
    team = maybe_text()
    created_at = at()
    warnings = s.ListField(child=text(), required=False)


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


class BacktestOut(Shape):
    """flips, gained, lost count variants; agreement is the share of people's answers the candidate agrees with."""

    state = s.ChoiceField(BACKTEST_STATES)
    flips = maybe_whole()
    gained = maybe_whole()
    lost = maybe_whole()
    days_saved = maybe_number()
    agreement = maybe_number()
    live_agreement = maybe_number()
    experiments = s.ListField(child=s.DictField())
    asked_by = text()
    asked_at = at()
    finished_at = maybe_at()
    error = maybe_text()


class PolicyVersionOut(Shape):
    version = whole()
    body = s.DictField()
    warnings = texts()
    author = text()
    created_at = at()
    activated_at = maybe_at()
    activated_by = maybe_text()


class PolicyOut(Shape):
    name = text()
    team = maybe_text()
    active_version = maybe_whole()
    created_at = at()
    versions = PolicyVersionOut(many=True)


class KeyOut(Shape):
    id = whole()
    public_id = text()
    team = text()
    owner = maybe_text()
    made_by = maybe_text()
    scopes = texts()
    agent = s.BooleanField()
    rate = maybe_text()
    created_at = at()
    expires_at = maybe_at()
    revoked_at = maybe_at()
    last_used_at = maybe_at()
    problem = s.CharField(allow_null=True, help_text="Why it is refused now; null for a good one.")


class NewKeyOut(KeyOut):
    key = text(help_text="The secret: shown this once.")


class WebhookOut(Shape):
    """A receiver of events. `url` of a Slack channel is cut off: it is a credential."""

    id = whole()
    team = text()
    kind = s.ChoiceField(["webhook", "slack", "email"])
    url = text()
    events = texts()
    enabled = s.BooleanField()
    disabled_at = maybe_at()
    disabled_reason = maybe_text()
    failures = whole()
    failing_since = maybe_at()
    created_by = text()
    created_at = at()


class NewWebhookOut(WebhookOut):
    secret = s.CharField(allow_null=True, help_text="Signs the messages: shown this once. Null for Slack and e-mail.")


class DeliveryOut(Shape):
    """One message on its way to one receiver. `message` is what it carries as webhook-id."""

    id = whole()
    message = text()
    type = text()
    experiment = maybe_text()
    state = s.ChoiceField(DELIVERY_STATES)
    attempts = whole()
    created_at = at()
    next_at = maybe_at()
    last_at = maybe_at()
    last_status = maybe_whole()
    last_error = maybe_text()
    delivered_at = maybe_at()


class LatencyOut(Shape):
    p95_s = maybe_number()
    target_s = whole()
    counted = whole()
    late = whole()
    holds = s.BooleanField(allow_null=True)
    budget_left = maybe_number()
    counts = text()
    excludes = text()


class DecisionLatencyOut(LatencyOut):
    not_judged = whole()


class ShareOut(Shape):
    share = maybe_number()
    target = number()
    part = whole()
    whole = whole()
    holds = s.BooleanField(allow_null=True)
    budget_left = maybe_number()
    counts = text()
    excludes = text()


class DaysOut(Shape):
    median = maybe_number()
    p95 = maybe_number()
    counted = whole()
    waiting = whole()
    counts = text()
    excludes = text()


class BurnOut(Shape):
    over_h = s.FloatField()
    rate = maybe_number()


class ReadsOut(ShareOut):
    stale = whole()
    unknown = whole()
    burn = BurnOut(many=True)


class FailuresOut(ShareOut):
    missed = s.IntegerField()


class BlockedOut(Shape):
    code = text()
    count = s.IntegerField()
    experiments = texts()


class CalmOut(Shape):
    experiment = text()
    units = maybe_whole()
    about_at = maybe_at()


class RecommendedOut(ShareOut):
    decisive = s.IntegerField()
    calm = s.IntegerField()
    calm_holds = CalmOut(many=True)
    blocked = BlockedOut(many=True)


class AnswersOut(Shape):
    p95_s = maybe_number()
    answered = whole()
    open = whole()
    overdue = whole()
    excludes = text()


class PromisesOut(Shape):
    as_of = at()
    window_days = whole()
    reads = ReadsOut()
    telemetry_latency = LatencyOut()
    decision_latency = DecisionLatencyOut()
    days_to_decide = DaysOut()
    recommended_within_24h = RecommendedOut()
    telemetry_failures = FailuresOut()
    answers = AnswersOut()
    missed_slots = whole()


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


class SourceOut(Shape):
    """Where rows are pulled from, and how it fares. failure_share: failed and missed runs of those due in the last 7 days, null when
    none was. freshness: null when it feeds nothing that is judged now."""

    key = text()
    team = text()
    kind = text()
    url_env = maybe_text()
    path = maybe_text()
    query = text()
    schedule_s = whole()
    overlap_s = whole()
    time_limit_s = whole()
    date_format = maybe_text()
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


def page_of(shape: type[Shape]) -> type[Shape]:
    """`{results, next, previous}` of a shape."""
    return type(
        f"PageOf{shape.__name__.removesuffix('Out')}Out",
        (s.Serializer,),
        {"results": shape(many=True), "next": maybe_text(), "previous": maybe_text(), "__doc__": "One page of a list."},
    )
