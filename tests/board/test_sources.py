"""Sources on the board: whoever may send rows may ask for a pull, and hears when one is under way."""

from django.test import Client

from telemetry.models import RefreshRun, Source
from tests.board.scenes import HOUR, Scene, person
from tests.conftest import as_role


def test_a_source_is_refreshed_from_its_page_by_whoever_may_send_rows(board: Client, scene: Scene) -> None:
    with as_role("owner"):
        source = Source.objects.create(
            key="warehouse", team=scene.team, kind="file", path="rows.csv", query="SELECT :since, :until", schedule_s=900,
            metrics=["vrps"], created_at=scene.now - HOUR, due_at=scene.now,
        )  # fmt: skip
    assert "Refresh warehouse now" in board.get("/sources").text

    answer = board.post(f"/sources/{source.pk}/refresh", follow=True)
    assert "warehouse is asked for" in answer.text
    assert "source/warehouse" in answer.text, "the refresh log shows its runs"
    with as_role("owner"):
        assert list(RefreshRun.objects.values_list("source", "status")) == [("warehouse", "running")]

    onlooker = Client()
    onlooker.force_login(person("vic", scene.team, role="viewer"))
    assert "Refresh warehouse now" not in onlooker.get("/sources").text
    assert onlooker.post(f"/sources/{source.pk}/refresh").status_code == 403
