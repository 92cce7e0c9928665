"""A key is never more than its person, nor than the key that made it, and ends with both."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client

from decisioning.access.keys import GENERATIONS, create_key
from decisioning.access.models import ApiKey, Membership, Team
from decisioning.access.scopes import ROLES, Scope
from tests.api.conftest import Caller, Makes, errors_of
from tests.conftest import as_role

OPS = "ops@example.org"


@pytest.fixture
def boss(db: None) -> Client:
    """An admin of the installation in the admin."""
    with as_role("owner"):
        person = User.objects.create_superuser("boss", "boss@example.org", "open sesame 7")
    client = Client()
    client.force_login(person)
    return client


def place_of(name: str = OPS) -> Membership:
    with as_role("owner"):
        return Membership.objects.get(user__username=name)


def child_of(maker: Caller, **said: Any) -> Caller:
    made = maker.post("/api/keys", {"scopes": list(maker_scopes(maker)), **said})
    assert made.status_code == 201, made.content
    return Caller(made.json()["key"], maker.team)


def key_of(caller: Caller) -> ApiKey:
    with as_role("owner"):
        return ApiKey.objects.get(public_id=str(caller.secret)[3:11])


def maker_scopes(maker: Caller) -> list[str]:
    return key_of(maker).scopes


@pytest.mark.parametrize("role", list(ROLES))
def test_a_key_may_do_what_its_owners_role_holds_now(ops: Caller, role: str) -> None:
    assert ops.get("/api/keys").status_code == 200
    with as_role("owner"):
        Membership.objects.filter(user__username=OPS).update(role=role)

    held = ROLES[role]
    assert ops.get("/api/experiments").status_code == 200
    assert ops.get("/api/keys").status_code == (200 if Scope.KEYS in held else 403)
    made = ops.post("/api/experiments", {"name": "x", "hypothesis": "y", "target_kpis": []})
    assert (made.status_code == 403) is (Scope.WRITE not in held)


def test_a_role_that_grows_does_not_widen_a_key(caller: Makes) -> None:
    narrow = caller("growth", Scope.READ, owner=OPS)
    assert narrow.get("/api/keys").status_code == 403


def removed(boss: Client) -> None:
    boss.post(f"/admin/access/membership/{place_of().pk}/delete/", {"post": "yes"})


def removed_in_sql(_boss: Client) -> None:
    with as_role("owner"):
        Membership.objects.filter(user__username=OPS).delete()


def moved_to_another_team(_boss: Client) -> None:
    with as_role("owner"):
        other = Team.objects.create(key="elsewhere", name="Elsewhere", created_at=datetime.now(UTC))
        Membership.objects.filter(user__username=OPS).update(team=other)


def deactivated(_boss: Client) -> None:
    with as_role("owner"):
        User.objects.filter(username=OPS).update(is_active=False)


def deleted(_boss: Client) -> None:
    with as_role("owner"):
        User.objects.get(username=OPS).delete()


@pytest.mark.parametrize("leave", [removed, removed_in_sql, moved_to_another_team, deactivated, deleted])
def test_a_leavers_keys_end_and_those_they_made_and_stay_ended(ops: Caller, boss: Client, leave: Any) -> None:
    child = child_of(ops)
    grandchild = child_of(child)
    assert grandchild.get("/api/experiments").status_code == 200

    leave(boss)

    assert [c.get("/api/experiments").status_code for c in (ops, child, grandchild)] == [401, 401, 401]
    with as_role("owner"):
        assert not ApiKey.objects.filter(revoked_at__isnull=True).exists()
        back, _ = User.objects.get_or_create(username=OPS)
        User.objects.filter(pk=back.pk).update(is_active=True)
        Membership.objects.get_or_create(team=ops.team, user=back, defaults={"role": "admin"})
    assert ops.get("/api/experiments").status_code == 401


def test_an_admin_of_the_installation_who_is_none_any_more_keeps_no_key_where_he_is_no_member(ops: Caller) -> None:
    with as_role("owner"):
        root = User.objects.create_superuser("root")
        _, secret = create_key(ops.team, scopes=list(Scope), owner=root, now=datetime.now(UTC))
    program = Caller(secret, ops.team)
    assert program.get("/api/keys").status_code == 200
    with as_role("owner"):
        User.objects.filter(pk=root.pk).update(is_superuser=False)
    assert program.get("/api/keys").status_code == 401


def test_a_key_from_before_whose_owner_is_in_no_team_is_refused_and_listed_so(ops: Caller, caller: Makes) -> None:
    with as_role("owner"):
        stray = User.objects.create(username="stray")
        old, secret = create_key(ops.team, scopes=["experiments:read"], now=datetime.now(UTC))
        ApiKey.objects.filter(pk=old.pk).update(owner=stray)
    assert Caller(secret, ops.team).get("/api/experiments").status_code == 401
    told = ops.get(f"/api/keys/{old.public_id}").json()
    assert told["revoked_at"] is None
    assert "not active in its team" in told["problem"]


def test_the_admin_lists_a_leavers_keys_before_and_after_he_is_removed(ops: Caller, boss: Client) -> None:
    child = child_of(ops)
    place, names = place_of(), {str(key_of(c)) for c in (ops, child)}

    asked = boss.get(f"/admin/access/membership/{place.pk}/delete/").text
    done = boss.post(f"/admin/access/membership/{place.pk}/delete/", {"post": "yes"}, follow=True).text

    for name in names:
        assert f"{name} of {OPS} in growth ends" in asked
        assert f"{name} in growth" in done
    assert "These keys have ended" in done


def test_the_admin_lists_the_keys_of_who_is_taken_out_of_the_teams_own_page(ops: Caller, boss: Client) -> None:
    place = place_of()
    form = {
        "key": "growth", "name": "Growth", "answer_within_h": "24", "second_person": "on",
        "memberships-TOTAL_FORMS": "1", "memberships-INITIAL_FORMS": "1",
        "memberships-0-id": place.pk, "memberships-0-team": ops.team.pk, "memberships-0-user": place.user_id,
        "memberships-0-role": "admin", "memberships-0-DELETE": "on",
    }  # fmt: skip
    done = boss.post(f"/admin/access/team/{ops.team.pk}/change/", form, follow=True).text
    assert f"These keys have ended: {key_of(ops)} in growth" in done


def test_a_key_makes_none_that_holds_what_it_does_not(ops: Caller, caller: Makes) -> None:
    maker = caller("growth", Scope.READ, Scope.KEYS, owner=OPS)
    refused = maker.post("/api/keys", {"scopes": ["experiments:read", "decisions:review"]})
    assert (refused.status_code, errors_of(refused)) == (422, [("/scopes/1", "scope_not_held")])


def test_a_key_makes_none_that_outlives_it(caller: Makes) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    maker = caller("growth", owner=OPS, expires_at=end)

    later = maker.post(
        "/api/keys", {"scopes": ["experiments:read"], "expires_at": (end + timedelta(seconds=1)).isoformat()}
    )
    unsaid = maker.post("/api/keys", {"scopes": ["experiments:read"]})
    sooner = maker.post("/api/keys", {"scopes": ["experiments:read"], "expires_at": end.isoformat()})

    assert (later.status_code, errors_of(later)) == (422, [("/expires_at", "outlives_maker")])
    assert unsaid.json()["expires_at"] == sooner.json()["expires_at"]
    assert key_of(Caller(unsaid.json()["key"], maker.team)).expires_at == end


@pytest.mark.parametrize("rate", ["41/m", "1/s", "2400/h", "7/10s"])
def test_a_key_makes_none_that_is_faster(caller: Makes, rate: str) -> None:
    maker = caller("growth", owner=OPS, rate="40/m")
    refused = maker.post("/api/keys", {"scopes": ["experiments:read"], "rate": rate})
    assert (refused.status_code, errors_of(refused)) == (422, [("/rate", "faster_than_maker")])


def test_a_key_without_a_rate_makes_none_faster_than_the_default(ops: Caller, settings: Any) -> None:
    settings.KEY_RATE = "600/m"
    assert errors_of(ops.post("/api/keys", {"scopes": ["experiments:read"], "rate": "601/m"})) == [
        ("/rate", "faster_than_maker")
    ]


def test_many_keys_made_by_one_are_together_no_faster_than_that_one(caller: Makes) -> None:
    maker = caller("growth", owner=OPS, rate="12/h")
    children = [child_of(maker) for _ in range(3)]  # 3 of the 12
    assert {key_of(child).rate for child in children} == {"12/h"}

    answers = [child.get("/api/experiments").status_code for child in children for _ in range(4)]

    assert answers.count(200) == 9
    assert answers.count(429) == 3
    assert maker.get("/api/experiments").status_code == 429


def test_a_key_shows_which_key_made_it_and_ends_with_it(ops: Caller, boss: Client) -> None:
    child = child_of(ops)
    grandchild = child_of(child)
    assert ops.get(f"/api/keys/{key_of(child).public_id}").json()["made_by"] == str(key_of(ops))
    assert f"made by <code>{key_of(ops)}</code>" in boss.get("/keys").text
    assert str(key_of(ops)) in boss.get("/keys.csv").text.splitlines()[1] + boss.get("/keys.csv").text.splitlines()[2]

    ops.delete(f"/api/keys/{key_of(child).public_id}")

    assert child.get("/api/experiments").status_code == 401
    assert grandchild.get("/api/experiments").status_code == 401
    assert ops.get("/api/experiments").status_code == 200
    assert key_of(grandchild).revoked_at is not None


def test_keys_that_come_from_keys_come_to_an_end(ops: Caller) -> None:
    newest = ops
    for _ in range(GENERATIONS):
        newest = child_of(newest)
    refused = newest.post("/api/keys", {"scopes": ["experiments:read"]})
    assert (refused.status_code, errors_of(refused)) == (422, [("", "too_many_makers")])


def test_a_key_whose_maker_has_expired_is_refused(caller: Makes) -> None:
    maker = caller("growth", owner=OPS, expires_at=datetime.now(UTC) + timedelta(hours=1))
    child = child_of(maker)
    with as_role("owner"):
        ApiKey.objects.filter(pk=key_of(maker).pk).update(expires_at=datetime.now(UTC) - timedelta(seconds=1))
    assert child.get("/api/experiments").status_code == 401


def test_the_terminal_makes_a_persons_key_by_the_same_rules(ops: Caller, capsys: pytest.CaptureFixture[str]) -> None:
    with as_role("owner"):
        Membership.objects.filter(user__username=OPS).update(role="viewer")
        call_command("create_key", team="growth", scopes="experiments:read", owner=OPS)
        secret = capsys.readouterr().out.splitlines()[-1]
        with pytest.raises(CommandError, match="do not hold experiments:write"):
            call_command("create_key", team="growth", scopes="experiments:write", owner=OPS)
        User.objects.create(username="stray")
        with pytest.raises(CommandError, match="not active in growth"):
            call_command("create_key", team="growth", scopes="experiments:read", owner="stray")
    assert Caller(secret, ops.team).get("/api/experiments").status_code == 200


def test_a_restored_copy_takes_no_key_made_before_until_a_person_says_that_it_is_live(ops: Caller) -> None:
    now = datetime.now(UTC)
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("INSERT INTO access.restored (at) VALUES (%s)", [now])
        _, secret = create_key(ops.team, scopes=["experiments:read", "keys:manage"], now=now + timedelta(seconds=1))
    new = Caller(secret, ops.team)

    refused = ops.get("/api/experiments")
    assert refused.status_code == 401
    assert "restored copy" in refused.json()["detail"]
    assert new.get("/api/experiments").status_code == 200
    told = [key["problem"] for key in new.get("/api/keys").json()["results"]]
    assert sorted("restored copy" in (problem or "") for problem in told) == [False, True]

    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("DELETE FROM access.restored")
    assert ops.get("/api/experiments").status_code == 200
