"""kill -9 of each process while rows come in, gates judge and changes are told: nothing is lost, doubled, cut in half or passed over."""

import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest

from decisioning.embedded import Home, Postgres
from tests.faults.conftest import STARTED, create, installed, parent, row
from tests.installation import Installation, soon
from tests.ledger.receiver import Receiver, receiving

pytestmark = pytest.mark.faults
BATCH = 20
SLOT_S = 5
TRIED = 3  # evaluations on record, below which a run says nothing
TOLD = ["experiment.changed", "decision.proposed"]
POLICY = {
    "slot_s": SLOT_S, "look_s": 10, "closed_after_s": 0, "persist": 1, "min_days": 0, "min_units": 10,
    "gates": [
        {"name": "{metric}_uplift", "kind": "uplift", "for": "goal", "effect": "relative", "scale_above": 0.0, "delete_below": "plan"},
        {"name": "cap", "kind": "threshold", "metric": "load", "at_most": 0.5, "times": 1},
    ],
}  # fmt: skip
FRESH = {"expected_every_s": 5, "freshness_target_s": 10}
METRICS = [
    {"key": "speed", "name": "Speed", "kind": "mean", "direction": "increase"} | FRESH,
    {"key": "load", "name": "Load", "kind": "gauge"} | FRESH,
]

# What is killed, and how often in a row.
VICTIMS = {"postgres": 5, "valkey": 5, "web": 10, "web's child": 3, "worker": 10, "worker's child": 3, "courier": 2}  # fmt: skip
LINES = {
    "postgres": "bin/postgres", "valkey": "valkey-server", "web": "granian asgi", "worker": "celeryd: worker",
    "courier": "celeryd: courier",
}  # fmt: skip


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    home = tmp_path_factory.mktemp("kills") / "home"
    with installed(home, DECISIONING_OUTBOUND_ALLOW="127.0.0.0/8") as made:
        yield made


@pytest.fixture(scope="module")
def hooked(installation: Installation, fast_key: str) -> Iterator[Receiver]:
    """Whoever is told of every change, from the beginning. The policy that judges every five seconds is there, too."""
    url = installation.credentials()["url"]
    with (
        receiving() as receiver,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {fast_key}"}, timeout=20) as api,
    ):
        api.post("/api/webhooks", json={"url": receiver.url, "events": TOLD}).raise_for_status()
        for metric in METRICS:
            api.post("/api/metrics", json=metric).raise_for_status()
        made = api.post("/api/policies", json={"name": "restless", "body": POLICY})
        assert made.status_code == 201, made.text
        yield receiver


@dataclass
class Client:
    """Somebody who goes on, whatever becomes of the portal."""

    api: httpx.Client
    key: str
    unanswered: int = 0

    def run(self, done: threading.Event) -> None:
        raise NotImplementedError

    def post(self, path: str, body: object) -> bool:
        """Whether it was acknowledged."""
        try:
            answer = self.api.post(f"/api/experiments/{self.key}/{path}", json=body)
        except httpx.HTTPError:
            self.unanswered += 1
            return False
        if answer.status_code in {429, 502, 503}:
            self.unanswered += 1
        else:
            assert answer.status_code == 200, answer.text
        return answer.status_code == 200


@dataclass
class Poster(Client):
    """Posts batches of new rows without a pause; what got no answer is posted again, as clients do."""

    acknowledged: dict[str, float] = field(default_factory=dict)

    def run(self, done: threading.Event) -> None:
        number = 0
        while not done.is_set():
            rows = [row(number + offset) for offset in range(BATCH)]
            while not self.post("kpis", {"rows": rows}):
                if done.wait(0.05):
                    return
            self.acknowledged |= {sent["ts"]: sent["value"] for sent in rows}
            number += BATCH


@dataclass
class Live(Client):
    """Sends what is measured just now, a load that rises and falls across its limit: a verdict changes every few slots."""

    sent: int = 0

    def run(self, done: threading.Event) -> None:
        while not done.wait(0.5):
            now = datetime.now(UTC)
            high = int(now.timestamp()) % 40 < 20
            rows = [
                {"metric": metric, "variant": variant, "ts": now.isoformat(), "value": value}
                | ({"n": 50, "variance": 1.0} if metric == "speed" else {})
                for variant in ("control", "treatment")
                for metric, value in (("speed", random.gauss(1, 0.1)), ("load", 0.9 if high else 0.1))
            ]
            self.sent += self.post("kpis", {"rows": rows})


@dataclass
class Mover(Client):
    """Pauses and starts an experiment again and again."""

    moved: int = 0

    def run(self, done: threading.Event) -> None:
        now = "running"
        while not done.wait(0.5):
            now = "paused" if now == "running" else "running"
            try:
                answer = self.api.post(f"/api/experiments/{self.key}/transitions", json={"to": now})
            except httpx.HTTPError:
                continue
            self.moved += answer.status_code == 200  # 409: it had been done, and the answer was lost


@dataclass
class Load:
    """Everybody at once, on experiments of their own."""

    poster: Poster
    live: Live
    mover: Mover


@contextmanager
def load(installation: Installation, key: str, number: int) -> Iterator[Load]:
    held, done = installation.credentials(), threading.Event()
    with httpx.Client(base_url=held["url"], headers={"Authorization": f"Bearer {key}"}, timeout=5) as api:
        made = Load(Poster(api, f"rows-{number}"), Live(api, f"live-{number}"), Mover(api, f"told-{number}"))
        create(api, made.poster.key)
        create(api, made.mover.key)
        judged_often(api, made.live.key)
        threads = [threading.Thread(target=client.run, args=[done]) for client in (made.poster, made.live, made.mover)]
        for thread in threads:
            thread.start()
        try:
            yield made
        finally:
            done.set()
            for thread in threads:
                thread.join()


def judged_often(api: httpx.Client, key: str) -> None:
    body = {
        "key": key, "name": key, "hypothesis": "No slot is passed over.", "policy": "restless",
        "started_at": (datetime.now(UTC) - timedelta(seconds=30)).isoformat(),
        "target_kpis": [{"metric": "speed", "role": "goal", "minimum_effect": 0.02}, {"metric": "load", "role": "shown"}],
    }  # fmt: skip
    answer = api.post("/api/experiments", json=body)
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize(("victim", "times"), VICTIMS.items())
def test_whoever_is_killed_nothing_is_lost_doubled_or_passed_over(
    installation: Installation, api: httpx.Client, fast_key: str, hooked: Receiver, victim: str, times: int
) -> None:
    number = list(VICTIMS).index(victim)
    with load(installation, fast_key, number) as clients:
        assert soon(lambda: len(clients.poster.acknowledged) >= 100 and _evaluations(installation, number) > 1, 60)
        for _ in range(times):
            assert soon(lambda: bool(_victims(installation, victim)), 90), "".join(installation.printed)
            os.kill(_victims(installation, victim)[0], signal.SIGKILL)
            killed, before = datetime.now(UTC), len(clients.poster.acknowledged)
            assert soon(lambda before=before: len(clients.poster.acknowledged) >= before + 100, 90)  # type: ignore[misc]
            if victim.startswith(("worker", "beat")):  # the next one is killed at its work, not while it loads
                assert soon(lambda killed=killed: _beat(installation) > killed, 120)  # type: ignore[misc]
            time.sleep(random.uniform(0, 2))
        assert soon(lambda: _evaluations(installation, number) > TRIED, 180), (
            "no verdict ever changed: nothing was tried"
        )
    ended = datetime.now(UTC)

    assert soon(
        lambda: api.get("/readyz").json() == {"database": "ok", "writes": "ok", "broker": "ok", "tick": "ok"}, 90
    )
    assert soon(lambda: _beat(installation) > ended + timedelta(seconds=SLOT_S), 120)
    said = [_rows(api, clients.poster), _slots(installation, number), _told(installation, hooked, clients.mover)]
    print(f"\n{times} x kill -9 {victim}: " + "\n  ".join(said))


def _rows(api: httpx.Client, poster: Poster) -> str:
    """Each acknowledged row is there once, each batch as a whole."""
    rows = stored(api, poster.key)
    batches = Counter(batch for batch, _ in (divmod(_number(ts), BATCH) for ts, _ in rows))
    half = sum(count != BATCH for count in batches.values())
    lost, doubled = poster.acknowledged.items() - dict(rows).items(), len(rows) - len(dict(rows))
    assert not lost, "an acknowledged row is missing or another"
    assert not doubled, "a row is there twice"
    assert not half, "half of a batch is there"
    return (
        f"{len(poster.acknowledged)} rows acknowledged, {poster.unanswered} batches sent again; "
        f"lost {len(lost)}, doubled {doubled}, half batches {half}"
    )


def _slots(installation: Installation, number: int) -> str:
    """What the gates have on record and keep is what a fold of all rows gives, and no slot is on record twice in one fold."""
    with _database(installation) as connection:
        count, twice, folds, proposals, told, first, last = connection.execute(
            """
            SELECT count(*), count(*) - count(DISTINCT (v.slot, v.fold)), max(v.fold),
              (SELECT count(*) FROM metadata.recommendations WHERE experiment_id = e.id),
              (SELECT count(*) FROM audit.outbox WHERE experiment_id = e.id AND type = 'decision.proposed'),
              e.started_at, (SELECT judged_to FROM metadata.cursors WHERE experiment_id = e.id)
            FROM metadata.experiments e JOIN metadata.evaluations v ON v.experiment_id = e.id WHERE e.key = %s GROUP BY e.id
            """,
            [f"live-{number}"],
        ).fetchall()[0]
    rebuilt = installation.manage("rebuild", "--experiment", f"live-{number}")
    everything = installation.manage("rebuild")
    assert not twice, "a slot was judged twice in one fold"
    assert proposals == told, "a proposal was told twice, or not at all"
    assert rebuilt.returncode == 0, rebuilt.stdout + rebuilt.stderr
    assert everything.returncode == 0, everything.stdout + everything.stderr
    slots = (last - first) // timedelta(seconds=SLOT_S)
    return (
        f"{slots} slots of {SLOT_S} s judged, {count} on record in {folds} folds, {twice} twice in a fold, "
        f"{proposals} proposals; {everything.stdout.strip()}"
    )


def _told(installation: Installation, receiver: Receiver, mover: Mover) -> str:
    """Every message that was put down has arrived, and every acknowledged change was put down."""

    def missing() -> set[str]:
        with _database(installation) as connection:
            found = connection.execute("SELECT id FROM audit.outbox WHERE type = ANY (%s)", [TOLD])
            return {f"msg_{pk}" for (pk,) in found} - set(receiver.ids)

    with _database(installation) as connection:
        moves = connection.execute(
            """
            SELECT data ->> 'from', data ->> 'to' FROM audit.outbox WHERE type = 'experiment.changed'
            AND experiment_id = (SELECT id FROM metadata.experiments WHERE key = %s) ORDER BY id
            """,
            [mover.key],
        ).fetchall()
    assert len(moves) > mover.moved, "an acknowledged change was not put down"
    assert all(one[1] == other[0] for one, other in itertools.pairwise(moves)), "a change is there twice"
    assert soon(lambda: not missing(), 120), f"never arrived: {sorted(missing())[:5]}"
    return f"{mover.moved} moves acknowledged, {len(moves)} put down; lost 0 of {len(set(receiver.ids))} messages, {len(receiver.got)} calls"


def stored(api: httpx.Client, key: str) -> list[tuple[str, float]]:
    """Every stored row."""
    found: list[tuple[str, float]] = []
    url: str | None = f"/api/experiments/{key}/kpis?limit=10000"
    while url:
        answer = api.get(url).raise_for_status()
        assert "Warning" not in answer.headers, "a copy proves nothing"
        page = answer.json()
        found += [(datetime.fromisoformat(row["ts"]).isoformat(), row["value"]) for row in page["results"]]
        url = page["next"]
    return found


def _victims(installation: Installation, victim: str) -> list[int]:
    """Who is to be killed now; of children the youngest first."""
    name, _, child = victim.partition("'s ")
    found = installation.find(LINES[name])
    return [pid for pid in reversed(found) if parent(pid) in found] if child else found[:1]


def _number(ts: str) -> int:
    return int((datetime.fromisoformat(ts) - STARTED).total_seconds()) - 1


@contextmanager
def _database(installation: Installation) -> "Iterator[psycopg.Connection[Any]]":
    with psycopg.connect(Postgres(Home(installation.home)).dsn("superuser")) as connection:
        yield connection


def _tried(ask: Callable[[psycopg.Connection[Any]], Any], installation: Installation) -> Any:
    """What the database says; None while it is away."""
    try:
        with _database(installation) as connection:
            return ask(connection)
    except psycopg.OperationalError:
        return None


def _beat(installation: Installation) -> datetime:
    """When the evaluation last finished."""
    asked = "SELECT at FROM audit.heartbeats WHERE name = 'gates.tick'"
    found = _tried(lambda connection: connection.execute(asked).fetchone(), installation)
    return found[0] if found else datetime.min.replace(tzinfo=UTC)


def _evaluations(installation: Installation, number: int) -> int:
    asked = "SELECT count(*) FROM metadata.evaluations v JOIN metadata.experiments e ON e.id = v.experiment_id WHERE e.key = %s"
    found = _tried(lambda connection: connection.execute(asked, [f"live-{number}"]).fetchone(), installation)
    return int(found[0]) if found else 0
