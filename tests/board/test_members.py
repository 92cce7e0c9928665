"""Members of a team: invited by a link that works once, given another role, removed with or without their keys."""

import re
from datetime import timedelta
from urllib.parse import quote

import pytest
from django.contrib.auth.models import User
from django.core import mail
from django.test import Client
from pytest_django import Settings

from decisioning.access.keys import create_key
from decisioning.access.models import ApiKey, Invitation, Membership, Team
from tests.board.scenes import Scene, person
from tests.conftest import as_role

ACCOUNT = {"username": "mara", "password1": "staple-9-pony", "password2": "staple-9-pony"}


@pytest.fixture
def ada(growth: Team) -> Client:
    """An admin of the team, and of nothing else."""
    client = Client()
    client.force_login(person("ada", growth, "admin"))
    return client


def invite(ada: Client, **said: str) -> str:
    """The path of a new invitation's link."""
    made = ada.post("/teams/growth", {"role": "operator", "email": ""} | said)
    assert made.status_code == 201
    (token,) = re.findall(r"/join\?with=([^<]+)</code>", made.text)
    return f"/join?with={token}"


def roles() -> dict[str, str]:
    with as_role("owner"):
        return dict(Membership.objects.values_list("user__username", "role"))


def test_a_colleague_makes_an_account_by_the_link_and_is_in_the_team(ada: Client, scene: Scene) -> None:
    scene.experiment("Only for the team", rows=False)
    link, mara = invite(ada, email="mara@example.org"), Client()
    assert link not in ada.get("/teams/growth").text, "the link is shown once"
    assert "mara@example.org" in ada.get("/teams/growth").text

    page = mara.get(link).text
    assert "ada invites you as operator" in page
    assert "Create, start, pause and stop experiments" in page
    assert "Answer proposals" not in page
    refused = mara.post(link, ACCOUNT | {"password2": "other"})
    assert (refused.status_code, "User.objects" in refused.text) == (422, False)
    board = mara.post(link, ACCOUNT, follow=True).text

    assert "You are in Growth now, as operator." in board
    assert "Only for the team" in board
    assert roles() == {"ada": "admin", "mara": "operator"}
    with as_role("owner"):
        assert User.objects.get(username="mara").email == "mara@example.org"
    assert mara.get("/teams/growth").status_code == 200
    assert "Invite somebody" not in mara.get("/teams/growth").text


def test_a_link_works_once_and_not_when_it_was_withdrawn_or_is_too_old(ada: Client, growth: Team) -> None:
    used, withdrawn, old = (invite(ada) for _ in range(3))
    assert Client().post(used, ACCOUNT).status_code == 302
    with as_role("owner"):
        _, second, third = Invitation.objects.order_by("pk")
        Invitation.objects.filter(pk=third.pk).update(expires_at=third.created_at)
    assert "leads nowhere now" in ada.post(f"/teams/growth/invitations/{second.pk}/withdraw", follow=True).text

    for link in (used, withdrawn, old, "/join?with=x", "/join", used[:-1]):
        for answer in (Client().get(link), Client().post(link, ACCOUNT | {"username": "somebody-else"})):
            assert answer.status_code == 404, link
    with as_role("owner"):
        assert not User.objects.filter(username="somebody-else").exists()


def test_who_has_an_account_comes_in_as_who_they_are(ada: Client, growth: Team, scene: Scene) -> None:
    with as_role("owner"):
        other = Team.objects.create(key="other", name="Other", created_at=scene.now)
    ines = Client()
    ines.force_login(person("ines", other))
    link = invite(ada, role="viewer")
    assert f"/sign-in?next={quote(link)}" in Client().get(link).text

    assert "Come in as ines" in ines.get(link).text
    assert "You are in Growth now, as viewer." in ines.post(link, follow=True).text

    assert roles()["ines"] in ("viewer", "approver")
    assert "You are in Growth already, as viewer." in ines.post(invite(ada, role="admin")).text
    with as_role("owner"):
        assert Membership.objects.get(user__username="ines", team=growth).role == "viewer"
        assert Invitation.objects.filter(used_at=None).count() == 1, "an invitation that took nobody in is not used up"


def test_an_invitation_goes_by_mail_where_the_installation_sends_any(ada: Client, settings: Settings) -> None:
    assert "No mail was sent" in ada.post("/teams/growth", {"role": "viewer", "email": "a@example.org"}).text
    settings.EMAIL_ON = True
    settings.MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}

    said = ada.post("/teams/growth", {"role": "viewer", "email": "b@example.org"}).text

    assert "It went to b@example.org." in said
    (sent,) = mail.outbox
    assert sent.to == ["b@example.org"]
    assert re.findall(r"/join[^<\s]+", said)[0] in sent.body


def test_a_role_is_changed_and_the_last_admin_stays(ada: Client, growth: Team, board: Client) -> None:
    with as_role("owner"):
        pks = dict(Membership.objects.values_list("user__username", "pk"))
    where = "/teams/growth/members/{}"

    assert "ines is viewer in Growth" in ada.post(where.format(pks["ines"]), {"role": "viewer"}, follow=True).text
    assert "no admin left" in ada.post(where.format(pks["ada"]), {"role": "viewer"}, follow=True).text
    assert "no admin left" in ada.post(where.format(pks["ada"]) + "/remove").text
    assert ada.post(where.format(pks["ines"]), {"role": "emperor"}).status_code == 400
    assert roles() == {"ada": "admin", "ines": "viewer"}
    for path in (where.format(pks["ada"]), where.format(pks["ada"]) + "/remove", "/teams/growth"):
        assert board.post(path, {"role": "viewer"}).status_code == 403
    ada.post(where.format(pks["ines"]), {"role": "admin"})
    assert "You are in no team yet" in ada.post(where.format(pks["ada"]) + "/remove", follow=True).text
    assert "Ask an admin of one for an invitation" in ada.get("/").text


@pytest.mark.parametrize("choice", ["keep", "revoke"])
def test_the_keys_of_who_is_removed_are_shown_and_kept_or_revoked(
    ada: Client, growth: Team, board: Client, ines: User, scene: Scene, choice: str
) -> None:
    with as_role("owner"):
        member = Membership.objects.get(user=ines)
        key, _ = create_key(growth, scopes=["telemetry:write"], owner=ines, now=scene.now)
        old, _ = create_key(
            growth, scopes=["telemetry:write"], owner=ines, now=scene.now, expires_at=scene.now - timedelta(1)
        )
    where = f"/teams/growth/members/{member.pk}/remove"

    asked = ada.get(where).text
    assert str(key) in asked
    assert str(old) not in asked
    said = ada.post(where, {"keys": choice}, follow=True).text

    assert "ines is out of Growth" in said
    assert ("and 1 key of theirs revoked" in said) is (choice == "revoke")
    assert roles() == {"ada": "admin"}
    with as_role("owner"):
        assert (ApiKey.objects.get(pk=key.pk).revoked_at is not None) is (choice == "revoke")
        assert ApiKey.objects.get(pk=old.pk).revoked_at is None
    assert board.get("/teams/growth").status_code == 404


def test_a_team_that_one_is_not_in_is_not_there(ada: Client, scene: Scene) -> None:
    with as_role("owner"):
        Team.objects.create(key="other", name="Other", created_at=scene.now)

    assert ada.get("/teams/other").status_code == 404
    assert ada.post("/teams/other", {"role": "admin", "email": ""}).status_code == 404


def test_no_log_holds_an_invitation(ada: Client, caplog: pytest.LogCaptureFixture) -> None:
    link = invite(ada)
    Client().get(link)
    Client().post(link, ACCOUNT)

    assert "/join" in caplog.text
    assert link.partition("=")[2] not in caplog.text


def test_who_came_in_and_by_whom_stands_in_the_audit(ada: Client) -> None:
    Client().post(invite(ada, email="mara@example.org"), ACCOUNT)

    shown = re.sub(r"<[^>]+>|\s+", " ", ada.get("/audit").text)

    assert "Membership made" in shown
    assert "mara in growth as operator" in shown
    assert "mara@example.org to growth as operator" in shown
    assert "staple-9-pony" not in shown


def test_an_admin_of_the_installation_finds_every_team_on_the_profile_page(growth: Team, scene: Scene) -> None:
    with as_role("owner"):
        other = Team.objects.create(key="other", name="Other", created_at=scene.now)
    root = Client()
    root.force_login(person("root", other, admin=True))

    text = root.get("/profile").text

    assert 'href="/teams/growth"' in text
    assert 'href="/teams/other"' in text
    assert "Invite somebody" in root.get("/teams/growth").text
