"""What the board costs a person who looks at it among many experiments.

    uv run python -m tests.benchmarks.board [--experiments 1000] [--requests 60] [--home HOME]

A person signs in as a browser does and opens the board, a search, and one experiment in turns with the least page there is (the profile). Experiments are
those of `tests.benchmarks.event_to_verdict`, made where fewer than that run. p95 of each, and as times of the least page; wanted: 250 ms for the board.
"""

import re
import time

import httpx

from tests.benchmarks.event_to_verdict import prepare
from tests.benchmarks.scene import Scene, p95, parser, say, scene


def signed_in(on: Scene) -> httpx.Client:
    """The admin's session."""
    client = httpx.Client(base_url=on.url, timeout=60)
    credentials = on.installation.credentials()
    form = client.get("/sign-in").text
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', form)
    if token is None:
        raise RuntimeError("The sign-in page has no form.")
    sent = {
        "csrfmiddlewaretoken": token[1],
        "username": credentials["admin_user"],
        "password": credentials["admin_password"],
    }
    if client.post("/sign-in", data=sent).status_code != 302:
        raise RuntimeError("The admin could not sign in.")
    return client


def main() -> None:
    known = parser(__doc__)
    known.add_argument("--experiments", type=int, default=1_000)
    known.add_argument("--requests", type=int, default=60)
    arguments = known.parse_args()
    with scene(arguments) as on:
        caller = on.caller()
        listed = caller.json("GET", "/api/experiments?limit=200")
        held = len(listed["results"])
        while listed["next"] and held < arguments.experiments:
            listed = caller.json("GET", listed["next"].removeprefix(on.url))
            held += len(listed["results"])
        if held < arguments.experiments:
            prepare(on, arguments.experiments - held)
            time.sleep(20)  # the first looks are judged
        one = on.caller().json("GET", "/api/experiments?limit=1")["results"][0]["key"]
        pages = {"least": "/profile", "board": "/", "search": "/?q=bench", "experiment": f"/experiments/{one}"}
        taken: dict[str, list[float]] = {name: [] for name in pages}
        client = signed_in(on)
        for turn in range(arguments.requests + 3):
            for name, path in pages.items():
                began = time.perf_counter()
                answer = client.get(path)
                if answer.status_code != 200:
                    raise RuntimeError(f"{path}: {answer.status_code}")
                if turn >= 3:
                    taken[name].append(time.perf_counter() - began)
        least = p95(taken["least"])
        say(f"{max(held, arguments.experiments):,} experiments")
        for name, values in taken.items():
            say(f"{name:>10}: p95 {p95(values) * 1000:6.0f} ms, {p95(values) / least:.1f} times the least page")


if __name__ == "__main__":
    main()
