"""What every API view has in common: who asks, when, with which parameters, about which experiment."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.utils import timezone
from rest_framework.exceptions import NotAuthenticated
from rest_framework.request import Request
from rest_framework.serializers import BaseSerializer
from rest_framework.views import APIView

from decisioning.access.middleware import about
from decisioning.access.models import Team
from decisioning.access.permissions import require
from decisioning.access.principal import Principal
from decisioning.access.scopes import Scope
from decisioning.api.idempotency import once
from decisioning.api.parsers import take_chunks
from decisioning.api.problems import bad_parameter, invalid
from decisioning.api.schema import Contract
from decisioning.literals import number_or_key
from decisioning.refusals import Fault
from experiments.models import Experiment


class PortalView(APIView):
    """One address. `scopes` names the scope each method needs; `parameters` the query parameters each method knows."""

    scopes: ClassVar[Mapping[str, Scope]] = {}
    parameters: ClassVar[Mapping[str, frozenset[str]]] = {}
    metadata_class = None
    schema = Contract()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "post" in cls.__dict__:
            cls.post = once(cls.__dict__["post"])  # type: ignore[attr-defined]

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        take_chunks(request)
        return super().initialize_request(request, *args, **kwargs)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        if "\x00" in request.path:
            raise Http404
        super().initial(request, *args, **kwargs)
        method = "GET" if request.method == "HEAD" else str(request.method)
        known = self.parameters.get(method, frozenset())
        for name in request.query_params:
            if name not in known:
                choices = f"Known here: {', '.join(sorted(known))}." if known else "None is known here."
                raise bad_parameter(name, f"there is no such parameter. {choices}", code="unknown_parameter")
            if "\x00" in request.query_params[name]:
                raise bad_parameter(name, "a NUL character is not taken")

    def check_permissions(self, request: Request) -> None:
        if request.user is None:
            raise NotAuthenticated("Send `Authorization: Bearer <key>`, or sign in.")
        super().check_permissions(request)

    @property
    def principal(self) -> Principal:
        principal: Principal = self.request.user  # type: ignore[assignment]
        return principal

    @property
    def now(self) -> datetime:
        return timezone.now()  # noqa: TID251 - a door reads the clock

    @property
    def dry_run(self) -> bool:
        """Whether `?dry_run=true` asks to show what would happen and to keep nothing."""
        asked = self.request.query_params.get("dry_run", "false").lower()
        if asked not in ("true", "false"):
            raise bad_parameter("dry_run", f"is {asked[:60]!r}; it must be true or false")
        return asked == "true"

    def experiment(self, ref: str, scope: Scope | None = None) -> Experiment:
        """The experiment with this number or key, 404 when there is none or it is another team's.

        scope: what has to be held in the experiment's team; by default what the method needs.
        """
        experiment = experiment_or_404(Experiment.objects.select_related("team"), ref)
        about(self.request._request, experiment.team_id)
        method = "GET" if self.request.method == "HEAD" else str(self.request.method)
        require(self.principal, scope or self.scopes[method], experiment.team_id)
        return experiment

    def team(self, key: str | None, scope: Scope) -> Team:
        """The team that something new is for: the one named, else the only one the principal holds the scope in."""
        if key is None:
            mine = [team for team, scopes in self.principal.teams.items() if scope in scopes]
            if len(mine) != 1:
                raise invalid(
                    [Fault("/team", "missing_field", "Say which team this is for: you belong to none or several.")]
                )
            return Team.objects.get(pk=mine[0])
        team = Team.objects.filter(key=key).first()
        if team is None:
            raise invalid([Fault("/team", "unknown_team", f"There is no team {key!r} that you belong to.")])
        about(self.request._request, team.pk)
        require(self.principal, scope, team.pk)
        return team

    def body(self, kind: type[BaseSerializer[Any]], **options: Any) -> dict[str, Any]:
        """The validated body. Raises DRF's ValidationError, which becomes a 422."""
        data = self.request.data
        if not isinstance(data, Mapping):
            raise invalid([Fault("", "invalid", "The body must be a JSON object.")])
        serializer = kind(data=data, **options)
        serializer.is_valid(raise_exception=True)
        values: dict[str, Any] = serializer.validated_data
        return values


def experiment_or_404(experiments: QuerySet[Experiment], ref: str) -> Experiment:
    """By number or by key; keys hold a letter, so the two never meet."""
    named = number_or_key(ref)
    experiment = experiments.filter(**{"pk" if isinstance(named, int) else "key": named}).first()
    if experiment is None:
        raise Http404
    return experiment


def json_response(body: bytes | str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """JSON that PostgreSQL has built, handed on as it is."""
    return HttpResponse(body, status=status, content_type="application/json", headers=dict(headers or {}))


class Nowhere(APIView):
    """Any address that is none."""

    authentication_classes = ()
    permission_classes = ()
    metadata_class = None
    schema = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        raise Http404
