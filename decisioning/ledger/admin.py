"""The history in the Django admin: to read and search, never to edit."""

import json

from auditlog.admin import LogEntryAdmin
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from decisioning.access.admin import ReadOnly
from decisioning.ledger.models import Alarm, Channel, Delivery, Entry, Heartbeat, OutboxMessage, one_of_each

admin.site.unregister(Entry)  # auditlog registers it with columns that show "system" for keys and jobs


@admin.register(Entry)
class EntryAdmin(LogEntryAdmin):  # type: ignore[misc]  # auditlog has no types
    """auditlog's admin with the actor as the database knew it, and changes without inline style."""

    list_display = ["timestamp", "who", "actor_kind", "action", "thing", "object_repr", "experiment_id", "touched"]
    list_select_related = ["content_type"]
    list_filter = ["action", "actor_kind", "content_type"]
    search_fields = ["object_repr", "actor_name", "object_pk", "cid"]
    search_help_text = "Object, actor or request id"
    date_hierarchy = "timestamp"
    readonly_fields = ["timestamp", "who", "actor_kind", "action", "thing", "object_repr", "object_pk", "cid", "remote_addr", "team_id",
                       "experiment_id", "changed"]  # fmt: skip
    fieldsets = [
        (None, {"fields": ["timestamp", "who", "actor_kind", "remote_addr", "cid"]}),
        ("What", {"fields": ["action", "thing", "object_repr", "object_pk", "team_id", "experiment_id", "changed"]}),
    ]
    actions = ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Entry]:
        return one_of_each(super().get_queryset(request))

    def has_change_permission(self, request: HttpRequest, obj: Entry | None = None) -> bool:
        return False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Entry | None = None) -> bool:
        return False

    @admin.display(description="who", ordering="actor_name")
    def who(self, entry: Entry) -> str:
        return str(entry.actor_name)

    @admin.display(description="what", ordering="content_type")
    def thing(self, entry: Entry) -> str:
        return str(entry.content_type.model)

    @admin.display(description="fields")
    def touched(self, entry: Entry) -> str:
        return ", ".join(sorted(entry.changes or {}))[:80]

    @admin.display(description="before and after")
    def changed(self, entry: Entry) -> SafeString:
        pairs = ((field, *_pair(change)) for field, change in sorted((entry.changes or {}).items()))
        rows = format_html_join("", '<tr><th scope="row">{}</th><td class="before">{}</td><td>{}</td></tr>', pairs)
        return format_html(
            "<table><thead><tr><th>Field</th><th>Before</th><th>After</th></tr></thead><tbody>{}</tbody></table>", rows
        )


def _pair(change: object) -> tuple[str, str]:
    before, after = change if isinstance(change, list) and len(change) == 2 else (None, change)
    return _text(before), _text(after)


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@admin.register(OutboxMessage)
class OutboxAdmin(ReadOnly):
    list_display = ("id", "type", "team_id", "experiment_id", "created_at", "fanned_out_at", "delivered_at")
    list_filter = ("type", ("delivered_at", admin.EmptyFieldListFilter))
    date_hierarchy = "created_at"


@admin.register(Channel)
class ChannelAdmin(ReadOnly):
    """Channels are made and deleted on the board; here they are found. Address and salt are not shown: they may be credentials."""

    list_display = ("name", "team", "enabled", "failures", "failing_since", "next_at", "leased_until", "created_by")
    list_filter = ("enabled", "kind", "team")
    list_select_related = ("team",)
    search_fields = ("name", "team__key")
    exclude = ("url", "salt")


@admin.register(Delivery)
class DeliveryAdmin(ReadOnly):
    list_display = (
        "id",
        "message",
        "channel",
        "state",
        "attempts",
        "next_at",
        "last_status",
        "last_error",
        "delivered_at",
    )
    list_filter = ("state",)
    list_select_related = ("message", "channel")
    date_hierarchy = "created_at"


@admin.register(Alarm)
class AlarmAdmin(ReadOnly):
    list_display = (
        "type", "subject", "team_id", "began_at", "told_at", "ended_at", "snoozed_until", "snoozed_by", "acknowledged_by",
    )  # fmt: skip
    list_filter = ("type",)


@admin.register(Heartbeat)
class HeartbeatAdmin(ReadOnly):
    list_display = ("name", "at", "slot")
