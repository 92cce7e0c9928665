"""Policies and what was found and answered under them, in the Django admin: written by the gates, read here."""

import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, cast

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.forms.fields import InvalidJSONInput
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from decisioning.access.admin import ModelAdmin, ReadOnly, TabularInline, confirmed
from decisioning.access.models import KEY_PATTERN
from decisioning.access.principal import Principal
from gates import backtests, policies
from gates.engine.policy import DEFAULT_BODY, sentence
from gates.engine.policy_checks import warnings
from gates.models import Decision, Evaluation, Policy, PolicyBinding, PolicyVersion, Recommendation


def principal_of(request: HttpRequest) -> Principal:
    return cast("Principal", request.principal)  # type: ignore[attr-defined]


class _Indented(forms.JSONField):
    """JSON as a person edits it."""

    def prepare_value(self, value: Any) -> Any:
        return value if isinstance(value, InvalidJSONInput) else json.dumps(value, indent=2, ensure_ascii=False)


class BodyForm(forms.ModelForm):  # type: ignore[type-arg] # generic for the type checker alone
    """A policy body as JSON, its gates as sentences below it; what the lint refuses stands at the field with its mend."""

    body = _Indented(
        widget=forms.Textarea(attrs={"rows": 28, "cols": 110, "spellcheck": "false"}),
        help_text="Settings that are left out have the value of the shipped policy.",
    )
    look_first = forms.BooleanField(
        required=False,
        initial=True,
        label="Look first",
        help_text="Ticked: check it and show its gates as sentences, save nothing.",
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields["body"].widget.attrs.setdefault("class", "vLargeTextField")
        self.initial.setdefault("body", DEFAULT_BODY)

    def clean_body(self) -> dict[str, Any]:
        body = self.cleaned_data["body"]
        faults = policies.faults(body) if isinstance(body, dict) else []
        if not isinstance(body, dict):
            raise forms.ValidationError("The body must be a JSON object.")
        if faults:
            raise forms.ValidationError([fault.message for fault in faults])
        return body

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if cleaned.get("look_first") and not self.errors:
            self.add_error(None, "Nothing is saved yet. Read the gates as sentences below; untick Look first to save.")
        return cleaned

    def sentences(self) -> list[str]:
        """The gates of the body in the form; none while it cannot be read."""
        body = self._readable()
        return [sentence(gate) for gate in body["gates"]] if body else []

    def warnings(self) -> list[str]:
        """What may be saved and is hardly meant."""
        return warnings(self._readable() or {})

    def _readable(self) -> Any:
        return (
            self.cleaned_data.get("body") if self.is_bound and hasattr(self, "cleaned_data") else self.initial["body"]
        )


class PolicyForm(BodyForm):
    class Meta:
        model = Policy
        fields = ("name", "team")

    def clean_name(self) -> str:
        name = str(self.cleaned_data["name"])
        if not re.fullmatch(KEY_PATTERN, name):
            raise forms.ValidationError("Use 1 to 63 of a-z, 0-9 and hyphens, one letter at least.")
        return name

    def clean_team(self) -> Any:
        if self.cleaned_data["team"] is None:
            raise forms.ValidationError("A policy belongs to a team. Those without one ship with the portal.")
        return self.cleaned_data["team"]


class VersionForm(BodyForm):
    class Meta:
        model = PolicyVersion
        fields = ("policy",)


class WithBody(ReadOnly):
    """Policies and their versions: written once, never changed."""

    add_form_template = "admin/policy_body.html"

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm(f"gates.add_{self.opts.model_name}"))

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return (
            [*cast("tuple[str, ...]", self.form._meta.fields), "body", "look_first"]
            if obj is None
            else super().get_fields(request, obj)
        )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else super().get_readonly_fields(request, obj)

    def get_inlines(self, request: HttpRequest, obj: Any) -> Any:
        return () if obj is None else super().get_inlines(request, obj)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:  # noqa: FBT001 - Django's signature
        made = self.made(form, principal_of(request), timezone.now())
        obj.__dict__.update(made.__dict__)  # what is said of it next names its number
        for warning in form.warnings():
            messages.warning(request, warning)

    def made(self, form: Any, by: Principal, now: datetime) -> Any:
        """The object of a valid form, written by the domain."""
        raise NotImplementedError


class VersionInline(TabularInline):
    model = PolicyVersion
    fields = ("number", "author", "created_at", "activated_at", "activated_by")
    readonly_fields = fields
    extra = 0
    show_change_link = True
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Policy | None = None) -> bool:
        return False


@admin.register(Policy)
class PolicyAdmin(WithBody):
    form = PolicyForm
    list_display = ("name", "team", "created_at")
    list_filter = ("team",)
    list_select_related = ("team",)
    search_fields = ("name", "team__key")
    inlines = (VersionInline,)

    def made(self, form: Any, by: Principal, now: datetime) -> Policy:
        data = form.cleaned_data
        return policies.create_policy(data["name"], data["body"], team=data["team"], by=by, now=now).policy


@admin.register(PolicyVersion)
class PolicyVersionAdmin(WithBody):
    form = VersionForm
    list_display = ("__str__", "team", "author", "created_at", "activated_at", "activated_by")
    list_filter = (("activated_at", admin.EmptyFieldListFilter), "team")
    list_select_related = ("policy", "team")
    search_fields = ("policy__name", "author")
    date_hierarchy = "created_at"
    fields = (
        "policy",
        "number",
        "team",
        "author",
        "created_at",
        "activated_at",
        "activated_by",
        "gates_said",
        "stored",
    )
    readonly_fields = fields
    actions = ("backtest", "activate")

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        """With ?policy=, what judges now is where the next version begins."""
        initial: dict[str, Any] = dict(super().get_changeform_initial_data(request))
        policy = Policy.objects.filter(pk=initial["policy"]).first() if initial.get("policy") else None
        live = policies.in_force(policy) if policy else None
        return initial | ({"body": live.body} if live else {})

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        if db_field.name == "policy":
            options["queryset"] = Policy.objects.filter(team__isnull=False)
        return super().formfield_for_foreignkey(db_field, request, **options)

    def made(self, form: Any, by: Principal, now: datetime) -> PolicyVersion:
        return policies.add_version(form.cleaned_data["policy"], form.cleaned_data["body"], by=by, now=now)

    @admin.display(description="gates")
    def gates_said(self, version: PolicyVersion) -> SafeString:
        return format_html_join("", "<p>{}</p>", ((sentence(gate),) for gate in version.body["gates"]))

    @admin.display(description="body")
    def stored(self, version: PolicyVersion) -> SafeString:
        return format_html(
            '<pre class="canonical" tabindex="0" role="region" aria-label="The body as it is stored">{}</pre>',
            json.dumps(version.body, indent=2),
        )

    @admin.action(description="Backtest the chosen versions", permissions=["try"])
    def backtest(self, request: HttpRequest, chosen: QuerySet[PolicyVersion]) -> None:
        for version in chosen:
            backtests.ask(version, by=principal_of(request), now=timezone.now())
        self.message_user(
            request, "Asked for. The reports stand on the policies' pages of the board when they are done."
        )

    @admin.action(description="Activate the chosen version", permissions=["try"])
    def activate(self, request: HttpRequest, chosen: QuerySet[PolicyVersion]) -> HttpResponse | None:
        lines = ["Running experiments under this policy are judged by it from their next slot on."]
        asked = confirmed(self, request, chosen, action="activate", title="Activate a version", lines=lines)
        if asked is not None:
            return asked
        for version in chosen:
            try:
                policies.activate(
                    version, by=principal_of(request), now=timezone.now(), backtested=backtests.passed(version)
                )
            except policies.PolicyRefused as refusal:
                self.message_user(request, refusal.message, messages.ERROR)
            else:
                self.message_user(request, f"{version} judges from now on.", messages.SUCCESS)
        return None

    def has_try_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("gates.add_policyversion"))


class NamedValues(admin.AllValuesFieldListFilter):
    """Gives the empty value a word: a link without one cannot be followed by who does not see it."""

    def choices(self, changelist: Any) -> Iterator[Any]:
        for choice in super().choices(changelist):
            yield {**choice, "display": choice["display"] or "nothing"}


class BindingForm(forms.ModelForm):  # type: ignore[type-arg] # generic for the type checker alone
    """A binding that lets every experiment that has started keep its policy."""

    class Meta:
        model = PolicyBinding
        fields = ("team", "experiment", "policy")

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if not self.errors:
            before = PolicyBinding.objects.filter(pk=self.instance.pk)
            try:
                policies.check_bindings(gone=before, made=[PolicyBinding(**cleaned)])
            except policies.PolicyRefused as refusal:
                raise forms.ValidationError(refusal.message, code=refusal.code) from refusal
        return cleaned


@admin.register(PolicyBinding)
class PolicyBindingAdmin(ModelAdmin):
    """Which policy judges which experiment, or a team's experiments by default."""

    form = BindingForm
    list_display = ("team", "experiment", "policy")
    list_filter = ("team", "policy")
    list_select_related = ("team", "experiment", "policy")
    raw_id_fields = ("experiment",)
    search_fields = ("experiment__key", "team__key", "policy__name")

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """What keeps them from being taken away stands on the page that asks once more, whose button is gone then."""
        deleted, counts, lacking, protected = super().get_deleted_objects(objs, request)
        try:
            policies.check_bindings(gone=objs)
        except policies.PolicyRefused as refusal:
            protected = [*protected, refusal.message]
        return deleted, counts, lacking, protected


@admin.register(Recommendation)
class RecommendationAdmin(ReadOnly):
    list_display = (
        "id",
        "experiment",
        "variant",
        "action",
        "code",
        "proposed_at",
        "answered_at",
        "superseded_at",
        "superseded_because",
        "withdrawn_at",
    )
    list_filter = ("action", "code", "superseded_because", "team", ("answered_at", admin.EmptyFieldListFilter))
    list_select_related = ("experiment", "variant", "team")
    search_fields = ("experiment__key", "experiment__name", "evidence_digest")
    date_hierarchy = "proposed_at"


@admin.register(Decision)
class DecisionAdmin(ReadOnly):
    list_display = ("id", "experiment", "recommendation", "action", "override_to", "by", "at", "reason")
    list_filter = ("action", ("override_to", NamedValues), "team")
    list_select_related = ("experiment", "recommendation", "team")
    search_fields = ("experiment__key", "experiment__name", "by", "reason", "evidence_digest")
    date_hierarchy = "at"


@admin.register(Evaluation)
class EvaluationAdmin(ReadOnly):
    list_display = ("id", "experiment", "slot", "action", "code", "fold", "computed_at", "policy_version")
    list_filter = ("action", "code", "team")
    list_select_related = ("experiment", "policy_version__policy", "team")
    search_fields = ("experiment__key", "evidence_digest")
    date_hierarchy = "slot"
