"""A session that ends while a page is open: nothing typed is lost, and no panel of the page becomes a sign-in."""

import re
from html import unescape

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from gates.models import Decision
from tests.board.scenes import Scene
from tests.conftest import as_role

HTMX = {"HX-Request": "true", "HX-Current-URL": "http://testserver/experiments/scene-1?x=1"}


def fields(text: str) -> dict[str, str]:
    """What the hidden fields of a page would send."""
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', text)
    return {name: unescape(value) for name, value in found if name != "csrfmiddlewaretoken"}


def signed_in_again(client: Client, page: str) -> str:
    """The page that signing in leads to from one that has kept something."""
    name = {"username": "ines", "password": "open sesame 7"}
    return client.post(reverse("login"), fields(page) | name).text


def test_an_override_typed_before_the_session_ended_is_handed_back_after_signing_in(
    board: Client, scene: Scene, ines: User
) -> None:
    e = scene.experiment(action="scale", days=2)
    sent = {"action": "override", "override_to": "hold", "reason": "Not in <December>,\r\nthen yes.",
            "evidence_digest": scene.proposal(e).evidence_digest}  # fmt: skip
    board.logout()

    asked = board.post(f"/experiments/{e.key}/decision", sent)
    assert asked.status_code == 401
    assert f'action="{reverse("login")}"' in asked.text
    wrong = board.post(reverse("login"), fields(asked.text) | {"username": "ines", "password": "no"})
    back = signed_in_again(board, wrong.text)

    assert "Not in &lt;December&gt;,<br>then yes." in back
    assert fields(back) == sent
    assert not Decision.objects.exists()
    board.post(re.findall(r'action="([^"]+)"', back)[0], fields(back))
    with as_role("owner"):
        assert Decision.objects.get().reason == sent["reason"]


def test_a_form_that_was_opened_under_another_session_is_handed_back_and_a_foreign_one_is_not(
    ines: User, scene: Scene
) -> None:
    e = scene.experiment(action="scale", days=2)
    strict = Client(enforce_csrf_checks=True)
    sent = {"action": "override", "reason": "Not now", "evidence_digest": "sha256:1"}
    url = f"/experiments/{e.key}/decision"

    asked = strict.post(url, sent, headers={"Origin": "http://testserver"})
    assert asked.status_code == 401
    assert "unsent" in fields(asked.text)
    strict.force_login(ines)
    back = strict.post(url, sent, headers={"Origin": "http://testserver"})
    assert back.status_code == 403
    assert fields(back.text) == sent
    for origin in ({"Origin": "https://evil.example"}, {"Origin": "null"}, {}):
        assert "Not now" not in strict.post(url, sent, headers=origin).text
    assert (
        "open sesame 7"
        not in strict.post(
            reverse("login"), {"username": "ines", "password": "open sesame 7"}, headers={"Origin": "http://testserver"}
        ).text
    )


@pytest.mark.django_db
def test_what_an_open_page_asks_for_leads_to_the_sign_in_as_a_whole_and_back_to_the_page() -> None:
    response = Client().get("/?q=checkout", headers=HTMX)

    assert response["HX-Redirect"] == "/sign-in?next=/experiments/scene-1%3Fx%3D1"
    assert response.content == b""
    page = {"Referer": "http://testserver/sources"}
    assert Client().post("/sources/1/refresh", headers=page)["Location"] == "/sign-in?next=/sources"
    replay = Client().post("/experiments/a/evidence/b/replay", headers=HTMX)
    assert (replay["HX-Redirect"], replay.content) == (response["HX-Redirect"], b"")


@pytest.mark.django_db
def test_polls_stop_and_say_that_nothing_is_followed_any_more() -> None:
    for name in ("news", "watch"):
        response = Client().get(reverse(name), headers=HTMX)
        assert response.status_code == 286
        assert "HX-Redirect" not in response
        assert "Signed out" in response.text
        assert "hx-get" not in response.text


def test_an_address_that_takes_forms_alone_says_so_on_a_page(board: Client, scene: Scene) -> None:
    e = scene.experiment(rows=False)
    for client in (board, Client()):
        response = client.get(f"/experiments/{e.key}/decision")
        assert (response.status_code, response["Allow"]) == (405, "POST")
        assert "takes a form only" in response.text
