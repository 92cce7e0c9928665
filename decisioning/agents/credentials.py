"""Where the terminal and the MCP server find the portal and their key."""

import json
import os
from pathlib import Path

import typer

type Known = tuple[str, str]
"""(address, key)."""


class Unknown(Exception):
    """There is no address, or no key for it; the message says what to do."""


def find() -> Known:
    """The environment wins, then the installation in DECISIONING_HOME, then `decisioning login`, then one in .data.

    A kept key goes to the address it was kept with and to no other. Raises Unknown.
    """
    url, key = os.environ.get("DECISIONING_URL", "").rstrip("/"), os.environ.get("DECISIONING_API_KEY", "")
    if url and key:
        return url, key
    home = os.environ.get("DECISIONING_HOME")
    places = [Path(home) / "credentials.json"] if home else [kept_at(), Path(".data") / "credentials.json"]
    for kept_url, kept_key in filter(None, map(_read, places)):
        if url in ("", kept_url):
            return kept_url, key or kept_key
    if url:
        raise Unknown(f"There is no key for {url}. Set DECISIONING_API_KEY, or `decisioning login {url}`.")
    raise Unknown(
        "No portal is known. `decisioning login URL` keeps one, or set DECISIONING_URL and DECISIONING_API_KEY; "
        "`manage.py create_key` makes a key."
    )


def keep(url: str, key: str) -> Path:
    """Write both where nobody but the user can read them; returns the file."""
    file = kept_at()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump({"url": url.rstrip("/"), "api_key": key}, out)
    fresh.replace(file)
    return file


def kept_at() -> Path:
    """The file of `decisioning login`, in the user's own configuration folder."""
    return Path(typer.get_app_dir("decisioning")) / "credentials.json"


def _read(file: Path) -> Known | None:
    try:
        kept = json.loads(file.read_text())
        return str(kept["url"]).rstrip("/"), str(kept["api_key"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise Unknown(f"{file} cannot be read: {problem!r}. Mend it, or remove it and log in again.") from problem
