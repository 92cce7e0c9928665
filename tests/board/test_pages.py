"""Every page answers a person of the team, and only them."""

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from tests.board.scenes import Scene

PAGES = [
    "board",
    "experiment_new",
    "freshness",
    "refresh_log",
    "promises",
    "policies",
    "audit",
    "profile",
    "password_change",
]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_there_with_nothing_in_the_portal_yet(board: Client, name: str) -> None:
    response = board.get(reverse(name))

    assert response.status_code == 200, response.content
    assert "<h1" in response.text


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_there_with_experiments_in_every_state(board: Client, scene: Scene, name: str) -> None:
    scene.proposal(scene.experiment(action="scale", code="wins"))
    scene.experiment("Loyalty points", status="paused")
    scene.experiment("Handover summary", status="draft")
    scene.experiment("Free returns", status="stopped")

    assert board.get(reverse(name)).status_code == 200


@pytest.mark.parametrize("name", PAGES)
def test_who_is_not_signed_in_is_asked_to_and_comes_back_to_the_page(scene: Scene, name: str) -> None:
    response = Client().get(reverse(name))

    assert response.status_code == 302
    assert response.url == f"{reverse('login')}?next={reverse(name)}"


def test_signing_in_leads_to_the_page_that_was_asked_for(ines: User) -> None:
    client = Client()
    response = client.post(reverse("login"), {"username": "ines", "password": "open sesame 7", "next": "/audit"})

    assert (response.status_code, response.url) == (302, "/audit")
    assert client.get("/audit").status_code == 200
