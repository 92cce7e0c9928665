"""Times in the reader's own zone, with UTC beside them; UTC alone for who has chosen none."""

from django.test import Client

from decisioning.board import words
from tests.board.scenes import HOUR, Scene


def test_times_are_the_readers_with_utc_beside_them_once_a_zone_is_chosen(board: Client, scene: Scene) -> None:
    e = scene.experiment(action="scale", days=2)
    r = scene.proposal(e, ago=30 * HOUR)
    utc = words.instant(r.proposed_at, scene.now)
    assert f"proposed {utc}" in board.get(f"/experiments/{e.key}").text.replace("\xa0", " ")
    assert "All times UTC." in board.get("/").text

    kept = board.post("/profile/zone", {"zone": "Asia/Kathmandu"})
    page = board.get(f"/experiments/{e.key}").text.replace("\xa0", " ")

    assert (kept.cookies["zone"]["httponly"], kept.cookies["zone"]["samesite"]) == (True, "Lax")
    assert "Times in Asia/Kathmandu, UTC beside them" in page
    assert f"proposed {utc}" not in page
    hours, minutes = divmod(r.proposed_at.hour * 60 + r.proposed_at.minute + 345, 60)
    assert f"{hours % 24:02}:{minutes:02} (" in page
    assert utc[-6:] in page
    assert '<option value="Asia/Kathmandu" selected>' in board.get("/profile").text


def test_a_zone_that_does_not_exist_is_refused_and_read_as_utc(board: Client, scene: Scene) -> None:
    assert board.post("/profile/zone", {"zone": "../../etc/passwd"}).status_code == 400
    board.cookies["zone"] = "Mars/Olympus"
    assert "All times UTC." in board.get("/").text
