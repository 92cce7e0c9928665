"""The list: safety first, then what is due; every state in the URL; the same number of queries for few and for many."""

import datetime as dt
import re

from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from decisioning.access.models import Team
from decisioning.board import words
from decisioning.board.presenters.board import filters
from experiments.models import Experiment, Pause
from gates.models import Cursor
from tests.board.scenes import HOUR, Scene
from tests.conftest import as_role


def names(text: str) -> list[str]:
    """Names of the docket in order."""
    return re.findall(r'class="case__name"><a [^>]*>([^<]+)<', text)


def test_a_safety_stop_comes_before_what_is_due_sooner(board: Client, scene: Scene) -> None:
    scene.proposal(scene.experiment("Due soon", action="scale", rows=False), "scale", "wins", ago=23 * HOUR)
    scene.proposal(scene.experiment("Due later", action="scale", rows=False), "scale", "wins", ago=2 * HOUR)
    scene.proposal(scene.experiment("Hurts", action="delete", rows=False), "delete", "unsafe", ago=HOUR)

    text = board.get("/").text

    assert names(text) == ["Hurts", "Due soon", "Due later"]
    assert "3 decisions need you" in text
    assert "Act now" in text


def test_a_suspended_proposal_needs_nobody_and_says_why(board: Client, scene: Scene) -> None:
    e = scene.experiment("Dead feed", action="scale", rows=False)
    scene.proposal(e)
    scene.suspend(e)

    text = board.get("/").text

    assert names(text) == []
    assert "Scale, suspended" in text
    assert "vrps of control is" in text


def test_what_was_answered_does_not_need_anybody(board: Client, scene: Scene) -> None:
    e = scene.experiment("Won", status="scaled", action="scale", rows=False)
    scene.answered(scene.proposal(e))

    text = board.get("/").text

    assert "Nothing needs you" in text
    assert "Scaled, accepted" in text
    assert "Accepted by Mei Tanaka" in text


def test_a_hold_whose_goal_is_open_does_not_blame_its_guards(board: Client, scene: Scene) -> None:
    e = scene.experiment("Undecided so far", code="open", rows=False)

    listed, page = board.get("/").text, board.get(f"/experiments/{e.key}").text

    assert "Hold, still open" in listed
    assert "Hold, still open" in page
    assert "uards still open" not in listed + page


def test_a_split_that_is_wrong_takes_the_effect_its_trust_where_it_waits_for_a_person_too(
    board: Client, scene: Scene
) -> None:
    e = scene.experiment("Split", action="review", code="invalid", uplift=0.0312, days=2)
    scene.proposal(e, "review", "invalid")

    listed = board.get("/").text

    assert "<b>not trusted</b>" in listed
    assert "+3.1" not in listed


def test_days_are_counted_as_the_gates_count_them_without_its_pauses(board: Client, scene: Scene) -> None:
    e = scene.experiment("Paused for a while", days=16, rows=False)
    ended = scene.experiment("Paused and over", days=16, rows=False, status="stopped")
    with as_role("owner"):
        for one in (e, ended):
            begin = scene.now - dt.timedelta(days=14)
            Pause.objects.create(
                experiment=one, team=scene.team, paused_at=begin, resumed_at=begin + dt.timedelta(days=10)
            )

    listed, page = board.get("/").text, board.get(f"/experiments/{e.key}").text

    assert "day 6 of 28" in listed.replace("\xa0", " ")
    assert ">day 6 of 28<" in page
    assert f"Not before {words.day(scene.now + dt.timedelta(days=1))} (7 days)." in page.replace("\xa0", " ")
    assert ", after 5 days" in board.get(f"/experiments/{ended.key}").text


def test_an_answer_on_rows_that_were_corrected_since_says_so_on_list_and_page(board: Client, scene: Scene) -> None:
    e = scene.experiment("Won", status="scaled", action="scale", rows=False)
    decision = scene.answered(scene.proposal(e))
    with as_role("owner"):
        Cursor.objects.filter(experiment=e).update(
            revisions={str(decision.pk): {"action": "hold", "code": "collecting"}}
        )

    said = "Decided on older data: would now be hold (collecting)."
    assert said in board.get("/").text
    assert said in board.get(f"/experiments/{e.key}").text


def test_an_answer_on_rows_that_were_corrected_since_says_so_while_the_experiment_runs_on(
    board: Client, scene: Scene
) -> None:
    e = scene.experiment("Runs on", rows=False)
    decision = scene.answered(scene.proposal(e), override_to="hold", reason="Not in December.")
    with as_role("owner"):
        Cursor.objects.filter(experiment=e).update(
            revisions={str(decision.pk): {"action": "review", "code": "too_small"}}
        )
    said = "Decided on older data: would now be review (real, but too small)."

    assert said in board.get("/").text
    page = board.get(f"/experiments/{e.key}").text
    assert said in page
    assert "Scale overridden by Mei Tanaka" in page

    scene.proposal(e, "review", "too_small", digest="sha256:" + "a" * 64)
    assert said in board.get("/").text, "beside what it says now"


def test_search_and_filters_keep_what_fits_and_say_what_they_hide(board: Client, scene: Scene) -> None:
    scene.proposal(scene.experiment("Price quotes", action="delete", rows=False), "delete", "harm")
    scene.experiment("Loyalty points", status="paused", rows=False)

    assert names(board.get("/?q=PRICE").text) == ["Price quotes"]
    paused = board.get("/?status=paused").text
    assert "Loyalty points" in paused
    assert "Price quotes" not in paused
    assert "1 decision that waits for you is outside this filter" in paused
    text = board.get("/?q=nothing+like+it").text
    assert "No experiment matches" in text
    assert "Nothing here yet" not in text, "there is something, only not what was asked for"
    assert names(board.get("/?recommendation=delete").text) == ["Price quotes"]
    assert names(board.get("/?recommendation=scale").text) == []


def test_data_that_is_old_is_found_by_its_state(board: Client, scene: Scene) -> None:
    scene.experiment("Fresh one", days=1)
    scene.experiment("Stale one", days=1, lag=dt.timedelta(hours=6))

    text = board.get("/?freshness=stale").text

    assert "Stale one" in text
    assert "Fresh one" not in text


def test_due_within_six_hours_leaves_out_what_has_longer(board: Client, scene: Scene) -> None:
    scene.proposal(scene.experiment("Soon", action="scale", rows=False), ago=20 * HOUR)
    scene.proposal(scene.experiment("Later", action="scale", rows=False), ago=HOUR)

    assert names(board.get("/?due=6h").text) == ["Soon"]


def test_nonsense_in_the_address_is_no_error(board: Client, scene: Scene) -> None:
    scene.experiment(rows=False)

    for query in (
        "progress=-1",
        "progress=99999999999",
        "needs=x",
        "due=%00",
        "sort=password",
        "freshness=?",
        "team=nobody",
        "q=%25%00",
    ):
        assert board.get(f"/?{query}").status_code in (200, 400), query


def test_a_page_of_a_lane_holds_25_and_the_next_one_goes_on(board: Client, scene: Scene) -> None:
    for i in range(27):
        scene.experiment(f"Idea {i:02}", status="draft")

    first, second = board.get("/?sort=name").text, board.get("/?sort=name&progress=2").text

    assert "Idea 24" in first
    assert "Idea 25" not in first
    assert "progress=2" in first
    assert "Idea 26" in second


def test_many_experiments_take_no_more_queries_than_one(board: Client, scene: Scene) -> None:
    scene.proposal(scene.experiment(action="scale", days=1))
    scene.experiment("Other", status="paused", days=1)
    scene.answered(scene.proposal(scene.experiment("Done", status="scaled", action="scale", days=1)))
    board.get("/")
    with CaptureQueriesContext(connection) as one:
        board.get("/")
    for i in range(12):
        scene.proposal(scene.experiment(f"Idea {i}", action="scale", days=1))
        scene.experiment(f"Other {i}", status="paused", days=1)
        scene.answered(scene.proposal(scene.experiment(f"Done {i}", status="scaled", action="scale", days=1)))

    with CaptureQueriesContext(connection) as many:
        board.get("/")

    assert len(many) == len(one)


def test_another_teams_experiments_are_not_there(board: Client, scene: Scene) -> None:
    with as_role("owner"):
        other = Team.objects.create(key="ops", name="Ops", created_at=scene.now)
    e = Scene(other, scene.now, made=100).experiment("Secret plan", rows=False)

    assert "Secret plan" not in board.get("/").text
    assert board.get(f"/experiments/{e.key}").status_code == 404
    assert board.get(f"/experiments/{e.pk}").status_code == 404
    assert board.post(f"/experiments/{e.key}/to/stopped").status_code == 404


def test_news_says_how_many_came_since_the_page_was_opened(board: Client, scene: Scene) -> None:
    first = scene.proposal(scene.experiment(action="scale", rows=False))
    scene.proposal(scene.experiment("Newer", action="delete", rows=False), "delete", "harm")

    assert "1 new recommendation since" in board.get(f"/board/news?since={first.pk}").text
    assert board.get("/board/news?since=999999").text.strip() == ""


def test_a_formula_in_a_name_is_text_in_the_spreadsheet(board: Client, scene: Scene) -> None:
    scene.experiment("=HYPERLINK(1)", rows=False)

    assert "'=HYPERLINK(1)" in board.get("/board.csv").text


def test_all_closed_shows_what_has_ended_and_nothing_else(board: Client, scene: Scene) -> None:
    scene.proposal(scene.experiment("Waits", action="scale", rows=False))
    scene.experiment("Runs", rows=False)
    ended = scene.experiment("Ended long ago", status="stopped", days=20, rows=False)
    with as_role("owner"):
        Experiment.objects.filter(pk=ended.pk).update(ended_at=scene.now - dt.timedelta(days=9))
    assert "Ended long ago" not in board.get("/").text

    text = board.get("/?view=closed").text

    assert "Ended long ago" in text
    assert names(text) == []
    assert ">Runs</a>" not in text
    assert "1 decision that waits for you is outside this filter" in text
    assert board.get("/board.csv?view=closed").text.count("\r\n") == 2, "the heads and the one that ended"


def test_the_next_page_of_a_list_begins_at_the_list(board: Client, scene: Scene) -> None:
    for number in range(filters.PAGE + 1):
        scene.experiment(f"Idea {number}", status="draft", rows=False)

    assert 'href="?progress=2#lane-progress"' in board.get("/").text
    assert 'id="lane-progress"' in board.get("/?progress=2").text
    assert 'href="?#lane-progress"' in board.get("/?progress=2").text
    audit = board.get("/audit").text
    assert re.search(r'href="\?before=\d+#list" rel="next"', audit)
    assert 'id="list"' in audit
