"""Answering on the experiment's page: bound to the evidence that was seen, once, with a reason where one is due."""

from django.test import Client

from decisioning.access.models import Team
from experiments.models import Experiment, Variant
from gates.models import Cursor, Decision, PolicyVersion
from tests.board.scenes import HOUR, Scene, person
from tests.conftest import as_role

HTMX = {"HX-Request": "true"}


def status_of(e: Experiment) -> str:
    with as_role("owner"):
        return Experiment.objects.get(pk=e.pk).status


def answers() -> int:
    with as_role("owner"):
        return Decision.objects.count()


def test_accepting_scales_and_the_page_tells_who_it_was(board: Client, scene: Scene) -> None:
    e = scene.experiment(action="scale", days=2)
    r = scene.proposal(e)
    assert r.evidence_digest in board.get(f"/experiments/{e.key}").text

    response = board.post(
        f"/experiments/{e.key}/decision", {"action": "accept", "evidence_digest": r.evidence_digest}, follow=True
    )

    assert "Scaled, accepted" in response.text
    assert "by ines" in response.text
    assert status_of(e) == "scaled"


def test_an_override_without_a_reason_is_refused_in_place_and_keeps_what_was_chosen(
    board: Client, scene: Scene
) -> None:
    e = scene.experiment(action="scale", days=2)
    r = scene.proposal(e)
    sent = {"action": "override", "override_to": "hold", "reason": "  ", "evidence_digest": r.evidence_digest}

    for headers in ({}, HTMX):
        response = board.post(f"/experiments/{e.key}/decision", sent, headers=headers)
        assert response.status_code == 422
        assert "Say why you decide otherwise" in response.text
        assert 'value="override" checked' in response.text
        assert '<option value="hold" selected>' in response.text
    assert answers() == 0
    assert status_of(e) == "running"


def test_an_override_with_a_reason_does_what_was_chosen(board: Client, scene: Scene) -> None:
    e = scene.experiment(action="scale", days=2)
    r = scene.proposal(e)
    sent = {
        "action": "override",
        "override_to": "delete",
        "reason": "Stations are full",
        "evidence_digest": r.evidence_digest,
    }

    board.post(f"/experiments/{e.key}/decision", sent)

    text = board.get(f"/experiments/{e.key}").text
    assert status_of(e) == "deleted"
    assert "Deleted, overridden" in text
    assert "Stations are full" in text


def test_of_two_people_the_second_is_told_and_nothing_is_recorded_twice(
    board: Client, scene: Scene, growth: Team
) -> None:
    e = scene.experiment(action="scale", days=2)
    r = scene.proposal(e)
    mei = Client()
    mei.force_login(person("mei", growth))
    sent = {"action": "accept", "evidence_digest": r.evidence_digest}

    board.post(f"/experiments/{e.key}/decision", sent)
    second = mei.post(f"/experiments/{e.key}/decision", sent)

    assert second.status_code == 409
    assert "Somebody has answered already" in second.text
    assert "ines answered this recommendation" in second.text
    assert answers() == 1


def test_an_answer_on_evidence_that_was_replaced_shows_the_newer_recommendation(board: Client, scene: Scene) -> None:
    e = scene.experiment(action="delete", code="harm", days=2)
    newer = scene.proposal(e, "delete", "harm")
    sent = {"action": "accept", "evidence_digest": "sha256:" + "0" * 64}

    for headers in ({}, HTMX):
        response = board.post(f"/experiments/{e.key}/decision", sent, headers=headers)
        assert response.status_code == 409
        assert "A newer recommendation replaced the one you saw" in response.text
        assert newer.evidence_digest in response.text
    assert answers() == 0


def test_while_the_inputs_are_dead_there_is_no_form_and_no_way_around_it(board: Client, scene: Scene) -> None:
    e = scene.experiment(action="scale", days=2)
    r = scene.proposal(e)
    scene.suspend(e)

    page = board.get(f"/experiments/{e.key}").text
    assert "evidence_digest" not in page
    assert "Its inputs are late" in page
    response = board.post(f"/experiments/{e.key}/decision", {"action": "accept", "evidence_digest": r.evidence_digest})
    assert response.status_code == 409
    assert status_of(e) == "running"


def test_a_proposal_whose_rows_were_restated_says_so_and_not_that_its_inputs_are_late(
    board: Client, scene: Scene
) -> None:
    e = scene.experiment(action="scale", days=2)
    scene.proposal(e)
    scene.suspend(e, "vrps of control was restated after the proposal.", late=False)

    page, listed = board.get(f"/experiments/{e.key}").text, board.get("/").text

    assert "vrps of control was restated after the proposal." in page
    assert "What it rests on changed" in page
    assert "inputs are late" not in page
    assert "vrps of control was restated" in listed
    assert "when data is back" not in listed


def test_a_suspended_variant_shows_what_blocks_it_and_not_what_blocks_another(board: Client, scene: Scene) -> None:
    e = scene.experiment(action="delete", days=2, treatments=("a", "b"))
    r = scene.proposal(e, "delete", "harm", variant="a")
    with as_role("owner"):
        cursor = Cursor.objects.get(experiment=e)
        mine = {"variant": "a", "action": "delete", "code": "harm", "state": "suspended",
                "blockers": ["vrps of a was restated."], "evidence_digest": r.evidence_digest}  # fmt: skip
        told = (cursor.shown or {})["recommendation"] | {
            "evidence_digest": None,
            "blockers": ["vrps of b has no rows."],
        }
        cursor.shown = (cursor.shown or {}) | {"variants": [mine], "recommendation": told}
        cursor.save()

    page = board.get(f"/experiments/{e.key}").text

    assert "vrps of a was restated." in page
    assert "vrps of b has no rows." not in page


def test_what_cannot_be_judged_says_why_and_is_not_answered(board: Client, scene: Scene) -> None:
    e, held = scene.experiment(action="scale", days=2), scene.experiment("Another one", days=2)
    r = scene.proposal(e)
    why = "It cannot be judged. A row of vrps of treatment has the value 1e+200."
    for one in (e, held):
        scene.break_judging(one, why)

    page, listed = board.get(f"/experiments/{e.key}").text, board.get("/").text
    assert page.count(why) >= 2, "in the note on top, and beside the proposal"
    assert "It cannot be judged just now, so it cannot be answered." in page
    assert "Suspended" in page
    assert 'value="accept"' not in page
    assert "Scale, suspended" in listed
    assert "Hold, cannot be judged" in listed
    assert why in listed
    assert why in board.get(f"/experiments/{held.key}").text
    sent = {"action": "accept", "evidence_digest": r.evidence_digest}
    refused = board.post(f"/experiments/{e.key}/decision", sent, follow=True)
    assert why in refused.text
    assert status_of(e) == "running"


def test_a_page_whose_plan_or_policy_cannot_be_read_is_shown_and_says_so(board: Client, scene: Scene) -> None:
    e, other = scene.experiment(action="scale", days=2), scene.experiment("Another one", days=2)
    scene.proposal(e)
    scene.break_judging(e, "It cannot be judged. A plan cannot be read.")
    with as_role("owner"):
        Variant.objects.filter(experiment=e, key="treatment").update(weight=float("nan"))
        PolicyVersion.objects.filter(policy__name="default").update(body={"gates": 7})

    assert "It cannot be judged. A plan cannot be read." in board.get("/").text
    assert "It cannot be judged. A plan cannot be read." in board.get(f"/experiments/{e.key}").text
    assert board.get(f"/experiments/{other.key}").status_code == 200


def test_a_viewer_reads_and_does_not_decide(scene: Scene, growth: Team) -> None:
    e = scene.experiment(action="scale", days=2)
    r = scene.proposal(e)
    viewer = Client()
    viewer.force_login(person("vic", growth, "viewer"))

    text = viewer.get(f"/experiments/{e.key}").text
    assert "Waits for an approver" in text
    assert 'name="action"' not in text
    sent = {"action": "accept", "evidence_digest": r.evidence_digest}
    assert viewer.post(f"/experiments/{e.key}/decision", sent).status_code == 403
    assert viewer.post(f"/experiments/{e.key}/to/stopped").status_code == 403
    assert viewer.get("/new").status_code == 403
    assert answers() == 0


def test_a_split_that_is_wrong_takes_the_effect_its_trust(board: Client, scene: Scene) -> None:
    e = scene.experiment(action="review", code="invalid", days=2)
    scene.proposal(e, "review", "invalid")

    text = board.get(f"/experiments/{e.key}").text

    assert "not trusted" in text
    assert "the split is wrong" in text


def test_pausing_asks_first_and_a_refused_move_says_what_is_allowed(board: Client, scene: Scene) -> None:
    e = scene.experiment(rows=False)

    assert "Pause One-page checkout?" in board.get(f"/experiments/{e.key}/to/paused").text
    assert status_of(e) == "running"
    board.post(f"/experiments/{e.key}/to/paused")
    assert status_of(e) == "paused"
    refused = board.post(f"/experiments/{e.key}/to/paused")
    assert refused.status_code == 409
    assert "It may become running, stopped" in refused.text


def test_an_override_that_is_not_chosen_yet_is_nothing_and_says_all_it_lacks(board: Client, scene: Scene) -> None:
    e = scene.experiment(action="scale", days=2)
    r = scene.proposal(e)
    assert '<option value="" selected>Choose what is done instead</option>' in board.get(f"/experiments/{e.key}").text

    sent = {"action": "override", "override_to": "", "reason": "", "evidence_digest": r.evidence_digest}
    refused = board.post(f"/experiments/{e.key}/decision", sent)

    assert refused.status_code == 422
    assert "Choose what is done instead." in refused.text
    assert "Say why you decide otherwise" in refused.text
    assert "&#x27;&#x27;" not in refused.text
    assert "Say why" not in board.post(f"/experiments/{e.key}/decision", sent | {"reason": "Stations are full"}).text
    assert answers() == 0


def test_a_note_goes_with_an_accepted_proposal_and_the_next_one_is_offered(board: Client, scene: Scene) -> None:
    e = scene.experiment("First", action="scale", days=2)
    r = scene.proposal(e, ago=20 * HOUR)
    later, sooner = (scene.experiment(name, action="scale", rows=False) for name in ("Later", "Sooner"))
    scene.proposal(later, ago=HOUR)
    scene.proposal(sooner, ago=9 * HOUR)
    sent = {"action": "accept", "reason": " As we hoped ", "evidence_digest": r.evidence_digest}

    page = board.post(f"/experiments/{e.key}/decision", sent, follow=True).text

    assert "Accepted: scale. First is scaled." in page
    assert f'Next of 2: <a href="/experiments/{sooner.key}#decide">Sooner</a>' in page
    assert "“As we hoped”" in page
    assert "“As we hoped”" in board.get("/").text
    with as_role("owner"):
        assert Decision.objects.get().reason == "As we hoped"


def test_what_was_typed_stays_when_a_newer_proposal_came_in_between(board: Client, scene: Scene) -> None:
    e = scene.experiment(action="delete", code="harm", days=2)
    scene.proposal(e, "delete", "harm")
    sent = {"action": "accept", "reason": "Fine by me", "evidence_digest": "sha256:" + "0" * 64}

    assert "Fine by me</textarea>" in board.post(f"/experiments/{e.key}/decision", sent).text
