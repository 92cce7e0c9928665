"""Policies and what was found and answered under them, in the Django admin: written by the gates, read here."""

import json

from django.contrib import admin
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from decisioning.access.admin import ModelAdmin, ReadOnly, TabularInline
from gates.models import Decision, Evaluation, Policy, PolicyBinding, PolicyVersion, Recommendation


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
class PolicyAdmin(ReadOnly):
    list_display = ("name", "team", "created_at")
    list_filter = ("team",)
    list_select_related = ("team",)
    search_fields = ("name", "team__key")
    inlines = (VersionInline,)


@admin.register(PolicyVersion)
class PolicyVersionAdmin(ReadOnly):
    list_display = ("__str__", "team", "author", "created_at", "activated_at", "activated_by")
    list_filter = (("activated_at", admin.EmptyFieldListFilter), "team")
    list_select_related = ("policy", "team")
    search_fields = ("policy__name", "author")
    date_hierarchy = "created_at"
    fields = ("policy", "number", "team", "author", "created_at", "activated_at", "activated_by", "stored")
    readonly_fields = fields

    @admin.display(description="body")
    def stored(self, version: PolicyVersion) -> SafeString:
        return format_html('<pre class="canonical">{}</pre>', json.dumps(version.body, indent=2))


@admin.register(PolicyBinding)
class PolicyBindingAdmin(ModelAdmin):
    """Which policy judges which experiment, or a team's experiments by default."""

    list_display = ("team", "experiment", "policy")
    list_filter = ("team", "policy")
    list_select_related = ("team", "experiment", "policy")
    autocomplete_fields = ("team", "experiment", "policy")
    search_fields = ("experiment__key", "team__key", "policy__name")


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
        "withdrawn_at",
    )
    list_filter = ("action", "code", "team", ("answered_at", admin.EmptyFieldListFilter))
    list_select_related = ("experiment", "variant", "team")
    search_fields = ("experiment__key", "experiment__name", "evidence_digest")
    date_hierarchy = "proposed_at"


@admin.register(Decision)
class DecisionAdmin(ReadOnly):
    list_display = ("id", "experiment", "recommendation", "action", "override_to", "by", "at", "reason")
    list_filter = ("action", "override_to", "team")
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
