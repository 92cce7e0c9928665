"""Which policy judges an experiment, and how a new version comes into force."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from django.contrib.auth.models import User

from decisioning.access.models import Team
from decisioning.access.principal import Principal
from experiments.models import Experiment
from experiments.plan import NewExperiment, NewKpi, create
from gates.engine.policy import DEFAULT_BODY, QUICK_BODY
from gates.models import PolicyBinding
from gates.policies import (
    PolicyRefused,
    activate,
    add_version,
    bind,
    create_policy,
    in_force,
    named,
    version_for,
)
from tests.conftest import as_role

BODY = {"gates": DEFAULT_BODY["gates"], "persist": 8}


@pytest.fixture(autouse=True)
def _as_worker(db: None) -> Iterator[None]:
    with as_role("worker"):
        yield


@pytest.fixture
def ann(db: None) -> Principal:
    return person("ann")


def person(name: str) -> Principal:
    return Principal("user", id=User.objects.create(username=name).pk, name=name, owner=name)


@pytest.fixture
def experiment(team: Team, now: datetime, ann: Principal) -> Experiment:
    new = NewExperiment(name="x", hypothesis="y", owner="z", target_kpis=[NewKpi(metric="vrps")])
    return create(new, team=team, by=ann, now=now)


def test_the_shipped_policies_are_the_engines_own_bodies(team: Team) -> None:
    for name, body in (("default", DEFAULT_BODY), ("quick", QUICK_BODY)):
        policy = named(name, team)
        assert policy is not None
        version = in_force(policy)
        assert version is not None
        assert (version.number, version.body) == (1, body)


def test_an_experiment_is_judged_by_its_own_policy_else_its_teams_else_the_shipped(
    team: Team, experiment: Experiment, ann: Principal, now: datetime
) -> None:
    assert version_for(experiment).policy.name == "default"
    careful = create_policy("careful", BODY, team=team, by=ann, now=now).policy
    PolicyBinding.objects.create(team=team, policy=careful)
    assert version_for(experiment).policy == careful
    bind(experiment, "quick")
    assert version_for(experiment).policy.name == "quick"
    with pytest.raises(PolicyRefused, match="policy 'none'"):
        bind(experiment, "none")


def test_a_teams_own_policy_hides_the_shipped_one_of_that_name(team: Team, ann: Principal, now: datetime) -> None:
    mine = create_policy("quick", BODY, team=team, by=ann, now=now).policy
    assert named("quick", team) == mine
    other = Team.objects.create(key="search", name="Search", created_at=now)
    shipped = named("quick", other)
    assert shipped is not None
    assert shipped.team is None


def test_a_new_version_judges_after_a_backtest_and_a_second_person(team: Team, ann: Principal, now: datetime) -> None:
    first = create_policy("careful", BODY, team=team, by=ann, now=now)
    second = add_version(first.policy, {**BODY, "persist": 2}, by=ann, now=now)
    assert (second.number, in_force(first.policy)) == (2, first)

    with pytest.raises(PolicyRefused) as refused:
        activate(second, by=ann, now=now, backtested=False)
    assert refused.value.code == "backtest_required"
    with pytest.raises(PolicyRefused) as refused:
        activate(second, by=ann, now=now, backtested=True)
    assert refused.value.code == "second_person_required"

    activate(second, by=person("bob"), now=now + timedelta(hours=1), backtested=True)
    assert in_force(first.policy) == second
    activate(first, by=person("cy"), now=now + timedelta(hours=2), backtested=True)
    assert in_force(first.policy) == first


def test_the_owner_of_a_key_is_the_author_of_what_it_writes(team: Team, ann: Principal, now: datetime) -> None:
    version = create_policy("careful", BODY, team=team, by=ann, now=now)
    key = Principal("key", id=1, name="dk_1", owner="ann@example.org", owner_id=ann.id)
    second = add_version(version.policy, BODY, by=key, now=now)
    with pytest.raises(PolicyRefused) as refused:
        activate(second, by=ann, now=now, backtested=True)
    assert refused.value.code == "second_person_required"


def test_a_key_without_an_owner_is_nobodys_second_person_nor_the_first(
    team: Team, ann: Principal, now: datetime
) -> None:
    nobodys = Principal("key", id=1, name="dk_1", owner="dk_1")
    another = Principal("key", id=2, name="dk_2", owner="dk_2")
    policy = create_policy("careful", BODY, team=team, by=ann, now=now).policy
    by_ann, by_nobody = (add_version(policy, BODY, by=by, now=now) for by in (ann, nobodys))
    for version, by in ((by_ann, nobodys), (by_nobody, ann), (by_nobody, another), (by_nobody, nobodys)):
        with pytest.raises(PolicyRefused) as refused:
            activate(version, by=by, now=now, backtested=True)
        assert refused.value.code == "second_person_required"
    assert activate(by_ann, by=person("bob"), now=now, backtested=True).activated_by == "bob"


def test_a_team_may_do_without_the_second_person(team: Team, ann: Principal, now: datetime) -> None:
    Team.objects.filter(pk=team.pk).update(second_person=False)
    team.refresh_from_db()
    version = add_version(create_policy("careful", BODY, team=team, by=ann, now=now).policy, BODY, by=ann, now=now)
    assert activate(version, by=ann, now=now, backtested=True).activated_by == "ann"


def test_what_lint_refuses_is_never_stored_and_shipped_ones_never_change(
    team: Team, ann: Principal, now: datetime
) -> None:
    with pytest.raises(PolicyRefused) as refused:
        create_policy("broken", {"gates": []}, team=team, by=ann, now=now)
    assert [fault.code for fault in refused.value.errors] == ["no_gates"]
    default = named("default", team)
    assert default is not None
    with pytest.raises(PolicyRefused) as refused:
        add_version(default, BODY, by=ann, now=now)
    assert refused.value.code == "shipped"
