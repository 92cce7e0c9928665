"""Answers about the portal itself: audit, policies, keys, channels, promises."""

from rest_framework import serializers as s

from decisioning.api.shapes.fields import (
    BACKTEST_STATES,
    CHANGES,
    DELIVERY_STATES,
    Shape,
    anything,
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


class SnoozedOut(Shape):
    until = at()
    reason = text()
    by = text()
    at = at()


class AcknowledgedOut(Shape):
    by = text()
    at = at()


class AlarmOut(Shape):
    """Something that is wrong and was told; `data` is what a message of it would say now."""

    id = whole()
    team = text()
    type = text()
    subject = text()
    experiment = maybe_text()
    began_at = at()
    told_at = maybe_at()
    ended_at = maybe_at()
    data = anything()  # type: ignore[assignment]
    snoozed = SnoozedOut(allow_null=True)
    acknowledged = AcknowledgedOut(allow_null=True)


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
