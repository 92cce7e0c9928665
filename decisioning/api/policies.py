"""Policies over HTTP: create, add a version, activate it."""

from typing import Any

from django.db import transaction
from django.http import Http404
from rest_framework.request import Request
from rest_framework.response import Response

from decisioning.access.permissions import require
from decisioning.access.scopes import Scope
from decisioning.api.base import PortalView
from decisioning.api.lists import PAGING, page
from decisioning.api.problems import Problem, bad_parameter
from decisioning.api.serializers import PolicyIn, PolicyVersionIn
from decisioning.literals import rfc3339
from gates import backtests, policies
from gates.engine.policy_checks import warnings
from gates.models import Backtest, Policy, PolicyVersion


class Policies(PortalView):
    """The shipped policies and those of the caller's teams."""

    scopes = {"GET": Scope.READ, "POST": Scope.POLICIES}
    parameters = {"GET": PAGING, "POST": frozenset({"dry_run"})}

    def get(self, request: Request) -> Response:
        """Each with its versions."""
        found = Policy.objects.select_related("team").prefetch_related("versions")
        return page(
            request, found, shown=lambda rows: [_as_json(p) for p in rows], ordering="id", orderings=("id", "name")
        )

    def post(self, request: Request) -> Response:
        """A new policy; its first version is active at once. `?dry_run=true` only says what is wrong with it."""
        values, trying = self.body(PolicyIn), self.dry_run
        team = self.team(values.get("team"), Scope.POLICIES)
        with transaction.atomic():
            version = policies.create_policy(values["name"], values["body"], team=team, by=self.principal, now=self.now)
            told = _as_json(version.policy)
            if trying:
                transaction.set_rollback(True)
        if trying:
            return Response(told)
        return Response(told, status=201, headers={"Location": f"/api/policies/{version.policy.name}"})


class OnePolicy(PortalView):
    """One policy by name: the team's own hides a shipped one of the same name."""

    scopes = {"GET": Scope.READ}
    parameters = {"GET": frozenset({"team"})}

    def get(self, request: Request, name: str) -> Response:
        """Its versions, newest first."""
        return Response(_as_json(_policy_or_404(self, name)))


class Versions(PortalView):
    """The versions of a policy."""

    scopes = {"GET": Scope.READ, "POST": Scope.POLICIES}
    parameters = {"GET": frozenset({"team"}), "POST": frozenset({"team", "dry_run"})}

    def get(self, request: Request, name: str) -> Response:
        """Newest first."""
        return Response({"results": _as_json(_policy_or_404(self, name))["versions"], "next": None, "previous": None})

    def post(self, request: Request, name: str) -> Response:
        """The next version; it judges once it is activated. `?dry_run=true` only says what is wrong with it."""
        policy, values, trying = _policy_or_404(self, name), self.body(PolicyVersionIn), self.dry_run
        require(self.principal, Scope.POLICIES, policy.team_id)
        with transaction.atomic():
            version = policies.add_version(policy, values["body"], by=self.principal, now=self.now)
            if trying:
                transaction.set_rollback(True)
        if trying:
            return Response(_version_as_json(version))
        location = f"/api/policies/{policy.name}/versions/{version.number}"
        return Response(_version_as_json(version), status=201, headers={"Location": location})


class OneVersion(PortalView):
    """One version of a policy."""

    scopes = {"GET": Scope.READ}
    parameters = {"GET": frozenset({"team"})}

    def get(self, request: Request, name: str, number: int) -> Response:
        """Its body, author and when it was activated."""
        return Response(_version_as_json(_numbered(self, name, number)))


class Backtests(PortalView):
    """A version held against what is live, over the team's recorded experiments."""

    scopes = {"GET": Scope.READ, "POST": Scope.POLICIES}
    parameters = {"GET": frozenset({"team"}), "POST": frozenset({"team"})}

    def get(self, request: Request, name: str, number: int) -> Response:
        """The newest backtest: flips, decisions gained and lost, days saved, agreement with people."""
        trial = backtests.newest(_numbered(self, name, number))
        if trial is None:
            raise Http404
        return Response(_backtest_as_json(trial))

    def post(self, request: Request, name: str, number: int) -> Response:
        """Ask for one; poll its Location until state is finished or failed."""
        version = _numbered(self, name, number)
        require(self.principal, Scope.POLICIES, version.team_id)
        if version.team_id is None and not self.principal.is_admin:
            raise Problem(403, "permission_denied", f"{name} ships with the portal: only an admin may try it.")
        trial = backtests.ask(version, by=self.principal, now=self.now)
        location = f"/api/policies/{name}/versions/{number}/backtest"
        return Response(_backtest_as_json(trial), status=202, headers={"Location": location})


class Activation(PortalView):
    """Let a version judge."""

    scopes = {"POST": Scope.POLICIES}
    parameters = {"POST": frozenset({"team"})}

    def post(self, request: Request, name: str, number: int) -> Response:
        """Needs a finished backtest and somebody other than its author."""
        version = _numbered(self, name, number)
        require(self.principal, Scope.POLICIES, version.team_id)
        policies.activate(version, by=self.principal, now=self.now, backtested=backtests.passed(version))
        return Response(_version_as_json(version))


def _policy_or_404(view: PortalView, name: str) -> Policy:
    """By name; `?team=` tells apart equal names of several teams one belongs to."""
    named = Policy.objects.select_related("team").filter(name=name).order_by("team_id")
    team = view.request.query_params.get("team")
    if team is not None:
        named = named.filter(team__key=team)
    found = list(named)
    mine = [policy for policy in found if policy.team_id is not None]
    if len(mine) > 1:
        raise bad_parameter("team", f"several of your teams have a policy {name!r}; say which with ?team=")
    if not found:
        raise Http404
    return found[0]


def _numbered(view: PortalView, name: str, number: int) -> PolicyVersion:
    version = (
        _policy_or_404(view, name).versions.select_related("policy__team").filter(number=min(number, 2**31 - 1)).first()
    )
    if version is None:
        raise Http404
    return version


def _as_json(policy: Policy) -> dict[str, Any]:
    versions = sorted(policy.versions.all(), key=lambda v: -v.number)
    active = [v for v in versions if v.activated_at is not None]
    newest = max(active, key=lambda v: (v.activated_at, v.number), default=None)
    return {
        "name": policy.name,
        "team": policy.team.key if policy.team else None,
        "active_version": newest.number if newest else None,
        "created_at": rfc3339(policy.created_at),
        "versions": [_version_as_json(v) for v in versions],
    }


def _version_as_json(version: PolicyVersion) -> dict[str, Any]:
    return {
        "version": version.number,
        "body": version.body,
        "warnings": warnings(version.body),
        "author": version.author,
        "created_at": rfc3339(version.created_at),
        "activated_at": rfc3339(version.activated_at),
        "activated_by": version.activated_by or None,
    }


def _backtest_as_json(trial: Backtest) -> dict[str, Any]:
    nothing = dict.fromkeys(("flips", "gained", "lost", "days_saved", "agreement", "live_agreement"))
    return {
        "state": trial.state,
        "asked_by": trial.asked_by,
        "asked_at": rfc3339(trial.asked_at),
        "finished_at": rfc3339(trial.finished_at),
        "error": trial.error or None,
        "experiments": [],
        **(trial.result or nothing),
    }
