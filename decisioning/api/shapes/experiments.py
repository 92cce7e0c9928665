"""Answers about experiments: the document, its gates, recommendations, decisions, rows."""

from rest_framework import serializers as s

from decisioning.api.shapes.fields import (
    ACTIONS,
    ANSWERS,
    DOUBTS,
    FRESHNESS_STATES,
    RECOMMENDATION_STATES,
    ROLES,
    STATUSES,
    VERDICTS,
    Shape,
    at,
    maybe_at,
    maybe_number,
    maybe_text,
    maybe_whole,
    number,
    text,
    texts,
    whole,
)


class PolicyNameOut(Shape):
    name = text()
    version = whole()


class ReasonOut(Shape):
    """Why, as data: a code with the names and numbers behind it (docs/gates.md, section 9). One that blocks is a blocker."""

    code = text()
    blocks = s.BooleanField(required=False)


class RecommendationOut(Shape):
    action = s.ChoiceField(ACTIONS)
    code = text()
    variant = maybe_text()
    state = s.ChoiceField(RECOMMENDATION_STATES)
    proposed_at = maybe_at()
    first_stable_at = maybe_at()
    rationale = texts()
    blockers = texts()
    reasons = ReasonOut(many=True)
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
    name = text()
    direction = maybe_text()
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
    reasons = ReasonOut(many=True, required=False)


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


class ForecastsOut(Shape):
    results = OutlookOut(many=True)
    next = maybe_text()
    previous = maybe_text()


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
    reasons = ReasonOut(many=True)


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


class SetAsideOut(Shape):
    since = at()
    until = maybe_at()
    reason = text()
    by = text()


class DoubtOut(Shape):
    metric = text()
    doubt = s.ChoiceField(DOUBTS)
    set_aside = SetAsideOut(many=True)


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


class AssetOut(Shape):
    id = whole()
    variant = text()
    title = text()
    alt = text()
    media_type = text()
    created_at = at()
    url = text()
