"""`SHOTS=folder pytest tests/browser/screenshots.py` writes every page, light and dark, 1440 and 390 pixels wide.

`SHOTS_ONLY=board,new` writes those alone. The README's three are of the demo team.
"""

import os
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import BrowserContext, Page

from tests.board.scenes import Scene, person
from tests.browser.conftest import sign_in
from tests.browser.gallery import hang

PAGES = {
    "board": "/",
    "board-filtered": "/?recommendation=delete",
    "board-no-match": "/?q=nothing+like+this",
    "experiment-scale": "/experiments/checkout-one-page",
    "experiment-stop": "/experiments/scene-1",
    "experiment-split": "/experiments/scene-3",
    "experiment-suspended": "/experiments/scene-6",
    "experiment-collecting": "/experiments/scene-7",
    "experiment-stale-two-arms": "/experiments/scene-8",
    "experiment-draft": "/experiments/scene-10",
    "experiment-no-rows": "/experiments/scene-11",
    "experiment-scaled": "/experiments/scene-12",
    "experiment-overridden": "/experiments/scene-13",
    "report": "/experiments/scene-12/report",
    "new": "/new",
    "confirm": "/experiments/checkout-one-page/to/stopped",
    "freshness": "/freshness",
    "freshness-of-one": "/freshness?q=value",
    "freshness-no-match": "/freshness?q=nothing+like+it",
    "schedule": "/freshness/schedules/vrps",
    "alarms": "/alarms",
    "alarm": "/alarms/1",
    "outages": "/outages",
    "outage-back": "/outages/1/take-back",
    "refresh-log": "/refresh-log",
    "promises": "/promises",
    "policies": "/policies",
    "policy": "/policies/1",
    "policy-candidate": "/policies/3/2",
    "sources": "/sources",
    "audit": "/audit",
    "keys": "/keys",
    "webhooks": "/webhooks",
    "profile": "/profile",
    "team": "/teams/growth",
    "policy-copy": "/policies/1/1/copy",
    "password": "/password",
    "not-found": "/nowhere",
    "admin": "/admin/",
    "admin-experiments": "/admin/experiments/experiment/",
    "admin-experiment": "/admin/experiments/experiment/2/change/",
    "admin-policy": "/admin/gates/policy/add/",
    "admin-audit": "/admin/ledger/entry/",
}


@pytest.fixture
def shots() -> Path:
    wanted = os.environ.get("SHOTS")
    if not wanted:
        pytest.skip("set SHOTS to a folder to write screenshots")
    Path(wanted).mkdir(parents=True, exist_ok=True)
    return Path(wanted)


def test_every_page_is_written_to_a_file(
    watched: BrowserContext, served: str, scene: Scene, ines: User, shots: Path
) -> None:
    page = watched.new_page()
    page.set_viewport_size({"width": 1440, "height": 900})
    if not os.environ.get("SHOTS_ONLY"):
        page.goto(f"{served}/sign-in")
        page.screenshot(path=shots / "sign-in-light-1440.png")
    person("root", scene.team, admin=True)
    sign_in(page, served, "root")
    only = os.environ.get("SHOTS_ONLY")
    if not only:
        page.goto(f"{served}/")
        page.screenshot(path=shots / "board-empty-light-1440.png", full_page=True)
    hang(scene)
    for name, path in PAGES.items():
        if only and name not in only.split(","):
            continue
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            for width in (1440, 390):
                _take(page, f"{served}{path}", width, shots / f"{name}-{theme}-{width}.png")


def _take(page: Page, url: str, width: int, to: Path) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(url)
    page.screenshot(path=to, full_page=True)
