"""Every page in a real browser, light and dark, wide and narrow: nothing for axe, the console or a sideways scroll to complain of."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from playwright.sync_api import BrowserContext, Page, expect

from decisioning.access.models import Team
from decisioning.ledger.models import Channel
from tests.board.scenes import Scene, person
from tests.browser.conftest import sign_in
from tests.conftest import as_role

PAGES = ["/", "/?q=nothing+like+it", "/new", "/experiments/checkout-one-page", "/experiments/scene-1",
         "/experiments/scene-6", "/experiments/scene-12",
         "/experiments/scene-12/report", "/experiments/checkout-one-page/to/stopped", "/freshness", "/refresh-log", "/sources",
         "/quarantine", "/promises", "/policies", "/policies/1", "/audit", "/keys", "/webhooks", "/profile", "/password", "/nowhere"]  # fmt: skip
ADMIN = ["/admin/", "/admin/experiments/experiment/", "/admin/experiments/experiment/2/change/", "/admin/experiments/experiment/2/rows/",
         "/admin/ledger/entry/", "/admin/ledger/channel/", "/admin/ledger/delivery/", "/admin/auth/user/", "/admin/experiments/metric/add/"]  # fmt: skip
COLOUR = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}


@pytest.fixture
def ada(growth: Team) -> User:
    return person("ada", growth, admin=True)


@pytest.fixture
def admin_page(watched: BrowserContext, served: str, ada: User, gallery: Scene) -> Page:
    page = watched.new_page()
    sign_in(page, served, "ada")
    return page


@pytest.mark.looks
def test_no_page_has_a_fault_for_axe_an_error_in_the_console_or_a_sideways_scroll(
    admin_page: Page, served: str, complaints: list[str]
) -> None:
    found = []
    with as_role("worker"):
        webhook = Channel.objects.get(kind="webhook").pk
    for path in [*PAGES, f"/webhooks/{webhook}", f"/webhooks/{webhook}/delete"]:
        admin_page.set_viewport_size({"width": 1440, "height": 900})
        admin_page.emulate_media(color_scheme="light")
        admin_page.goto(f"{served}{path}")
        for theme, rules in (("light", RULES), ("dark", COLOUR)):  # only colour differs between the two
            admin_page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
            for fault in Axe().run(admin_page, options=rules).response["violations"]:
                nodes = [node["html"][:120] for node in fault["nodes"]][:3]
                found.append(f"{path} {theme}: {fault['id']}: {nodes}")
        for width in (390, 320):
            admin_page.set_viewport_size({"width": width, "height": 844})
            wide = admin_page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if wide > 0:
                found.append(f"{path} is {wide} px too wide at {width}")
    assert found == []
    assert [c for c in complaints if "/nowhere" not in c] == []


@pytest.mark.looks
def test_the_admin_runs_under_the_same_policy_without_a_complaint(
    admin_page: Page, served: str, complaints: list[str]
) -> None:
    admin_page.goto(f"{served}/admin/experiments/experiment/")
    first = str(admin_page.locator("#result_list a[href*='/change/']").first.get_attribute("href")).split("/")[-3]
    for path in ADMIN:
        admin_page.goto(f"{served}{path.replace('/2/', f'/{first}/')}")
        expect(admin_page.locator("#content-start")).to_be_visible()
    assert complaints == []
