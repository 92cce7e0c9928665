"""What happens is told to those who asked, at least once and in order, by receivers as good or bad as they are."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.mail import EmailMessage
from django.db import connection
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from decisioning.access.models import Team
from decisioning.board import alarms as board_alarms
from decisioning.ledger import channels, delivery
from decisioning.ledger.models import Channel, Delivery, Entry, OutboxMessage
from decisioning.ledger.outbox import EVENTS, publish
from decisioning.notices import messages, transports
from tests.access.logins import psql
from tests.conftest import as_role, log_in_as
from tests.ledger.receiver import Receiver, receiving

pytestmark = pytest.mark.django_db

NOW = datetime.now(UTC).replace(microsecond=0)
CHECKOUT, SEARCH = 7, 8


@pytest.fixture(autouse=True)
def _loopback_is_allowed(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.OUTBOUND_ALLOW = ["127.0.0.0/8"]
    monkeypatch.setattr(transports, "CALL_S", 1.0)
    # A receiver refuses what was signed five minutes ago, and the run may be that old.
    monkeypatch.setitem(globals(), "NOW", datetime.now(UTC).replace(microsecond=0))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


def opened(team: Team, url: str, *events: str, kind: str = "") -> tuple[Channel, str]:
    with as_role("worker"):
        return channels.open_channel(team, url=url, events=events or list(EVENTS), by="ada", now=NOW, kind=kind)


def happened(team: Team, experiment: int | None = CHECKOUT, kind: str = "experiment.changed", **data: Any) -> str:
    """Something is told; the id its message carries."""
    said = {
        "experiment": f"e{experiment}" if experiment else None,
        "from": "draft",
        "to": "running",
        "by": "ada",
        **data,
    }
    with as_role("worker"):
        return transports.webhook_id(publish(team_id=team.pk, experiment_id=experiment, type=kind, data=said, now=NOW))


def tick(at: timedelta = timedelta(0)) -> int:
    with as_role("worker"):
        return delivery.deliver(transports.send, clock=lambda: NOW + at)


def deliveries() -> list[Delivery]:
    with as_role("worker"):
        return list(Delivery.objects.select_related("message").order_by("message_id"))


def channel() -> Channel:
    with as_role("worker"):
        return Channel.objects.get()


def test_a_message_arrives_signed_and_says_what_happened(team: Team, receiver: Receiver) -> None:
    _, secret = opened(team, receiver.url)
    sent = happened(team)
    assert tick() == 1

    (got,) = receiver.got
    told = Webhook(secret).verify(got.body, got.headers)
    assert told["type"] == "experiment.changed"
    assert told["timestamp"] == NOW.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert told["data"] == {"experiment": "e7", "from": "draft", "to": "running", "by": "ada"}
    assert got.id == sent
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(got.body.replace("running", "scaled"), got.headers)
    (done,) = deliveries()
    assert (done.state, done.attempts, done.last_status) == ("delivered", 1, 200)
    assert done.message.delivered_at == NOW
    assert tick() == 0


def test_only_those_are_told_who_asked_for_it_and_belong_to_the_team(team: Team, receiver: Receiver) -> None:
    opened(team, receiver.url, "decision.proposed")
    with as_role("owner"):
        other = Team.objects.create(key="search", name="Search", created_at=NOW)
    opened(other, receiver.url)
    happened(team)
    tick()
    assert receiver.got == []
    with as_role("worker"):
        assert OutboxMessage.objects.get().delivered_at == NOW  # it was for nobody


def test_a_receiver_that_answers_500_gets_everything_once_it_is_well_in_order_and_under_the_same_ids(
    team: Team, receiver: Receiver
) -> None:
    opened(team, receiver.url)
    first, second = happened(team), happened(team)
    third = happened(team, SEARCH)
    receiver.status = 500
    tick()
    assert receiver.ids == [first, third]  # the second waits for the first, another experiment waits for neither
    assert tick(timedelta(seconds=1)) == 0  # not yet
    tick(timedelta(minutes=2))
    assert sorted(receiver.ids) == sorted([first, third, first, third])
    assert [d.last_error for d in deliveries()] == ["It answered 500: so be it", "", "It answered 500: so be it"]

    receiver.status = 204
    receiver.got.clear()
    tick(timedelta(hours=2))
    assert sorted(receiver.ids) == sorted([first, second, third])
    assert receiver.ids.index(first) < receiver.ids.index(second)
    assert {d.state for d in deliveries()} == {"delivered"}


def test_a_receiver_that_is_down_is_asked_once_and_then_rests_as_a_whole(team: Team) -> None:
    with receiving() as server:
        port = server.server_port
    opened(team, f"http://127.0.0.1:{port}/hook")
    told = [happened(team, n) for n in (1, 2, 3)]
    assert tick() == 1
    assert tick(timedelta(seconds=1)) == 0
    assert "ConnectError" in deliveries()[0].last_error

    with receiving(port) as server:
        tick(timedelta(hours=1))
        assert sorted(server.ids) == sorted(told)
    assert channel().failures == 0


def test_a_refused_message_holds_up_its_own_experiment_alone(team: Team, receiver: Receiver) -> None:
    opened(team, receiver.url)
    happened(team)
    receiver.status = 422
    tick()
    receiver.status, later, other = 200, happened(team), happened(team, SEARCH)
    tick(timedelta(seconds=2))
    assert receiver.ids[1:] == [other]
    tick(timedelta(hours=1))
    assert receiver.ids[-1] == later


def test_a_message_is_a_dead_letter_after_three_days_and_then_the_next_one_goes(team: Team, receiver: Receiver) -> None:
    opened(team, receiver.url)
    lost, next_one = happened(team), happened(team)
    receiver.status = 500
    tick()
    tick(timedelta(days=3, minutes=1))
    assert [d.state for d in deliveries()] == ["dead", "waiting"]
    receiver.status = 200
    tick(timedelta(days=3, hours=3))
    assert [d.state for d in deliveries()] == ["dead", "delivered"]
    assert receiver.ids[-1] == next_one

    with as_role("worker"):
        channels.send_again(Delivery.objects.select_related("channel", "message").get(state="dead"), now=NOW)
    tick(timedelta(days=4))
    assert receiver.ids[-1] == lost
    assert {d.state for d in deliveries()} == {"delivered"}


def test_what_was_delivered_is_sent_again_under_its_id_when_somebody_asks(team: Team, receiver: Receiver) -> None:
    opened(team, receiver.url)
    happened(team)
    tick()
    with as_role("worker"):
        channels.send_again(Delivery.objects.select_related("channel", "message").get(), now=NOW)
    tick()
    assert len(receiver.ids) == 2
    assert len(set(receiver.ids)) == 1


def test_five_days_of_failing_turn_it_off_and_history_says_so(team: Team, receiver: Receiver) -> None:
    opened(team, receiver.url)
    receiver.status = 500
    for day in range(5):
        happened(team, day + 1)
        tick(timedelta(days=day))
    assert channel().enabled
    tick(timedelta(days=5, hours=1))

    off = channel()
    assert not off.enabled
    assert "without one success. Last: It answered 500" in off.disabled_reason
    with as_role("owner"):
        entry = Entry.objects.filter(content_type__model="channel").latest("id")
        assert (entry.actor_kind, entry.actor_name) == ("job", "notices.deliver")
        assert entry.changes["enabled"] == [True, False]
        assert receiver.url not in str(entry.changes)
    happened(team)
    calls = len(receiver.got)
    tick(timedelta(days=6))
    assert len(receiver.got) == calls


def test_one_success_in_between_keeps_it_on(team: Team, receiver: Receiver) -> None:
    opened(team, receiver.url)
    for day in range(12):
        happened(team, day + 1)
        receiver.status = 200 if day == 4 else 500
        tick(timedelta(days=day) if day < 9 else timedelta(days=8, hours=day))
    assert channel().enabled


def test_a_receiver_that_is_gone_is_turned_off_at_once_and_on_again_by_a_test_that_arrives(
    team: Team, receiver: Receiver
) -> None:
    opened(team, receiver.url)
    happened(team)
    receiver.status = 410
    tick()
    assert channel().disabled_reason == f"Its receiver answered 410 Gone on {NOW:%Y-%m-%d}."

    with as_role("worker"):
        channels.try_out(Channel.objects.get(), by="ada", now=NOW)
    tick()
    assert not channel().enabled  # the test was refused, too; it is tried once
    assert json.loads(receiver.got[-1].body)["type"] == "webhook.test"
    assert [d.state for d in deliveries()] == ["waiting", "dead"]
    receiver.status = 200
    with as_role("worker"):
        channels.try_out(Channel.objects.get(), by="ada", now=NOW)
    tick(timedelta(hours=2))
    tick(timedelta(hours=2))
    assert (channel().enabled, channel().disabled_reason) == (True, "")
    assert json.loads(receiver.got[-1].body)["type"] == "experiment.changed"  # what waited goes on


def test_redirects_are_not_followed(team: Team, receiver: Receiver) -> None:
    opened(team, receiver.url)
    happened(team)
    receiver.status, receiver.location = 307, "http://169.254.169.254/latest/meta-data/"
    tick()
    assert deliveries()[0].last_error == "It answered 307: a redirect, which is not followed"


def test_an_address_that_is_no_longer_public_is_refused_when_it_is_called(
    team: Team, receiver: Receiver, settings: Any
) -> None:
    opened(team, receiver.url)
    settings.OUTBOUND_ALLOW = []
    happened(team)
    tick()
    assert deliveries()[0].last_error.startswith("webhook_blocked: 127.0.0.1 is 127.0.0.1, a loopback")
    assert receiver.got == []


def test_a_receiver_that_answers_byte_by_byte_is_cut_off_in_time(team: Team, receiver: Receiver) -> None:
    opened(team, receiver.url)
    happened(team)
    receiver.dripping = True
    began = datetime.now(UTC)
    tick()
    assert datetime.now(UTC) - began < timedelta(seconds=4)  # it would have dripped for 20 s
    assert "Timeout" in deliveries()[0].last_error


def test_whoever_died_in_the_middle_leaves_the_message_to_the_next_under_the_same_id(
    team: Team, receiver: Receiver
) -> None:
    opened(team, receiver.url)
    sent = happened(team)
    with as_role("worker"):
        delivery.fan_out(now=NOW)
        claimed = delivery._claim(NOW, [])
        transports.send(Delivery.objects.select_related("channel", "message").get(channel=claimed), NOW)
    assert tick(timedelta(seconds=5)) == 0  # it may still be at work
    assert tick(timedelta(minutes=3)) == 1
    assert receiver.ids == [sent, sent]


def test_old_messages_are_forgotten_unless_they_wait(team: Team, receiver: Receiver) -> None:
    opened(team, receiver.url)
    happened(team)
    tick()
    receiver.status = 500
    happened(team)
    tick()
    with as_role("worker"):
        assert delivery.sweep(now=NOW + timedelta(days=29)) == 0
        assert delivery.sweep(now=NOW + timedelta(days=31)) == 2
    assert [d.state for d in deliveries()] == ["waiting"]


# Each by itself -----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_a_receiver_that_hangs_delays_its_own_queue_and_locks_nothing(
    team: Team, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transports, "CALL_S", 8.0)
    with receiving() as quick:
        opened(team, receiver.url)
        opened(team, quick.url)
        receiver.free.clear()
        sent = happened(team)
        log_in_as("worker")
        try:
            made: list[int] = []
            at_work = threading.Thread(target=lambda: made.append(_deliver_on_its_own()))
            at_work.start()
            assert receiver.arrived.wait(10)
            assert quick.arrived.wait(10)
            assert quick.ids == [sent]
            assert at_work.is_alive()  # the first receiver has said nothing yet

            later = happened(team, SEARCH)
            _deliver_on_its_own()  # the next tick
            assert quick.ids == [sent, later]
            assert receiver.ids == [sent]
            with psql("superuser") as db:
                held = db.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()"
                ).fetchone()
                assert held == (0,)
                db.execute("SET lock_timeout = '200ms'")
                db.execute("UPDATE metadata.channels SET events = events")
                db.execute("SELECT FROM audit.outbox FOR UPDATE")
            receiver.free.set()
            at_work.join()
            _deliver_on_its_own()
            assert receiver.ids == [sent, later]
        finally:
            receiver.free.set()
            log_in_as("web")


def _deliver_on_its_own() -> int:
    try:
        return delivery.deliver(transports.send, clock=lambda: datetime.now(UTC))
    finally:
        if threading.current_thread() is not threading.main_thread():
            connection.close()


# Slack and e-mail ---------------------------------------------------------------------------------------------------------


def test_slack_gets_blocks_with_a_button_to_the_board(team: Team, receiver: Receiver, settings: Any) -> None:
    settings.PUBLIC_URL = "https://decisions.example.org"
    opened(team, receiver.url, kind="slack")
    happened(
        team,
        kind="decision.proposed",
        action="scale",
        code="wins",
        variant="treatment",
        rationale=["vrps <b> & more: +4%"],
    )
    tick()
    (got,) = receiver.got
    assert "webhook-signature" not in got.headers
    said = json.loads(got.body)
    reason_and_link = "vrps &lt;b&gt; &amp; more: +4%\nhttps://decisions.example.org/experiments/e7"
    assert said["text"] == f"Scale? e7, treatment\n{reason_and_link}"
    kinds = [block["type"] for block in said["blocks"]]
    assert kinds == ["header", "section", "section", "actions", "context"]
    assert said["blocks"][1]["text"] == {"type": "mrkdwn", "text": "• vrps &lt;b&gt; &amp; more: +4%"}
    assert said["blocks"][3]["elements"][0]["url"] == "https://decisions.example.org/experiments/e7"


def test_a_picture_slack_may_not_be_able_to_fetch_is_left_out_the_second_time(team: Team, receiver: Receiver) -> None:
    opened(team, receiver.url, kind="slack")
    happened(team, kind="decision.proposed", action="scale", code="wins", rationale=[])
    receiver.status, receiver.answer = 400, b"invalid_blocks"

    def send(d: Delivery, now: datetime) -> delivery.Outcome:
        return transports.send(d, now, picture=lambda _m, _n: ("https://decisions.example.org/charts/x.png", "Uplift"))

    with as_role("worker"):
        delivery.deliver(send, clock=lambda: NOW)
        delivery.deliver(send, clock=lambda: NOW + timedelta(hours=1))
    assert deliveries()[0].last_error == "It answered 400: invalid_blocks"
    first, second = ([block["type"] for block in json.loads(got.body)["blocks"]] for got in receiver.got)
    assert "image" in first
    assert "image" not in second


def test_an_e_mail_is_sent_with_the_reasons_and_the_way_to_the_board(
    team: Team, settings: Any, mailoutbox: list[EmailMessage]
) -> None:
    settings.EMAIL_ON, settings.PUBLIC_URL = True, "https://decisions.example.org"
    settings.MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}
    opened(team, "mailto:ann@example.org")
    happened(team, kind="decision.answered", recommended="scale", action="override", override_to="hold",
             reason="Wait for the sale to end.", status="running", by="Ines")  # fmt: skip
    tick()
    (mail,) = mailoutbox
    assert (mail.subject, mail.to) == ("[Decisioning] Scale overridden to hold: e7", ["ann@example.org"])
    assert "Reason: Wait for the sale to end." in str(mail.body)
    assert "https://decisions.example.org/experiments/e7" in str(mail.body)
    assert deliveries()[0].state == "delivered"


def test_an_installation_without_a_mail_server_says_so(team: Team) -> None:
    with as_role("worker"), pytest.raises(channels.ChannelRefused, match="DECISIONING_EMAIL_URL") as refused:
        channels.open_channel(team, url="mailto:ann@example.org", events=["slo.burning"], by="ada", now=NOW)
    assert refused.value.code == "email_off"


def test_a_mail_server_that_is_down_is_a_receiver_that_is_down(team: Team, settings: Any) -> None:
    with receiving() as server:
        port = server.server_port
    settings.EMAIL_ON = True
    opened(team, "mailto:ann@example.org")
    backend = "django.core.mail.backends.smtp.EmailBackend"
    settings.MAILERS = {"default": {"BACKEND": backend, "OPTIONS": {"host": "127.0.0.1", "port": port, "timeout": 1}}}
    happened(team)
    tick()
    assert "refused" in deliveries()[0].last_error
    assert channel().next_at > NOW


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_has_words_of_its_own(event: str) -> None:
    assert (event in messages._SAID) != (event in board_alarms._SAID)


def test_a_restored_copy_tells_nobody_until_a_person_says_that_it_is_live(team: Team, receiver: Receiver) -> None:
    opened(team, receiver.url)
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("INSERT INTO access.restored (at) VALUES (now())")
    happened(team)
    assert (tick(), receiver.got) == (0, [])

    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("DELETE FROM access.restored")

    assert (tick(), len(receiver.got)) == (1, 1)
