"""Every page in a real browser, light and dark, wide and narrow: nothing for axe, the console or a sideways scroll to complain of."""

import datetime as dt
import re
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from playwright.sync_api import Browser, BrowserContext, Page, expect

from decisioning.access import members
from decisioning.access.models import Membership, Team
from decisioning.access.principal import ANONYMOUS
from decisioning.ledger.models import Alarm, Channel
from experiments.models import Experiment
from gates.models import Policy
from telemetry.models import Outage, Source
from tests.board.scenes import Scene, person
from tests.browser.conftest import sign_in
from tests.browser.gallery import UNBROKEN, rename
from tests.conftest import as_role

PAGES = ["/", "/?q=nothing+like+it", "/new", "/experiments/checkout-one-page", "/experiments/scene-1",
         "/experiments/scene-6", "/experiments/scene-12",
         "/experiments/scene-12/report", "/experiments/checkout-one-page/to/stopped", "/freshness", "/freshness?q=nothing+like+it",
         "/freshness/schedules/vrps", "/alarms", "/outages", "/outages?metric=vrps#new", "/refresh-log", "/sources",
         "/quarantine", "/promises", "/policies", "/policies/1", "/audit", "/keys", "/webhooks", "/profile", "/teams/growth", "/policies/1/1/copy", "/password", "/nowhere"]  # fmt: skip
ADMIN = ["/admin/", "/admin/experiments/experiment/", "/admin/experiments/experiment/2/change/", "/admin/experiments/experiment/2/history/",
         "/admin/experiments/experiment/2/rows/", "/admin/experiments/metric/add/", "/admin/gates/policy/", "/admin/gates/policy/add/",
         "/admin/telemetry/source/", "/admin/telemetry/source/import/", "/admin/ledger/entry/", "/admin/ledger/channel/", "/admin/ledger/delivery/",
         "/admin/auth/user/", "/admin/auth/user/add/", "/admin/auth/group/add/", "/admin/access/membership/add/", "/admin/gates/policybinding/add/",
         "/admin/gates/decision/", "/admin/gates/policyversion/", "/admin/gates/policyversion/1/change/"]  # fmt: skip
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


def faults(page: Page, where: str) -> list[str]:
    """What axe finds on the page as it stands, light and dark, and how much wider than a phone it is."""
    found = []
    page.set_viewport_size({"width": 1440, "height": 900})
    themes: list[tuple[Literal["light", "dark"], Any]] = [
        ("light", RULES),
        ("dark", COLOUR),
    ]  # only colour differs between the two
    for theme, rules in themes:
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")  # a colour that still fades is no fault
        for fault in Axe().run(page, options=rules).response["violations"]:
            nodes = [node["html"][:120] for node in fault["nodes"]][:3]
            found.append(f"{where} {theme}: {fault['id']}: {nodes}")
    for width in (768, 390, 320):
        page.set_viewport_size({"width": width, "height": 844})
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        if wide > 0:
            found.append(f"{where} is {wide} px too wide at {width}")
    return found


@pytest.mark.looks
def test_no_page_has_a_fault_for_axe_an_error_in_the_console_or_a_sideways_scroll(
    admin_page: Page, served: str, complaints: list[str]
) -> None:
    found = []
    with as_role("worker"):
        webhook = Channel.objects.get(kind="webhook").pk
        member, team = Membership.objects.get(user__username="ada").pk, Team.objects.get(key="growth")
        _, token = members.invite(
            team, role="operator", email="a@example.org", by=ANONYMOUS, now=dt.datetime.now(dt.UTC)
        )
        policy = Policy.objects.get(name="careful").pk
        alarm, outage = Alarm.objects.order_by("pk")[0].pk, Outage.objects.order_by("pk")[0].pk
    own = [f"/alarms/{alarm}", f"/outages/{outage}/take-back", f"/webhooks/{webhook}", f"/webhooks/{webhook}/delete", f"/teams/growth/members/{member}/remove", f"/policies/{policy}/next",
           f"/join?with={token}"]  # fmt: skip
    for path in [*PAGES, *own]:
        admin_page.set_viewport_size({"width": 1440, "height": 900})
        admin_page.emulate_media(color_scheme="light")
        admin_page.goto(f"{served}{path}")
        found += faults(admin_page, path)
    assert not found, "\n".join(found)
    assert [c for c in complaints if "/nowhere" not in c] == []


# Where text pokes out of its box, over what stands beside it: a block that is narrower than its words and does not scroll or cut.
BURST = """() => [...document.querySelectorAll('main *, header *')].filter((e) => {
  const style = getComputedStyle(e);
  return !e.closest('svg, .sr, [hidden], pre, .scroll, .jump') && style.display !== 'inline' && style.overflowX === 'visible' && e.clientWidth > 0
    && e.scrollWidth > e.clientWidth + 2 && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
}).map((e) => `${e.tagName} ${e.className} ${e.textContent.trim().slice(0, 40)}`).slice(0, 6)"""


@pytest.mark.looks
def test_names_of_60_characters_without_a_blank_burst_no_page_at_any_width(
    watched: BrowserContext, served: str, ada: User, scene: Scene
) -> None:
    rename(scene)
    page = watched.new_page()
    sign_in(page, served, "ada")
    watched.add_cookies([{"name": "zone", "value": "Pacific/Auckland", "url": served}])  # every time twice
    found = []
    with as_role("worker"):
        webhook = Channel.objects.get(kind="webhook").pk
        policy = Policy.objects.get(name=UNBROKEN.lower()).pk
    more = [f"/experiments/scene-{n}" for n in (1, 3, 5, 7, 8, 9, 10, 11, 13)] + ["/experiments/scene-3/report"]
    more += [
        f"/webhooks/{webhook}",
        f"/policies/{policy}",
        f"/policies/{policy}/2",
        f"/policies/{policy}/next",
        f"/policies/{policy}/2/copy",
    ]
    for path in [*PAGES, *more, *ADMIN]:
        page.goto(f"{served}{path}")
        for width in (320, 390, 768, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if wide > 0:
                found.append(f"{path} is {wide} px too wide at {width}")
            if not path.startswith("/admin"):
                found += [f"{path} at {width}: {what}" for what in page.evaluate(BURST)]
    assert not found, "\n".join(found)


@pytest.mark.looks
def test_a_report_is_one_page_on_paper_and_dark_on_white_whatever_the_screen_shows(
    admin_page: Page, served: str
) -> None:
    for key in ("checkout-one-page", "scene-8", "scene-12"):  # a proposal, two treatments, an answer
        admin_page.goto(f"{served}/experiments/{key}/report")
        admin_page.emulate_media(color_scheme="dark", media="print")
        paper = admin_page.pdf(prefer_css_page_size=True)
        assert len(re.findall(rb"/Type\s*/Page[^s]", paper)) == 1, key
        ink = str(admin_page.evaluate("getComputedStyle(document.querySelector('h1')).color"))
        assert max(map(int, re.findall(r"\d+", ink)[:3])) < 80, ink


@pytest.mark.looks
def test_no_page_of_the_admin_has_one_either(
    admin_page: Page, served: str, complaints: list[str], browser: Browser, tmp_path: Path
) -> None:
    page, found = admin_page, []
    with as_role("worker"):
        first, source = Experiment.objects.earliest("pk").pk, Source.objects.earliest("pk").pk
        team, policy = Team.objects.get(key="growth").pk, Policy.objects.get(name="careful").pk
    changed = [f"/admin/access/team/{team}/change/", f"/admin/access/team/{team}/delete/", f"/admin/gates/policy/{policy}/change/",
               f"/admin/telemetry/source/{source}/change/", f"/admin/telemetry/source/{source}/delete/"]  # fmt: skip
    for path in [*ADMIN, *changed]:
        page.set_viewport_size({"width": 1440, "height": 900})
        page.emulate_media(color_scheme="light")
        page.goto(f"{served}{path.replace('/2/', f'/{first}/')}")
        expect(page.locator("#content-start")).to_be_visible()
        found += faults(page, path)

    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(f"{served}/admin/experiments/experiment/")
    page.locator("#result_list .action-select").first.check()
    page.locator("select[name=action]").select_option("pause")
    page.locator(".actions button").click()
    expect(page.get_by_role("button", name="Yes, pause experiments")).to_be_visible()
    found += faults(page, "an action asks once more")

    sent = tmp_path / "rows.csv"
    sent.write_text(
        "experiment,metric,variant,ts,value,n,variance\ncheckout-one-page,vrps,control,2026-01-01T00:00:00Z,3.1,100,9\nnothing,x,y,z\n"
    )
    page.set_viewport_size({"width": 1440, "height": 900})
    page.goto(f"{served}/admin/telemetry/source/import/")
    page.locator("select[name=team]").select_option(label="growth")
    page.locator("input[type=file]").set_input_files(sent)
    page.get_by_role("button", name="Show what it would change").click()
    expect(page.get_by_text("Nothing is stored yet.")).to_be_visible()
    found += faults(page, "the preview of an import")

    stranger = browser.new_context().new_page()
    stranger.goto(f"{served}/admin/")
    expect(stranger.get_by_role("button", name="Sign in")).to_be_visible()
    found += faults(stranger, "the admin's sign-in")
    stranger.context.close()
    assert not found, "\n".join(found)
    assert complaints == []
