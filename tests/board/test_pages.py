"""Every page answers a person of the team, and only them."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.urls import reverse

from decisioning.board import words
from decisioning.board.presenters.board import page as board_page
from gates.models import Cursor, Evaluation, PolicyVersion
from tests.board.scenes import HOUR, Scene
from tests.conftest import as_role

PAGES = ["board", "experiment_new", "freshness", "refresh_log", "sources", "quarantine", "promises", "policies", "audit", "profile",
         "password_change"]  # fmt: skip


def test_every_page_is_there_with_nothing_in_the_portal_yet(board: Client) -> None:
    for name in PAGES:
        response = board.get(reverse(name))
        assert response.status_code == 200, name
        assert "<h1" in response.text, name


def test_every_page_is_there_with_experiments_in_every_state(board: Client, scene: Scene) -> None:
    scene.proposal(scene.experiment(action="scale", code="wins", days=3))
    scene.experiment("Loyalty points", status="paused", days=1)
    scene.experiment("Handover summary", status="draft")
    scene.experiment("Free returns", status="stopped", days=1)
    scene.experiment("Two arms", days=1, treatments=("qr", "nfc"))

    for name in PAGES:
        assert board.get(reverse(name)).status_code == 200, name
    for number in range(1, 6):
        for page in ("experiment", "report"):
            assert board.get(reverse(page, args=[f"scene-{number}"])).status_code == 200, (page, number)


def test_the_promises_show_both_clocks_of_a_decision(board: Client, scene: Scene) -> None:
    scene.proposal(scene.experiment(action="scale", code="wins", days=3), ago=6 * HOUR)
    scene.experiment("Still open", code="open", days=3)

    page = board.get(reverse("promises")).text.replace("\xa0", " ")

    assert "30 min</span>" in page, "from the stable read"
    assert "median 1.1 days to a proposal, p95 1.3, of 2 experiments, 1 of them not proposed yet" in page.replace(
        "\xa0", " "
    )


def test_the_evidence_line_names_the_slot_that_the_evidence_proves_and_not_the_newest_judged(
    board: Client, scene: Scene
) -> None:
    e = scene.experiment(rows=False)
    digest, slot = "sha256:" + "a" * 64, scene.now - 5 * HOUR
    with as_role("owner"):
        cursor = Cursor.objects.get(experiment=e)
        cursor.shown = (cursor.shown or {}) | {
            "recommendation": (cursor.shown or {})["recommendation"] | {"evidence_digest": digest}
        }
        cursor.save()
        Evaluation.objects.create(
            experiment=e, team=scene.team, slot=slot, fold=1, computed_at=slot, action="hold", code="open", found={},
            evidence_digest=digest, policy_version=PolicyVersion.objects.get(policy__name="default", number=1),
        )  # fmt: skip

    page = board.get(f"/experiments/{e.key}").text

    assert f"<span>as of slot {words.instant(slot, scene.now)}</span>" in page
    assert f"<dt>Of the slot</dt><dd>{words.instant(slot, scene.now)}</dd>" in page


def test_an_effect_that_drifts_says_so_beside_its_interval(board: Client, scene: Scene) -> None:
    e = scene.experiment(rows=False)
    assert "drifts" not in board.get(f"/experiments/{e.key}").text

    with as_role("owner"):
        cursor = Cursor.objects.get(experiment=e)
        (goal, *others) = (cursor.shown or {})["gates"]
        goal["limits"]["drift"] = True
        goal["reading"] |= {"running_lower": 0.05, "running_upper": 0.03}
        cursor.shown = (cursor.shown or {}) | {"gates": [goal, *others]}
        cursor.save()

    page = board.get(f"/experiments/{e.key}").text
    assert "[+1%, +7%], drifts" in page
    assert "what earlier looks proved and what is read now exclude each other" in page
    assert "[+1%, +7%], drifts" in board.get("/").text


def test_a_figure_with_rows_newer_than_what_the_gates_have_read_says_that_they_are_not_judged_yet(
    board: Client, scene: Scene
) -> None:
    e = scene.experiment(days=2)
    assert "not judged yet" not in board.get(f"/experiments/{e.key}").text

    with as_role("owner"):
        cursor = Cursor.objects.get(experiment=e)
        (goal, *others) = (cursor.shown or {})["gates"]
        goal["reading"]["at"] = (scene.now - 3 * HOUR).isoformat()
        cursor.shown = (cursor.shown or {}) | {"gates": [goal, *others]}
        cursor.save()

    assert board.get(f"/experiments/{e.key}").text.count("not judged yet") == 2, "control and treatment of the goal"


def test_the_promises_list_calm_holds_with_units_and_date_apart_from_what_blocks_others(
    board: Client, scene: Scene
) -> None:
    calm, sparse = (scene.experiment(name, days=9, rows=False) for name in ("Calm", "Sparse"))
    with as_role("owner"):
        for e, verdict in ((calm, "pass"), (sparse, "inconclusive")):
            cursor = Cursor.objects.get(experiment=e)
            for gate in (cursor.shown or {})["gates"]:
                gate["limits"] |= {"units_per_day": 1000.0} if gate["kind"] == "uplift" else {}
                gate["verdict"] = verdict if gate["kind"] == "density" else gate["verdict"]
            cursor.save()
            judged_to = cursor.judged_to or scene.now

    page = board.get(reverse("promises")).text.replace("\xa0", " ")

    blocked, _, held = page.partition("Held calmly")
    assert "Buckets are missing" in blocked
    assert f'<a href="/experiments/{sparse.key}">Sparse</a>' in blocked
    assert "Sparse" not in held
    about = judged_to + timedelta(days=3.2)
    assert "3,200</td>" in held
    assert f"{about.day} {about:%b %Y}</td>" in held


@pytest.mark.django_db
def test_who_is_not_signed_in_is_asked_to_and_comes_back_to_the_page() -> None:
    for name in PAGES:
        response = Client().get(reverse(name))
        assert (response.status_code, response["Location"]) == (302, f"{reverse('login')}?next={reverse(name)}"), name


def test_signing_in_leads_to_the_page_that_was_asked_for(ines: User) -> None:
    client = Client()
    response = client.post(reverse("login"), {"username": "ines", "password": "open sesame 7", "next": "/audit"})

    assert (response.status_code, response["Location"]) == (302, "/audit")
    assert client.get("/audit").status_code == 200


def test_a_wrong_password_says_so_and_keeps_the_name(ines: User) -> None:
    response = Client().post(reverse("login"), {"username": "ines", "password": "close sesame"})

    assert response.status_code == 200
    assert 'role="alert"' in response.text
    assert 'value="ines"' in response.text


def test_no_page_carries_style_or_script_of_its_own(board: Client, scene: Scene) -> None:
    scene.proposal(scene.experiment(action="scale", code="wins", days=2))

    for path in ("/", "/experiments/scene-1", "/freshness", "/audit", "/new"):
        response = board.get(path)
        assert " style=" not in response.text
        assert "<style" not in response.text
        assert all("src=" in tag[:200] for tag in response.text.split("<script")[1:])
        assert "script-src 'self'" in response["Content-Security-Policy"]
        assert "unsafe" not in response["Content-Security-Policy"]


def test_an_address_that_nobody_knows_gets_the_portals_own_page(board: Client) -> None:
    response = board.get("/nowhere")

    assert response.status_code == 404
    assert "There is nothing here" in response.text


def test_a_fault_of_the_portal_shows_the_number_it_was_logged_under(
    ines: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client(raise_request_exception=False)
    client.force_login(ines)
    monkeypatch.setattr(board_page, "board", lambda *_args, **_named: 1 / 0)

    response = client.get("/")

    assert response.status_code == 500
    assert f"<code>{response['X-Request-ID']}</code>" in response.text
    assert "ZeroDivisionError" in caplog.text
    assert "ZeroDivisionError" not in response.text


def test_every_page_of_a_restored_copy_says_that_it_is_one(board: Client) -> None:
    assert "restored from a backup" not in board.get(reverse("board")).text
    with as_role("owner"), connection.cursor() as cursor:
        cursor.execute("INSERT INTO access.restored (at) VALUES (now())")
    for page in (reverse("board"), reverse("audit"), reverse("profile")):
        assert "This is a copy, restored from a backup at" in board.get(page).text
