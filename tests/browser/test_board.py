"""The board in a real browser: the tour by keyboard alone and without JavaScript, refusals in place."""

import re
from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.db import connection
from playwright.sync_api import Browser, Page, expect

from decisioning.access.models import Team
from experiments.models import Experiment
from gates.models import Decision
from tests.board.scenes import Scene, person
from tests.browser.conftest import sign_in
from tests.conftest import as_role


def tab_to(page: Page, name: str, *, most: int = 60) -> None:
    """Press Tab until what has focus is called that."""
    for _ in range(most):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "(() => { const e = document.activeElement; const l = e.labels?.[0]; "
            "return [e.getAttribute('aria-label'), l?.innerText, e.innerText].filter(Boolean).join(' '); })()"
        )
        if name in re.sub(r"\s+", " ", focused):
            return
    raise AssertionError(f"{name!r} is not reached by {most} tabs")


def test_the_tour_by_keyboard_alone(signed_in: Page, served: str, scene: Scene, complaints: list[str]) -> None:
    page = signed_in
    tab_to(page, "New experiment")
    page.keyboard.press("Enter")
    page.wait_for_url("**/new")
    page.keyboard.type("Keyboard checkout")  # the name has focus already
    tab_to(page, "Hypothesis")
    page.keyboard.type("A form that needs no mouse is finished more often")
    tab_to(page, "Goal KPI")
    page.keyboard.type("sign_ups")
    tab_to(page, "Data of new ones comes")
    page.keyboard.type("every day")
    tab_to(page, "At")
    page.keyboard.type("24:00")
    tab_to(page, "Create the experiment")
    page.keyboard.press("Enter")
    page.wait_for_url("**/experiments/keyboard-checkout")
    expect(page.get_by_role("heading", name="Hold, no data")).to_be_visible()

    e = scene.experiment(
        "Rows arrived and were judged", key="judged", action="scale", days=9
    )  # what a tick makes of rows
    scene.proposal(e)
    page.goto(f"{served}/")
    tab_to(page, "Rows arrived and were judged")
    page.keyboard.press("Enter")
    page.wait_for_url("**/experiments/judged")
    tab_to(page, "Accept: scale")
    tab_to(page, "Accept and scale")
    page.keyboard.press("Enter")
    page.wait_for_load_state()
    expect(page.get_by_role("heading", name="Scaled, accepted")).to_be_visible()
    assert complaints == []
    with as_role("owner"):
        assert Experiment.objects.get(pk=e.pk).status == "scaled"


def test_j_and_k_move_through_the_docket_once_it_has_focus(signed_in: Page, served: str, scene: Scene) -> None:
    scene.proposal(scene.experiment("First", action="delete", rows=False), "delete", "unsafe")
    scene.proposal(scene.experiment("Second", action="scale", rows=False))
    signed_in.goto(f"{served}/")
    signed_in.keyboard.press("j")
    expect(signed_in.get_by_role("link", name="Second", exact=True)).not_to_be_focused()

    signed_in.get_by_role("link", name="First", exact=True).focus()
    signed_in.keyboard.press("j")
    expect(signed_in.get_by_role("link", name="Second", exact=True)).to_be_focused()
    signed_in.keyboard.press("k")
    expect(signed_in.get_by_role("link", name="First", exact=True)).to_be_focused()


def test_an_override_without_a_reason_is_refused_in_place(
    signed_in: Page, served: str, scene: Scene, complaints: list[str]
) -> None:
    e = scene.experiment(action="scale", days=2)
    scene.proposal(e)
    signed_in.goto(f"{served}/experiments/{e.key}")
    signed_in.get_by_text("Override", exact=True).click()
    signed_in.get_by_label("Decide instead").select_option("hold")
    signed_in.get_by_role("button", name="Override with this reason").click()

    expect(signed_in.get_by_text("Say why you decide otherwise; one sentence is enough.")).to_be_visible()
    expect(signed_in.get_by_label("Reason (required)")).to_be_focused()
    expect(signed_in.get_by_label("Decide instead")).to_have_value("hold")
    assert signed_in.url.endswith(f"/experiments/{e.key}")
    assert complaints == []

    signed_in.get_by_label("Reason (required)").fill("The campaign ends on Friday")
    signed_in.get_by_role("button", name="Override with this reason").click()
    expect(signed_in.get_by_text("The campaign ends on Friday").first).to_be_visible()
    with as_role("owner"):
        assert Decision.objects.get().override_to == "hold"


@pytest.mark.parametrize("kept", [("csrf",), ()], ids=["the session ended", "every cookie is gone"])
def test_a_session_that_ends_in_the_middle_of_an_override_loses_nothing(
    signed_in: Page, served: str, scene: Scene, kept: tuple[str, ...]
) -> None:
    e = scene.experiment(action="scale", days=2)
    scene.proposal(e)
    page = signed_in
    page.goto(f"{served}/experiments/{e.key}")
    page.get_by_text("Override", exact=True).click()
    page.get_by_label("Decide instead").select_option("hold")
    page.get_by_label("Reason (required)").fill("The campaign ends on Friday")
    page.context.clear_cookies(name=re.compile(f"^(?!{'|'.join(kept) or 'none'})"))
    page.evaluate("htmx.ajax('GET', '/board/watch', {source: '#watch', target: '#watch', swap: 'outerHTML'})")
    expect(page.get_by_text("Signed out, not followed any more")).to_be_visible()
    expect(page.get_by_label("Reason (required)")).to_have_value("The campaign ends on Friday")

    page.get_by_role("button", name="Override with this reason").click()
    page.get_by_label("User name").fill("ines")
    page.get_by_label("Password").fill("open sesame 7")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("The campaign ends on Friday")).to_be_visible()
    page.get_by_role("button", name="Send it now").click()

    page.wait_for_url(f"**/experiments/{e.key}")
    expect(page.get_by_text("Overridden, with your reason: hold.")).to_be_visible()
    with as_role("owner"):
        assert Decision.objects.get().reason == "The campaign ends on Friday"


def test_of_two_people_the_second_is_told_in_place(
    signed_in: Page, served: str, scene: Scene, growth: Team, browser: Browser
) -> None:
    e = scene.experiment(action="scale", days=2)
    scene.proposal(e)
    person("mei", growth)
    other = browser.new_context().new_page()
    sign_in(other, served, "mei")
    for page in (signed_in, other):
        page.goto(f"{served}/experiments/{e.key}")
    signed_in.get_by_role("button", name="Accept and scale").click()
    expect(signed_in.get_by_role("heading", name="Scaled, accepted")).to_be_visible()

    other.get_by_role("button", name="Accept and scale").click()

    expect(other.get_by_text("Somebody has answered already.")).to_be_visible()
    other.context.close()
    with as_role("owner"):
        assert Decision.objects.count() == 1


def test_evidence_that_was_replaced_meanwhile_is_refused_and_the_newer_one_shown(
    signed_in: Page, served: str, scene: Scene
) -> None:
    e = scene.experiment(action="scale", days=2)
    old = scene.proposal(e)
    signed_in.goto(f"{served}/experiments/{e.key}")
    with as_role("owner"):
        old.superseded_at = scene.now
        old.save()
    scene.proposal(e, "delete", "harm")

    signed_in.get_by_role("button", name="Accept and scale").click()

    expect(signed_in.get_by_text("A newer recommendation replaced the one you saw.")).to_be_visible()
    expect(signed_in.get_by_role("button", name="Accept and delete")).to_be_visible()
    with as_role("owner"):
        assert Decision.objects.count() == 0


def test_filters_work_in_place_and_stand_in_the_address(
    signed_in: Page, served: str, gallery: Scene, complaints: list[str]
) -> None:
    signed_in.goto(f"{served}/")
    signed_in.get_by_label("Search name").fill("loyalty")

    expect(signed_in.get_by_role("link", name="Loyalty points at the cart")).to_be_visible()
    expect(signed_in.get_by_role("link", name="One-page checkout", exact=True)).to_have_count(0)
    expect(signed_in.get_by_label("Search name")).to_be_focused()
    assert "q=loyalty" in signed_in.url
    signed_in.reload()
    expect(signed_in.get_by_label("Search name")).to_have_value("loyalty")
    assert complaints == []


def test_the_duration_follows_what_is_typed(signed_in: Page, served: str, complaints: list[str]) -> None:
    signed_in.goto(f"{served}/new")
    for label, value in (
        ("The goal today: mean", "3.1"),
        ("and its standard deviation", "3"),
        ("Units a day", "40000"),
    ):
        signed_in.get_by_label(label).fill(value)

    expect(signed_in.locator("#duration")).to_contain_text("Decided in")
    assert complaints == []


def test_the_theme_is_kept(signed_in: Page, served: str) -> None:
    signed_in.emulate_media(color_scheme="light")
    signed_in.goto(f"{served}/")
    signed_in.get_by_role("button", name="Dark theme").click()
    signed_in.goto(f"{served}/audit")

    assert signed_in.evaluate("document.documentElement.dataset.theme") == "dark"
    expect(signed_in.get_by_role("button", name="Dark theme")).to_have_attribute("aria-pressed", "true")


@pytest.fixture
def plain(browser: Browser, served: str, ines: User) -> Callable[[], Page]:
    """A signed-in page in a browser that runs no JavaScript."""

    def open_() -> Page:
        page = browser.new_context(java_script_enabled=False).new_page()
        sign_in(page, served, "ines")
        return page

    return open_


def test_the_tour_without_javascript(plain: Callable[[], Page], served: str, scene: Scene) -> None:
    page = plain()
    page.get_by_role("link", name="New experiment").click()
    page.get_by_label("Name", exact=True).fill("Plain checkout")
    page.get_by_label("Hypothesis").fill("It works in any browser")
    page.get_by_label("Goal KPI").fill("sign_ups")
    expect(page.get_by_label("On the clocks of")).to_be_hidden()
    page.get_by_label("Data of new ones comes").select_option("Monday to Friday")
    expect(page.get_by_label("Minutes from one row to the next")).to_be_hidden()
    page.locator("#id_comes_at").fill("06:00")
    page.get_by_label("On the clocks of").fill("Europe/Berlin")
    page.get_by_role("button", name="Create the experiment").click()
    expect(page.get_by_role("heading", name="Hold, no data")).to_be_visible()

    e = scene.experiment("Rows arrived and were judged", key="judged", action="scale", days=9)
    scene.proposal(e)
    page.goto(f"{served}/?q=judged")
    page.get_by_role("link", name="Review and decide").click()
    page.get_by_text("Override", exact=True).click()
    page.get_by_role("button", name="Override with this reason").click()
    expect(page.get_by_text("Say why you decide otherwise; one sentence is enough.")).to_be_visible()
    page.get_by_text("Accept: scale").click()
    page.get_by_role("button", name="Accept and scale").click()

    expect(page.get_by_role("heading", name="Scaled, accepted")).to_be_visible()
    page.context.close()
    connection.close()
