"""Every page's parameters and every form's fields with what nobody means: refused or taken, never a 5xx. The API has tests/agents/test_packages.py."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qsl, quote, urldefrag, urljoin, urlsplit

import httpx
import pytest

from tests.faults.conftest import create, row
from tests.installation import Installation, soon

pytestmark = pytest.mark.packages

HOSTILE = ("\x00", "9" * 400, "-1", "1e308", "1e-308", "NaN", "infinity", "'\"><script>", "../" * 40, "2026-13-45", "0001-01-01", "%", "x" * 70_000,
           "\U0001f600" * 300, "[]", "{", '{"a": 1, "a": 2}')  # fmt: skip
SEEN_EVERYWHERE = (
    "q",
    "p",
    "o",
    "before",
    "cursor",
    "team",
    "status",
    "next",
    "from",
    "to",
    "all",
    "e",
    "_changelist_filters",
    "_popup",
    "with",
    "view",
    "sort",
)
LEFT_OUT = re.compile(
    r"/(sign-out|logout|password|admin/password_change)|/admin/auth/user/\d+|/admin/(jsi18n|autocomplete)|\.(png|csv|json)$|/static/"
)
"""What would end the session of the one who asks, or takes no parameter."""
MOST_PAGES, MOST_S = 160, 240


class Page(HTMLParser):
    """The links and forms of a page."""

    def __init__(self, url: str, text: str) -> None:
        super().__init__()
        self.url, self.links, self.forms = url, set[str](), list[tuple[str, str, dict[str, str]]]()
        self._select = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value or "" for name, value in attrs}
        if tag == "a" and "href" in said:
            self.links.add(urldefrag(urljoin(self.url, said["href"]))[0])
        elif tag == "form":
            self.forms.append(
                (said.get("method", "get").lower(), urljoin(self.url, said.get("action") or self.url), {})
            )
        elif tag in ("input", "textarea", "select") and self.forms and said.get("name"):
            if said.get("type") not in ("file", "submit"):
                self.forms[-1][2].setdefault(said["name"], said.get("value", ""))
            self._select = said["name"] if tag == "select" else ""
        elif tag == "option" and self._select and self.forms and (said.get("value") and "selected" in said):
            self.forms[-1][2][self._select] = said["value"]


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    running = Installation(
        tmp_path_factory.mktemp("fuzz") / "home",
        environment={"DECISIONING_KEY_RATE": "1000000/m", "DECISIONING_ADDRESS_RATE": "1000000/m"},
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def person(installation: Installation) -> Iterator[httpx.Client]:
    """The admin of the installation, signed in, who has something of everything."""
    held = installation.credentials()
    with httpx.Client(base_url=held["url"], headers={"Authorization": f"Bearer {held['api_key']}"}, timeout=30) as api:
        create(api, "fuzzed")
        api.post("/api/experiments/fuzzed/kpis", json={"rows": [row(n * 900) for n in range(1_500)]})
        api.post("/api/webhooks", json={"url": "https://receiver.example.org/hook", "events": ["decision.proposed"]})
        api.post(
            "/api/policies", json={"name": "mine", "body": {"gates": [{"name": "g", "kind": "uplift", "for": "goal"}]}}
        )
        assert soon(lambda: bool(api.get("/api/experiments/fuzzed/evaluations").json()["results"]), 120)
    with httpx.Client(base_url=held["url"], timeout=30, follow_redirects=True) as client:
        (form,) = [f for f in Page(held["url"], client.get("/sign-in").text).forms if "password" in f[2]]
        client.post(
            "/sign-in",
            data={**form[2], "username": "admin", "password": held["admin_password"]},
            headers={"Referer": held["url"]},
        )
        assert client.get("/profile").url.path == "/profile"
        yield client


def test_no_parameter_and_no_field_of_any_page_makes_the_server_fail(
    installation: Installation, person: httpx.Client
) -> None:
    base = str(person.base_url)
    waiting, known, forms, wrong = (
        ["/", "/admin/", "/new", "/policies", "/audit", "/webhooks"],
        set[str](),
        set[tuple[str, ...]](),
        list[str](),
    )
    asked, until = 0, time.monotonic() + MOST_S

    def sent(method: str, url: str, **said: object) -> httpx.Response | None:
        nonlocal asked
        asked += 1
        try:
            answer = person.request(method, url, headers={"Referer": base}, follow_redirects=False, **said)  # type: ignore[arg-type]
        except (httpx.InvalidURL, httpx.RemoteProtocolError):
            return None
        except httpx.TimeoutException:
            wrong.append(f"no answer {method} {url[:200]} {str(said)[:300]}")
            return None
        if answer.status_code >= 500:
            wrong.append(f"{answer.status_code} {method} {url[:200]} {str(said)[:300]}")
        return answer

    while waiting and len(known) < MOST_PAGES and time.monotonic() < until:
        url = urljoin(base, waiting.pop(0))
        parts = urlsplit(url)
        shape = (
            re.sub(r"\d+|sha256:\w+", "N", parts.path)
            + "?"
            + ",".join(sorted(name for name, _ in parse_qsl(parts.query)))
        )
        if shape in known or not url.startswith(base) or LEFT_OUT.search(parts.path):
            continue
        known.add(shape)
        answer = sent("GET", url)
        if answer is None or answer.status_code != 200 or "html" not in answer.headers.get("Content-Type", ""):
            continue
        page = Page(url, answer.text)
        waiting += sorted(page.links)
        names = {name for name, _ in parse_qsl(parts.query)} | {
            n for method, _, fields in page.forms if method == "get" for n in fields
        }
        for number, name in enumerate(sorted(names | set(SEEN_EVERYWHERE))):
            for value in HOSTILE[number % 3 :: 3]:
                sent("GET", f"{url.partition('?')[0]}?{quote(name)}={quote(value[:2_000])}")
        for method, action, fields in page.forms:
            if (
                method == "post"
                and not LEFT_OUT.search(urlsplit(action).path)
                and (key := (re.sub(r"\d+", "N", urlsplit(action).path), *sorted(fields))) not in forms
            ):
                forms.add(key)
                _fill(sent, action, fields)

    logs = "".join(log.read_text(errors="replace") for log in Path(installation.home).glob("logs/web.log"))
    print(f"\n{len(known)} kinds of pages, {len(forms)} forms, {asked} requests; {len(wrong)} answered 5xx")  # noqa: T201
    assert wrong == [], json.dumps(wrong[:20], indent=1) + logs[-3_000:]
    assert len(known) > 25
    assert len(forms) > 10


def _fill(sent: object, action: str, fields: Mapping[str, str]) -> None:
    """A form with one field at a time of what nobody means."""
    for number, name in enumerate(sorted(set(fields) - {"csrfmiddlewaretoken"})):
        for value in HOSTILE[number % 2 :: 2]:
            sent("POST", action, data={**fields, name: value})  # type: ignore[operator]
