"""Teams, the people in them, and keys, in the Django admin; and what every read-only admin of the portal shares."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group, User
from django.db import transaction
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone

from decisioning.access.keys import revoke
from decisioning.access.models import ApiKey, Membership, Team

if TYPE_CHECKING:  # generic for the type checker alone
    ModelAdmin = admin.ModelAdmin[Any]
    TabularInline = admin.TabularInline[Any, Any]
    StackedInline = admin.StackedInline[Any, Any]
    PeopleAdmin = UserAdmin[User]
else:
    ModelAdmin, TabularInline, StackedInline = admin.ModelAdmin, admin.TabularInline, admin.StackedInline
    PeopleAdmin = UserAdmin


class ReadOnly(ModelAdmin):
    """Facts: looked at here, written by the portal alone."""

    actions: Any = ()

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class Dated(ModelAdmin):
    """Sets `created_at` once, when the object is made here."""

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        return [*super().get_readonly_fields(request, obj), "created_at"]

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:  # noqa: FBT001 - Django's signature
        if not change:
            obj.created_at = timezone.now()
        super().save_model(request, obj, form, change)


def confirmed(
    model_admin: ModelAdmin, request: HttpRequest, chosen: QuerySet[Any], *, action: str, title: str, lines: list[str]
) -> HttpResponse | None:
    """The page that asks once more before an action; None when the answer is yes."""
    if request.POST.get("confirmed"):
        return None
    shown = {
        **model_admin.admin_site.each_context(request),
        "title": title,
        "lines": lines,
        "action": action,
        "chosen": chosen,
        "opts": model_admin.opts,
    }
    return TemplateResponse(request, "admin/confirm_action.html", shown)


class EndsKeys(ModelAdmin):
    """Of people and their places in teams: what is changed here ends keys, and says which."""

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return self._told(request, super().changeform_view, *args, **kwargs)

    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return self._told(request, super().changelist_view, *args, **kwargs)

    def delete_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return self._told(request, super().delete_view, *args, **kwargs)

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[Any], dict[Any, Any], set[Any], list[Any]]:
        """The page that asks once more lists the keys that end."""
        gone, counts, missing, protected = super().get_deleted_objects(objs, request)
        keys = ApiKey.objects.filter(self.keys_of(objs), revoked_at__isnull=True).select_related("team", "owner")
        ends = [f"{key} of {key.owner} in {key.team} ends" for key in keys.order_by("owner", "team", "id")]
        return [*gone, *ends], counts, missing, protected

    def keys_of(self, objs: Any) -> Q:
        """The keys that end when these go; without a word of its own none is listed."""
        return Q(pk__in=[])

    def _told(self, request: HttpRequest, view: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        good = (
            set(ApiKey.objects.filter(revoked_at__isnull=True).values_list("pk", flat=True)) if request.POST else set()
        )
        response: HttpResponse = view(request, *args, **kwargs)
        ended = ApiKey.objects.filter(pk__in=good, revoked_at__isnull=False).select_related("team").order_by("pk")
        if ended:
            named = ", ".join(f"{key} in {key.team}" for key in ended)
            self.message_user(request, f"These keys have ended: {named}.", messages.WARNING)
        return response


class MembershipInline(StackedInline):  # whose fields have labels of their own, which a table's have not
    model = Membership
    extra = 0
    fields = (("user", "role"),)


@admin.register(Team)
class TeamAdmin(EndsKeys, Dated):
    list_display = ("key", "name", "people", "answer_within_h", "second_person", "created_at")
    list_filter = ("second_person",)
    search_fields = ("key", "name")
    date_hierarchy = "created_at"
    inlines = (MembershipInline,)

    @admin.display(description="people")
    def people(self, team: Team) -> int:
        return len(team.memberships.all())

    def get_queryset(self, request: HttpRequest) -> QuerySet[Team]:
        return super().get_queryset(request).prefetch_related("memberships")

    def get_readonly_fields(self, request: HttpRequest, obj: Team | None = None) -> list[str]:
        return [*super().get_readonly_fields(request, obj), *(["key"] if obj else [])]

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[Any], dict[str, int], set[str], list[str]]:
        """Only people and keys go with a team; anything else it has stands in the way and is named with its number."""
        going: list[Any] = []
        counts: dict[str, int] = {}
        in_the_way: list[str] = []
        for team in objs:
            going.append(f"{team.name} ({team.key})")
            for model, number in _things_of(team):
                name = str(model._meta.verbose_name if number == 1 else model._meta.verbose_name_plural)
                if model in GO_WITH_A_TEAM:
                    counts[str(model._meta.verbose_name_plural)] = (
                        counts.get(str(model._meta.verbose_name_plural), 0) + number
                    )
                else:
                    in_the_way.append(f"{team.key} has {number} {name}")
        return going, {"teams": len(going), **counts}, set(), in_the_way

    def delete_model(self, request: HttpRequest, obj: Team) -> None:
        self.delete_queryset(request, Team.objects.filter(pk=obj.pk))

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Team]) -> None:
        with transaction.atomic():
            for model in GO_WITH_A_TEAM:
                model._default_manager.filter(team__in=queryset).delete()
            queryset._raw_delete(queryset.db)  # what records of facts refer to is refused by the database


GO_WITH_A_TEAM: tuple[type[Model], ...] = (Membership, ApiKey)


def _things_of(team: Team) -> list[tuple[type[Model], int]]:
    """(model, how many) of whatever refers to a team."""
    related = [r for r in Team._meta.related_objects if r.field.name == "team"]
    counted = [(r.related_model, r.related_model._base_manager.filter(team=team).count()) for r in related]
    return [(model, number) for model, number in counted if number]


@admin.register(Membership)
class MembershipAdmin(EndsKeys):
    list_display = ("user", "team", "role")
    list_filter = ("role", "team")
    list_select_related = ("user", "team")
    search_fields = ("user__username", "user__email", "team__key", "team__name")

    def keys_of(self, objs: Any) -> Q:
        pairs = [Q(owner=place.user_id, team=place.team_id, owner__is_superuser=False) for place in objs]
        return reduce(or_, pairs, Q(pk__in=[]))


admin.site.unregister((User, Group))


@admin.register(User)
class PersonAdmin(EndsKeys, PeopleAdmin):
    """Django's, with plain lists for rights: the two boxes with a filter name their fields in a way not every reader hears."""

    filter_horizontal = ()

    def keys_of(self, objs: Any) -> Q:
        return Q(owner__in=list(objs))

    def get_deleted_objects(
        self, objs: Any, request: HttpRequest
    ) -> tuple[list[Any], dict[Any, Any], set[Any], list[Any]]:
        """Deleting erases, which cannot be undone: it is said before."""
        gone, counts, missing, protected = super().get_deleted_objects(objs, request)
        erased = [
            f"{one} is erased within minutes: records and the audit say person-{one.pk} from then on, and nobody can tell who that was. "
            "Of somebody who only leaves, untick Active instead."
            for one in objs
        ]
        return [*gone, *erased], counts, missing, protected


@admin.register(Group)
class RightsAdmin(GroupAdmin):
    filter_horizontal = ()


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnly):
    """Keys are made on the board, where the secret is shown once; here they are found and revoked."""

    list_display = (
        "__str__",
        "team",
        "owner",
        "made_by",
        "held",
        "agent",
        "rate",
        "created_at",
        "expires_at",
        "revoked_at",
        "last_used_at",
    )
    list_filter = ("agent", "team", ("revoked_at", admin.EmptyFieldListFilter))
    list_select_related = ("team", "owner", "made_by")
    search_fields = ("public_id", "made_by__public_id", "owner__username", "team__key")
    date_hierarchy = "created_at"
    exclude = ("digest",)
    actions = ("revoke",)

    @admin.display(description="scopes")
    def held(self, key: ApiKey) -> str:
        return ", ".join(key.scopes)

    @admin.action(description="Revoke the chosen keys", permissions=["revoke"])
    def revoke(self, request: HttpRequest, chosen: QuerySet[ApiKey]) -> HttpResponse | None:
        lines = ["Programs that use them are refused from their next request on. This cannot be undone."]
        asked = confirmed(self, request, chosen, action="revoke", title="Revoke keys", lines=lines)
        if asked is None:
            number = revoke(chosen, now=timezone.now())
            self.message_user(request, f"{number} keys revoked.", messages.SUCCESS)
        return asked

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("access.change_apikey"))
