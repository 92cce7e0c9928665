"""Whatever code, templates, tests and documents cite is in this repository."""

import ast
import importlib
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path, PurePosixPath

import pytest

PROJECT = Path(__file__).parents[1]
ROOMS = ("decisioning", "experiments", "gates", "telemetry")
_PAGE = re.compile(r"[\w./-]*\w\.md(?:#[\w-]*)?")
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
_DOTTED = re.compile(rf"(?<![\w./\"'@-])(?:django|{'|'.join(ROOMS)})(?:\.[A-Za-z_]\w*)+(?![\w/])(?<!\.md)(?<!\.py)")
_SECTION = re.compile(r"docs/(\w+)\.md,? sections? (\d)(?:(?:,? and|, | to) (\d))*")
_GIVER = re.compile(r"\b(?:from|of) ([A-Za-z_]\w*(?:\.\w+)+)")
_HEADER = re.compile(r"\{# (.*?) #\}")


@cache
def tracked() -> frozenset[str]:
    """Every file of the repository, those not committed yet too."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=PROJECT, capture_output=True, check=True, text=True
    ).stdout.split()  # fmt: skip
    return frozenset(name for name in listed if (PROJECT / name).exists())


def texts(*endings: str) -> Iterator[tuple[str, str]]:
    """Name and text of every file with such an ending; without one, of all but pictures, the lock file and this module."""
    for name in sorted(tracked()):
        if name.endswith(endings or "") and not name.endswith((".png", ".svg", ".z", "uv.lock", "test_citations.py")):
            yield name, (PROJECT / name).read_text()


@cache
def anchors(page: str) -> frozenset[str]:
    """The anchors a page's headings have, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", (PROJECT / page).read_text(), flags=re.M | re.S)
    return frozenset(
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.M)
    )


def lost(name: str, target: str) -> bool:
    """Whether a file, with or without an anchor, is neither below the root nor beside the one that names it."""
    path, _, anchor = target.partition("#")
    beside = PurePosixPath(name).parent / path if path else PurePosixPath(name)
    normal = [
        str(PurePosixPath(*_folded(candidate)))
        for candidate in (beside, PurePosixPath(path or name), PurePosixPath("docs") / path)
    ]
    found = next((each for each in normal if each in tracked() or (PROJECT / each).is_dir()), None)
    return found is None or bool(anchor and found.endswith(".md") and anchor not in anchors(found))


def _folded(path: PurePosixPath) -> list[str]:
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts:
            parts.pop()
        elif part != ".":
            parts.append(part)
    return parts


@cache
def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for attribute in parts[length:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


@cache
def sent() -> frozenset[str]:
    """Dotted names that are no modules: tasks, and types of events."""
    from decisioning.celery import app
    from telemetry.schemas import TYPES

    for room in ("telemetry", "gates", "decisioning.ledger", "decisioning.notices"):
        import_module(f"{room}.tasks")  # as the worker does, but without Celery setting Django's logging up once more
    return frozenset(app.tasks) | frozenset(TYPES)


def test_every_page_that_is_named_is_here() -> None:
    named = [(name, page) for name, text in texts() for page in _PAGE.findall(text) if "://" not in page]

    assert len(named) > 100
    assert [(name, page) for name, page in named if lost(name, page)] == []


def test_every_link_of_a_page_leads_somewhere() -> None:
    links = [(name, target) for name, text in texts(".md") for target in _LINK.findall(text)]

    assert len(links) > 60
    assert [(name, target) for name, target in links if lost(name, target)] == []


def test_every_section_that_is_cited_exists() -> None:
    cited = [(name, found) for name, text in texts(".py", ".md", ".html") for found in _SECTION.finditer(text)]

    assert len(cited) > 8
    for name, found in cited:
        sections = re.findall(r"^## (\d)", (PROJECT / "docs" / f"{found[1]}.md").read_text(), re.M)
        assert set(re.findall(r"\d", found[0])) <= set(sections), (name, found[0])


def test_nothing_cites_a_document_of_another_house() -> None:
    """Texts that stood beside the repository once; what of them is true is in docs."""
    elsewhere = re.compile(r"\bPRD\b|\bGATES\.md|\bDESIGN\b|\bSTYLE\.md|\bAPI\.md")

    assert [(name, found[0]) for name, text in texts() for found in elsewhere.finditer(text)] == []


def headers() -> list[tuple[str, str]]:
    return [(name, found[1]) for name, text in texts(".html") if (found := _HEADER.match(text))]


def test_every_template_says_first_what_it_takes() -> None:
    assert [name for name, _ in texts(".html")] == [name for name, _ in headers()]


@pytest.mark.parametrize(("name", "header"), headers(), ids=lambda value: value if value.endswith(".html") else "")
def test_what_a_template_says_of_its_page_is_so(name: str, header: str) -> None:
    for dotted in _GIVER.findall(header):
        assert resolves(dotted), f"{dotted}: name it in full, as it is imported"
    if "Takes page from" not in header or ":" not in header:
        return
    told = header.partition(": ")[2]
    while (shorter := re.sub(r"[\[{(][^\[\]{}()]*[\])}]", "", told)) != told:
        told = shorter
    promised = {word for part in re.split(r",|;| or ", told) if (word := part.strip().partition(" ")[0])}
    used = set(re.findall(r"(?<![.\w])page\.([a-z_]+)", (PROJECT / name).read_text()))
    assert promised == used


def comments(name: str, text: str) -> Iterator[str]:
    """Docstrings and comments of a module."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (told := ast.get_docstring(node)):
            yield told
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value
    yield from (line.partition("# ")[2] for line in text.splitlines() if line.lstrip().startswith("# "))


def test_every_module_that_docstrings_comments_and_pages_name_exists() -> None:
    told = [
        (name, dotted)
        for name, text in texts(".py", ".md")
        for part in ([text] if name.endswith(".md") else comments(name, text))
        for dotted in _DOTTED.findall(part)
        if "/migrations/" not in name
    ]

    assert len(told) > 30
    assert {(name, dotted) for name, dotted in told if dotted not in sent() and not resolves(dotted)} == set()


def test_the_map_has_one_line_for_each_module() -> None:
    modules = {
        name
        for name in tracked()
        if name.endswith(".py") and name.startswith(tuple(f"{room}/" for room in ROOMS)) and "/migrations/" not in name
    }
    told = (PROJECT / "CONTRIBUTING.md").read_text()
    the_map = told.partition("## The map")[2].partition("## Five changes")[0]
    listed = re.findall(r"^\| `(\w[\w/]+\.py)` \| [^|]+ \|$", the_map, re.M)
    named = re.findall(r"`((?:templates|tests|docs|%s)/[\w./-]*)`" % "|".join(ROOMS), told)  # noqa: UP031

    assert sorted(listed) == sorted(name for name in modules if not name.endswith(("__init__.py", "apps.py")))
    assert [name for name in named if lost("CONTRIBUTING.md", name.rstrip("/"))] == []
