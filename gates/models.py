"""How experiments are judged, what was found, and what people answered."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q, Value

from decisioning.access.models import Team, valid_key
from experiments.models import Experiment, OfExperiment, Variant
from gates.engine.evidence import EvidenceRefused
from gates.engine.evidence import digest as digest_of
from gates.engine.reasons import reasons_in


class Policy(models.Model):
    """A named set of gates; its versions hold the rules. Without a team it ships with the portal and serves all."""

    name = models.CharField(max_length=63, validators=[valid_key])
    team = models.ForeignKey(Team, null=True, blank=True, on_delete=models.CASCADE, related_name="policies")
    created_at = models.DateTimeField()

    class Meta:
        db_table = "policies"
        verbose_name_plural = "policies"
        constraints = [
            models.UniqueConstraint(fields=["team", "name"], name="policy_name_once_per_team", nulls_distinct=False)
        ]

    def __str__(self) -> str:
        return self.name


class PolicyVersion(models.Model):
    """One immutable body (docs/gates.md section 4). The newest activated version of a policy judges."""

    policy = models.ForeignKey(Policy, on_delete=models.CASCADE, related_name="versions")
    team = models.ForeignKey(Team, null=True, blank=True, on_delete=models.CASCADE, related_name="+", editable=False)
    number = models.PositiveIntegerField()
    body = models.JSONField()
    author = models.CharField(max_length=200)
    author_user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.DO_NOTHING, db_constraint=False, related_name="+",
        help_text="Outlives the account, so that its number goes on to say who the second person is not.",
    )  # fmt: skip
    created_at = models.DateTimeField()
    activated_at = models.DateTimeField(null=True, blank=True)
    activated_by = models.CharField(max_length=200, blank=True)

    class Meta:
        db_table = "policy_versions"
        ordering = ("policy_id", "-number")
        constraints = [models.UniqueConstraint(fields=["policy", "number"], name="policy_version_once")]

    def __str__(self) -> str:
        return f"{self.policy.name} v{self.number}"


class Backtest(models.Model):
    """One version held against what is live, over the team's recorded experiments; asked for by a person, run by a job."""

    class State(models.TextChoices):
        QUEUED = "queued"
        FINISHED = "finished"
        FAILED = "failed"

    version = models.ForeignKey(PolicyVersion, on_delete=models.CASCADE, related_name="backtests")
    team = models.ForeignKey(Team, null=True, blank=True, on_delete=models.CASCADE, related_name="+", editable=False)
    state = models.CharField(max_length=10, choices=State, default=State.QUEUED)
    asked_by = models.CharField(max_length=200)
    asked_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)
    result = models.JSONField(null=True, help_text="Figures and experiments as the API shows them.")
    error = models.TextField(blank=True)

    class Meta:
        db_table = "backtests"
        ordering = ("-id",)
        constraints = [
            models.UniqueConstraint(fields=["version"], condition=Q(state="queued"), name="one_queued_backtest"),
            models.CheckConstraint(
                name="backtest_has_result_iff_finished",
                condition=Q(state="finished", result__isnull=False) | (~Q(state="finished") & Q(result__isnull=True)),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.version}: {self.state}"


class PolicyBinding(models.Model):
    """Which policy judges: one experiment, or (experiment null) every experiment of the team that names none."""

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="policy_bindings")
    experiment = models.OneToOneField(
        Experiment, null=True, blank=True, on_delete=models.CASCADE, related_name="policy_binding"
    )
    policy = models.ForeignKey(Policy, on_delete=models.PROTECT, related_name="bindings")

    class Meta:
        db_table = "policy_bindings"
        constraints = [
            models.UniqueConstraint(
                fields=["team"], condition=Q(experiment__isnull=True), name="one_default_policy_per_team"
            )
        ]

    def __str__(self) -> str:
        return f"{self.policy} for {self.experiment or f'new experiments of {self.team}'}"


class Cursor(models.Model):
    """How far one experiment is judged. Doors write to this row as well; a tick locks it only while it writes.

    `state` is the fold's (gates.engine.checkpoint.Checkpoint, compressed); it always equals what a rebuild from the rows gives.
    `shown` is what the document says of the newest slot: gates and recommendations.
    """

    experiment = models.OneToOneField(Experiment, primary_key=True, on_delete=models.CASCADE, related_name="cursor")
    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="+", editable=False)
    judged_to = models.DateTimeField(null=True, help_text="The newest slot judged.")
    due_at = models.DateTimeField(null=True, help_text="The next slot to judge; null when nothing is left to judge.")
    quiet_to = models.DateTimeField(
        null=True, help_text="Up to this slot nothing changes unless rows, answers, plan or policy do."
    )
    asked_slot = models.DateTimeField(null=True, help_text="The slot somebody asked to have evaluated.")
    fold = models.PositiveIntegerField(default=1, help_text="Which retelling this is: a rewind opens the next.")
    policy_version = models.ForeignKey(PolicyVersion, null=True, on_delete=models.PROTECT, related_name="+")
    state = models.BinaryField(null=True)
    shown = models.JSONField(null=True)
    on_record = models.JSONField(
        null=True,
        help_text="Of the newest evaluation on record {day, fold, version, gist}, and of `shown` {open, basis, gates}: its open proposals, and "
        "digests of what it follows from and of its gates; null: they have to be read.",
    )
    revisions = models.JSONField(
        default=dict,
        db_default={},
        help_text="By decision: {action, code} the gates would advise on the rows stored now, where that is another action.",
    )
    unjudgeable = models.JSONField(
        null=True,
        help_text="Why the newest slot could not be judged: {since, reason, row}; null while it can. Nothing proposed is accepted meanwhile.",
    )
    rules = models.PositiveSmallIntegerField(
        default=1, db_default=1, help_text="The revision of the rules that judged (gates.engine.compiled.REVISION)."
    )
    readable_at = models.DateTimeField(
        null=True, help_text="The first look that could be read: fresh, dense, with its floors and min_days."
    )
    missed_slots = models.PositiveBigIntegerField(
        default=0, help_text="Slots that were judged later than one slot after their time."
    )

    class Meta:
        # No index on due_at: every quiet slot moves it, and without one that touches the row's page alone.
        db_table = "cursors"

    def __str__(self) -> str:
        return f"experiment {self.experiment_id} to {self.judged_to}"


class Step(OfExperiment):
    """The facts of one slot that changed any (gates.engine.facts.SlotFacts), as the newest fold read them: what evidence is made of."""

    slot = models.DateTimeField()
    body = models.BinaryField()

    class Meta:
        db_table = "steps"
        constraints = [models.UniqueConstraint(fields=["experiment", "slot"], name="step_once_per_slot")]

    def __str__(self) -> str:
        return f"{self.experiment_id} at {self.slot:%Y-%m-%d %H:%MZ}"


class Evidence(OfExperiment):
    """Everything one evaluation read, as canonical JSON, compressed; named by the SHA-256 of the JSON."""

    experiment = models.ForeignKey(Experiment, on_delete=models.CASCADE, related_name="evidence")
    digest = models.CharField(max_length=71)
    body = models.BinaryField()
    created_at = models.DateTimeField()

    class Meta:
        db_table = "evidence"
        verbose_name_plural = "evidence"
        constraints = [models.UniqueConstraint(fields=["experiment", "digest"], name="evidence_once")]

    def __str__(self) -> str:
        return self.digest

    def read(self) -> bytes:
        """The canonical JSON. Raises EvidenceRefused when what is stored is not what the digest names."""
        try:
            body = zlib.decompress(self.body)
        except zlib.error as error:
            raise EvidenceRefused(f"What is kept of {self.digest} cannot be read: {error}.") from error
        if digest_of(body) != self.digest:
            raise EvidenceRefused(f"What is kept of {self.digest} is not what that names.")
        return body


class Evaluation(OfExperiment):
    """A slot at which something changed, or that somebody asked for. At most one per experiment, slot and fold."""

    slot = models.DateTimeField()
    fold = models.PositiveIntegerField()
    computed_at = models.DateTimeField()
    action = models.CharField(max_length=10)
    code = models.CharField(max_length=20)
    found = models.JSONField(help_text="Recommendations and gates as the document shows them.")
    evidence_digest = models.CharField(max_length=71)
    policy_version = models.ForeignKey(PolicyVersion, on_delete=models.PROTECT, related_name="+")

    class Meta:
        db_table = "evaluations"
        constraints = [
            models.UniqueConstraint(fields=["experiment", "slot", "fold"], name="judged_once_per_slot_and_fold")
        ]
        indexes = [models.Index(fields=["experiment", "-slot", "-fold"], name="evaluation_newest")]

    def __str__(self) -> str:
        return f"{self.experiment} at {self.slot:%Y-%m-%d %H:%MZ}: {self.action}"


OPEN = Q(answered_at__isnull=True, superseded_at__isnull=True, withdrawn_at__isnull=True)
"""Of a recommendation: somebody has to answer it."""


class RecommendationQuerySet(models.QuerySet["Recommendation"]):
    def open(self, experiments: Iterable[Experiment]) -> RecommendationQuerySet:
        """What of these experiments nobody has answered and nothing has taken back."""
        return self.select_related("variant", "policy_version__policy").filter(OPEN, experiment__in=experiments)


class Recommendation(OfExperiment):
    """One proposal for one variant (null: for the experiment as a whole). Its wording and figures never change.

    Open until a person answers (its decision), a later fold no longer gives it or something else settles it
    (`superseded_at`, `superseded_because`), or rows 1-3 of docs/gates.md section 5 take it back (`withdrawn_at`).
    """

    class Superseded(models.TextChoices):
        """Why nobody needs to answer it any more."""

        EVIDENCE_CORRECTED = "evidence_corrected", "Evidence corrected"
        POLICY_CHANGED = "policy_changed", "Policy changed"
        JUDGED_ANEW = "judged_anew", "Judged anew"
        RULES_MENDED = "rules_mended", "Rules mended"
        NEWER_PROPOSAL = "newer_proposal", "Newer proposal"
        ANOTHER_ANSWER = "another_answer", "Another answer"

    variant = models.ForeignKey(Variant, null=True, on_delete=models.CASCADE, related_name="+")
    action = models.CharField(max_length=10)
    code = models.CharField(max_length=20)
    slot = models.DateTimeField(help_text="The slot at which it was proposed.")
    proposed_at = models.DateTimeField(help_text="When it was written down.")
    first_stable_at = models.DateTimeField(null=True)
    knowable_at = models.DateTimeField(null=True, help_text="When the stable read could be known at the earliest.")
    reasons = models.JSONField(default=list, db_default=Value([], models.JSONField()))
    rationale = models.JSONField(default=list)  # the sentences of those that were made before reasons were data
    blockers = models.JSONField(default=list)
    evidence_digest = models.CharField(max_length=71)
    policy_version = models.ForeignKey(PolicyVersion, on_delete=models.PROTECT, related_name="+")
    fold = models.PositiveIntegerField()
    answered_at = models.DateTimeField(null=True)
    superseded_at = models.DateTimeField(null=True)
    superseded_because = models.CharField(
        max_length=20, choices=Superseded, blank=True, db_default="", help_text="Empty in records older than the field."
    )
    withdrawn_at = models.DateTimeField(null=True)

    objects = RecommendationQuerySet.as_manager()

    class Meta:
        db_table = "recommendations"
        ordering = ("-id",)
        constraints = [
            models.UniqueConstraint(
                fields=["experiment", "variant"],
                condition=OPEN,
                name="one_open_recommendation_per_variant",
                nulls_distinct=False,
            ),
            models.CheckConstraint(
                name="because_only_of_superseded", condition=Q(superseded_because="") | Q(superseded_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.code}"

    @property
    def told(self) -> list[dict[str, Any]]:
        """Its reasons; of one that was made before reasons were data, its sentences as such."""
        return self.reasons or reasons_in({"rationale": self.rationale, "blockers": self.blockers})

    @property
    def became(self) -> tuple[str, datetime]:
        """(answered, superseded, withdrawn or still proposed, since when); the newest slot alone knows whether it is suspended."""
        ends = (("answered", self.answered_at), ("superseded", self.superseded_at), ("withdrawn", self.withdrawn_at))
        return next(((state, at) for state, at in ends if at), ("proposed", self.proposed_at))


class Decision(OfExperiment):
    """What a person answered to one recommendation, on the evidence they saw."""

    class Action(models.TextChoices):
        ACCEPT = "accept"
        OVERRIDE = "override"

    recommendation = models.OneToOneField(Recommendation, on_delete=models.PROTECT, related_name="decision")
    action = models.CharField(max_length=10, choices=Action)
    override_to = models.CharField(max_length=10, blank=True)
    reason = models.TextField(blank=True)
    by = models.CharField(max_length=200)
    by_user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.DO_NOTHING, db_constraint=False, related_name="+",
        help_text="Outlives the account: an answer is never edited, not even by a deletion.",
    )  # fmt: skip
    at = models.DateTimeField()
    evidence_digest = models.CharField(max_length=71)

    class Meta:
        db_table = "decisions"
        ordering = ("-id",)
        constraints = [
            models.CheckConstraint(
                name="override_says_what_and_why",
                condition=Q(action="accept", override_to="")
                | (Q(action="override") & ~Q(override_to="") & ~Q(reason="")),
            )
        ]

    def __str__(self) -> str:
        return f"{self.action} by {self.by}"
