"""Which policy judges an experiment, and how a policy gets new versions. The only writer of policies; bindings are written here and, checked here, in the admin."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Max, Q

from decisioning.access.models import KEY_PATTERN, Team
from decisioning.access.principal import Principal
from decisioning.refusals import Fault, Refused
from experiments.models import Experiment, Metric
from gates.engine.policy import completed
from gates.engine.policy_checks import MetricSpec, Problem, lint
from gates.loading import versions_in_force
from gates.models import Policy, PolicyBinding, PolicyVersion

SHIPPED_DEFAULT = "default"
_STARTED = (Experiment.Status.RUNNING, Experiment.Status.PAUSED)


class PolicyRefused(Refused):
    """Nothing was written, bound or activated."""

    usual_status = 409


def named(name: str, team: Team) -> Policy | None:
    """The team's policy of that name, else the shipped one."""
    return (
        Policy.objects.filter(Q(team=team) | Q(team__isnull=True), name=name).order_by("team_id").first()
    )  # nulls last: the team's own comes first


def bind(experiment: Experiment, name: str | None) -> None:
    """Let a new experiment be judged by the named policy; without a name its team's default judges, whichever that is.

    Raises PolicyRefused `unknown_policy`.
    """
    if name is None:
        return
    policy = named(name, experiment.team)
    if policy is None:
        raise PolicyRefused.of(
            Fault(
                "/policy",
                "unknown_policy",
                f"Neither {experiment.team.key} nor the portal has a policy {name!r}. Create it first.",
            )
        )
    PolicyBinding.objects.update_or_create(
        experiment=experiment, defaults={"team_id": experiment.team_id, "policy": policy}
    )


def check_bindings(*, gone: Iterable[PolicyBinding] = (), made: Iterable[PolicyBinding] = ()) -> None:
    """Whether bindings may be taken away and others made, as far as experiments are concerned that have started and not ended.

    Those keep their policy: only a new version of it, backtested and activated by a second person, may judge them otherwise.
    Raises PolicyRefused `policy_in_use`.
    """
    gone, made = list(gone), list(made)
    teams = {binding.team_id for binding in (*gone, *made)}
    own = {binding.experiment_id for binding in (*gone, *made)}
    shipped = Policy.objects.get(team__isnull=True, name=SHIPPED_DEFAULT).pk
    before = {_scope(b): b.policy_id for b in PolicyBinding.objects.filter(Q(team__in=teams) | Q(experiment__in=own))}
    after = {scope: policy for scope, policy in before.items() if scope not in {_scope(b) for b in gone}}
    after |= {_scope(binding): binding.policy_id for binding in made}

    def judges(bound: Mapping[tuple[str, int], int], experiment: Experiment) -> int:
        default = bound.get(("team", experiment.team_id), shipped)
        return bound.get(("experiment", experiment.pk), default)

    started = Experiment.objects.filter(Q(team__in=teams) | Q(pk__in=own), status__in=_STARTED).order_by("key")
    moved = [experiment.key for experiment in started if judges(before, experiment) != judges(after, experiment)]
    if moved:
        others = f" and {len(moved) - 3} more" if len(moved) > 3 else ""
        raise PolicyRefused(
            "policy_in_use",
            f"{', '.join(moved[:3])}{others} would be judged by another policy in the middle of the run. To change how they are "
            "judged, add a version to their policy, backtest it, and let a second person activate it; a policy that ships with the "
            "portal has no new versions and judges to the end. To give a team another default for new experiments, first bind those "
            "that run to the policy that judges them now.",
        )


def _scope(binding: PolicyBinding) -> tuple[str, int]:
    return ("experiment", binding.experiment_id) if binding.experiment_id else ("team", binding.team_id)


def in_force(policy: Policy) -> PolicyVersion | None:
    """The version that was activated last."""
    return policy.versions.filter(activated_at__isnull=False).order_by("-activated_at", "-number").first()


def version_for(experiment: Experiment) -> PolicyVersion:
    """The policy version in force for an experiment."""
    version = versions_in_force([experiment.pk]).get(experiment.pk)
    if version is None:  # a policy's first version is active at once, so there is always one
        raise PolicyVersion.DoesNotExist(f"No version of the policy of {experiment} is active.")
    return version


def create_policy(name: str, body: Mapping[str, Any], *, team: Team, by: Principal, now: datetime) -> PolicyVersion:
    """A new policy of a team with its first version, active at once. Raises PolicyRefused: `key_taken`, `invalid`."""
    if not re.fullmatch(KEY_PATTERN, name):
        raise PolicyRefused.of(
            Fault("/name", "invalid", f"{name!r} is no name. Use 1 to 63 of a-z, 0-9 and hyphens, one letter at least.")
        )
    _check(body)
    try:
        with transaction.atomic():
            policy = Policy.objects.create(name=name, team=team, created_at=now)
    except IntegrityError as error:
        raise PolicyRefused("key_taken", f"{team.key} has a policy {name!r} already. Add a version to it.") from error
    return _add(policy, body, by=by, now=now, active=True)


def add_version(policy: Policy, body: Mapping[str, Any], *, by: Principal, now: datetime) -> PolicyVersion:
    """The next version, not active yet. Raises PolicyRefused: `invalid`, `shipped` for a policy without a team."""
    _check(body)
    if policy.team_id is None:
        raise PolicyRefused(
            "shipped", f"{policy.name} ships with the portal and never changes. Create one of your own."
        )
    Policy.objects.select_for_update().get(pk=policy.pk)  # numbers follow each other
    return _add(policy, body, by=by, now=now, active=False)


def activate(version: PolicyVersion, *, by: Principal, now: datetime, backtested: bool) -> PolicyVersion:
    """Let this version judge from now on.

    backtested: whether a backtest of it has finished. Raises PolicyRefused: `backtest_required`, and `second_person_required`
    unless it is certain that another person asks than the one who wrote it.
    """
    if version.activated_at is not None and in_force(version.policy) == version:
        return version
    if not backtested:
        raise PolicyRefused(
            "backtest_required", f"{version} has no finished backtest. Start one, look at it, then activate."
        )
    if missing := second_person_missing(version, by):
        raise PolicyRefused("second_person_required", missing)
    version.activated_at = now
    version.activated_by = by.owner
    version.save(update_fields=["activated_at", "activated_by"])
    return version


def second_person_missing(version: PolicyVersion, by: Principal) -> str:
    """Why this principal is not the second person that the version needs; "" when it is, or when the team needs none.

    Behind a key without an owner could be anybody, so it is nobody's second person, and what it wrote has no first.
    """
    team = version.policy.team
    if team is not None and not team.second_person:
        return ""
    if version.author_user_id is None:
        return f"{version} was written by {version.author}, behind which no person is known. Somebody has to add it as a version of his own."
    if by.person_id is None:
        return f"{by.owner} belongs to no person. Somebody other than {version.author} has to activate {version}."
    if by.person_id == version.author_user_id:
        return f"{version} was written by {version.author}. Somebody else has to activate it."
    return ""


def faults(body: Mapping[str, Any]) -> Sequence[Problem]:
    """What the lint refuses in a body, each with its gate and mend; nothing when it may be saved."""
    metrics = {m.key: MetricSpec(m.kind, m.direction) for m in Metric.objects.all()}  # type: ignore[arg-type]
    return lint(body, metrics)


def _check(body: Mapping[str, Any]) -> None:
    problems = faults(body)
    if problems:
        raise PolicyRefused.of(*(Fault(_pointer(p.gate), p.code, p.message) for p in problems))


def _add(policy: Policy, body: Mapping[str, Any], *, by: Principal, now: datetime, active: bool) -> PolicyVersion:
    newest = policy.versions.aggregate(Max("number"))["number__max"] or 0
    return PolicyVersion.objects.create(
        policy=policy,
        team=policy.team,
        number=newest + 1,
        body=completed(body),
        author=by.owner,
        author_user_id=by.person_id,
        created_at=now,
        activated_at=now if active else None,
        activated_by=by.owner if active else "",
    )


def _pointer(gate: str | None) -> str:
    return "/body" if gate is None else f"/body/gates/{gate}"
