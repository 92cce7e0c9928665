"""People add, try and delete webhooks on the board, and see what became of each message."""

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.test import Client
from PIL import Image

from decisioning.access import outbound
from decisioning.access.models import Team
from decisioning.board import snapshots
from decisioning.ledger import delivery
from decisioning.ledger.models import Channel, Delivery
from decisioning.ledger.outbox import publish
from decisioning.notices import transports
from tests.board.scenes import Scene, person
from tests.conftest import as_role
from tests.ledger.receiver import Receiver, receiving


@pytest.fixture
def admin(growth: Team) -> Client:
    client = Client()
    client.force_login(person("ada", growth, "admin"))
    return client


@pytest.fixture
def receiver(settings: Any) -> Iterator[Receiver]:
    settings.OUTBOUND_ALLOW = ["127.0.0.0/8"]
    with receiving() as server:
        yield server


def add(admin: Client, growth: Team, url: str, **said: Any) -> Any:
    return admin.post("/webhooks", {"team": growth.pk, "url": url, "kind": "", "events": ["decision.proposed"], **said})


def channel() -> Channel:
    with as_role("worker"):
        return Channel.objects.get()


def tick() -> None:
    with as_role("worker"):
        delivery.deliver(transports.send, clock=lambda: datetime.now(UTC))


def test_a_webhook_is_added_tried_and_deleted(admin: Client, growth: Team, receiver: Receiver) -> None:
    assert "Nobody is told yet" in admin.get("/webhooks").text
    made = add(admin, growth, receiver.url)
    assert made.status_code == 201
    secret = made.text.split("whsec_")[1].split("<")[0]
    assert secret not in admin.get("/webhooks").text

    page = f"/webhooks/{channel().pk}"
    assert "Nothing was sent yet" in admin.get(page).text
    assert "A test is on its way" in admin.post(f"{page}/test", follow=True).text
    tick()
    shown = admin.get(page).text
    assert "webhook.test" in shown
    assert "Delivered" in shown
    with as_role("worker"):
        sent = Delivery.objects.get()
    assert "on its way again" in admin.post(f"{page}/deliveries/{sent.pk}/again", follow=True).text
    tick()
    assert len(receiver.got) == 2
    assert "No delivery matches" in admin.get(f"{page}?state=dead").text

    assert "What waits in its queue is dropped" in admin.get(f"{page}/delete").text
    assert "is deleted" in admin.post(f"{page}/delete", follow=True).text
    assert admin.get(page).status_code == 404


def test_an_address_inside_the_house_is_refused_beside_its_field(admin: Client, growth: Team) -> None:
    refused = add(admin, growth, "http://169.254.169.254/latest")
    assert refused.status_code == 422
    assert "a loopback, link-local, private or reserved address" in refused.text
    assert 'value="http://169.254.169.254/latest"' in refused.text
    assert add(admin, growth, "https://example.org", events=[]).status_code == 422


def test_who_can_mend_it_is_told_on_every_page_that_one_was_turned_off(
    admin: Client, board: Client, growth: Team, receiver: Receiver
) -> None:
    add(admin, growth, receiver.url)
    receiver.status = 410
    with as_role("worker"):
        publish(team_id=growth.pk, experiment_id=None, type="decision.proposed", data={}, now=datetime.now(UTC))
    assert "was turned off" not in admin.get("/").text
    tick()
    assert "was turned off. Its receiver answered 410 Gone" in admin.get("/").text
    assert "A test that arrives turns it on again" in admin.get(f"/webhooks/{channel().pk}").text
    assert "was turned off" not in board.get("/").text
    assert board.get("/webhooks").status_code == 403


def test_a_proposal_in_slack_shows_its_uplift_to_whoever_has_the_address(
    scene: Scene, admin: Client, growth: Team, receiver: Receiver, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.PUBLIC_URL = "https://decisions.example.org"
    monkeypatch.setattr(outbound, "is_public", lambda _url: True)
    proposed = scene.experiment(action="scale", code="wins", days=5)
    add(admin, growth, receiver.url, kind="slack")
    told = {
        "experiment": proposed.key,
        "variant": "treatment",
        "action": "scale",
        "code": "wins",
        "rationale": ["It wins."],
    }
    with as_role("worker"):
        publish(
            team_id=growth.pk, experiment_id=proposed.pk, type="decision.proposed", data=told, now=datetime.now(UTC)
        )
        delivery.deliver(partial(transports.send, picture=snapshots.of_message), clock=lambda: datetime.now(UTC))

    (image,) = [block for block in json.loads(receiver.got[0].body)["blocks"] if block["type"] == "image"]
    assert image["alt_text"].startswith(f"Uplift of {proposed.key}: +")
    assert len(image["image_url"]) < 3000
    path = image["image_url"].removeprefix("https://decisions.example.org")
    answer = Client().get(path)
    assert (answer.status_code, answer["Content-Type"]) == (200, "image/png")
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.size == (720, 280)
        assert len(picture.getcolors(100_000) or []) > 20  # something is drawn
    assert Client().get(path.replace("/charts/", "/charts/x")).status_code == 404
    monkeypatch.setattr("time.time", lambda: (datetime.now(UTC) + timedelta(days=31)).timestamp())
    assert Client().get(path).status_code == 404
