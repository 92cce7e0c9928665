"""`manage.py up`: one supervisor that never gives up, and a whole installation under it."""

import base64
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from decisioning import supervisor as supervisors
from decisioning import up
from decisioning.embedded import PROJECT, Home, NotStarted
from decisioning.supervisor import Interrupted, Part, Supervisor
from tests.installation import Installation, soon

# --- the supervisor, with small parts ---------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.make()
    return made


@pytest.fixture
def supervisor(home: Home) -> Iterator[Supervisor]:
    made = Supervisor(home)
    yield made
    made.stop()


def part(shell: str, *, then: Callable[[], None] | None = None, name: str = "part") -> Part:
    return Part(name, ["/bin/sh", "-c", shell], dict(os.environ), then=then, answers=lambda: True)


def pid(kept: Part) -> int:
    return kept.process.pid if kept.process else 0


def test_a_part_that_is_killed_is_started_again(supervisor: Supervisor, capsys: pytest.CaptureFixture[str]) -> None:
    supervisor.keep(kept := part("exec sleep 60"))
    first = pid(kept)
    os.kill(first, signal.SIGKILL)

    supervisor.wait(lambda: pid(kept) not in {0, first}, what="another sleep", seconds=5)
    supervisor.wait(lambda: not kept.down, what="its answer", seconds=5)

    told = capsys.readouterr().out
    assert "part was ended by SIGKILL; starting it again in 0.5 s" in told
    assert "part is back" in told


def test_a_part_that_keeps_dying_is_tried_later_and_later_and_its_last_words_are_shown(
    supervisor: Supervisor, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor.keep(kept := part("echo no disk left; exit 3"))

    supervisor.wait(lambda: kept.deaths == 3, what="three deaths", seconds=10)

    told = capsys.readouterr().out
    assert re.findall(r"ended with code 3; starting it again in (\S+) s", told) == ["0.5", "1.0", "2.0"]
    assert told.count("no disk left") == 3


def test_after_any_number_of_deaths_a_part_is_tried_again_within_half_a_minute(supervisor: Supervisor) -> None:
    supervisor.keep(kept := part("exit 1"))
    kept.deaths = 100_000

    with pytest.raises(NotStarted, match="part keeps dying"):  # at a start; `watch` goes on
        supervisor.wait(lambda: False, what="nothing", seconds=5)

    assert kept.due - time.monotonic() <= 30


def test_a_part_that_has_done_its_work_is_followed_by_the_next(supervisor: Supervisor) -> None:
    done: list[str] = []
    supervisor.keep(part("exit 0", then=lambda: done.append("laid out")))

    supervisor.wait(lambda: bool(done), what="the end", seconds=5)

    assert supervisor.parts == []


def test_children_of_a_killed_part_are_ended_before_it_starts_again(supervisor: Supervisor, home: Home) -> None:
    supervisor.keep(kept := part("sleep 60 & echo $!; wait"))
    log = home.logs / "part.log"
    supervisor.wait(lambda: log.exists() and bool(log.read_text().strip()), what="its child", seconds=5)
    child, first = int(log.read_text()), pid(kept)

    os.kill(first, signal.SIGKILL)
    supervisor.wait(lambda: pid(kept) not in {0, first}, what="another", seconds=5)

    assert soon(lambda: not Path(f"/proc/{child}/exe").exists(), 2)


def test_a_part_that_ignores_the_request_to_stop_is_killed_in_time(home: Home) -> None:
    supervisor = Supervisor(home)
    supervisor.keep(kept := part("trap '' TERM INT; echo ready; while :; do sleep 1; done"))
    supervisor.wait(lambda: (home.logs / "part.log").read_text() == "ready\n", what="its trap", seconds=5)
    began = time.monotonic()

    supervisor.stop()

    assert time.monotonic() - began < 4
    assert kept.process
    assert kept.process.poll() == -signal.SIGKILL


def test_servers_stop_after_those_who_use_them(home: Home) -> None:
    supervisor = Supervisor(home)
    noting = "trap 'date +%s%N; exit' TERM; echo ready; while :; do sleep 0.05; done"
    supervisor.keep(server := part(noting, name="server"))
    server.serves_others = True
    supervisor.keep(part(noting, name="user"))
    logs = [home.logs / "user.log", home.logs / "server.log"]
    supervisor.wait(lambda: all(log.read_text() for log in logs), what="both", seconds=5)

    supervisor.stop()

    user, last = (int(log.read_text().split()[-1]) for log in logs)
    assert user < last


def test_a_log_does_not_grow_without_bound(supervisor: Supervisor, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisors, "LOG_BYTES", 10_000)
    supervisor.keep(part("while :; do echo a line of some length, again and again; sleep 0.002; done"))
    log, older = home.logs / "part.log", home.logs / "part.log.1"

    supervisor.wait(older.exists, what="the older log", seconds=10)
    supervisor.interrupt()

    with pytest.raises(Interrupted):
        supervisor.watch()
    assert log.stat().st_size < older.stat().st_size * 10


def test_what_the_system_refuses_is_told_once_and_tried_again_and_ends_nobody(
    supervisor: Supervisor, home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "LOG_BYTES", 100)
    supervisor.keep(kept := part("while :; do echo a line of some length; sleep 0.01; done"))
    supervisor.keep(other := part("exec sleep 60", name="other"))
    (home.logs / "part.log.1").mkdir()  # nothing can be copied there
    supervisor.wait(lambda: bool(kept.hindered), what="a log that cannot be bounded", seconds=10)
    shutil.rmtree(home.logs)
    os.kill(pid(other), signal.SIGKILL)
    supervisor.wait(lambda: "other.log" in other.hindered, what="a start that fails", seconds=10)
    assert not pid(other)
    assert pid(kept)

    home.make()
    supervisor.wait(lambda: bool(pid(other)) and not other.down, what="the next try", seconds=10)

    told = capsys.readouterr().out
    assert told.count("part: [Errno") == told.count("other: [Errno") == 1


def test_a_log_for_whose_last_part_there_is_no_room_is_let_go_of_when_it_gets_much_too_long(
    supervisor: Supervisor, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisors, "LOG_BYTES", 100)
    monkeypatch.setattr(supervisors, "MOST_LOG_BYTES", 1_000)
    monkeypatch.setattr(supervisors, "LONGEST_BACKOFF_S", 0.1)
    (home.logs / "part.log.1").mkdir()
    supervisor.keep(part("while :; do echo a line of some length; sleep 0.01; done"))
    log = home.logs / "part.log"
    supervisor.wait(lambda: log.stat().st_size > 700, what="a long log", seconds=10)

    supervisor.wait(lambda: log.stat().st_size < 300, what="a short one", seconds=10)


def test_a_terminal_that_takes_no_more_words_ends_nothing(tmp_path: Path) -> None:
    program = (
        "import sys; from decisioning.embedded import Home; from decisioning.supervisor import *; h = Home(sys.argv[1]); h.make();"
        "s = Supervisor(h); s.keep(Part('part', ['/bin/sleep', '60'], {})); p = s.parts[0]; first = p.process.pid; p.process.kill()\n"
        "try: s.wait(lambda: p.process and p.process.pid != first, what='another', seconds=20); print('started again', file=sys.stderr)\n"
        "finally: s.stop()"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "home")],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.stderr.startswith("started again\n")


def test_killing_uv_run_stops_what_it_ran(tmp_path: Path) -> None:
    launcher = tmp_path / "uv"
    launcher.symlink_to("/bin/sh")
    program = (
        "from decisioning.embedded import Home; from decisioning.supervisor import *; h = Home(sys.argv[1]); h.make(); s = Supervisor(h);"
        "s.keep(Part('part', ['/bin/sleep', '60'], {})); print(s.parts[0].process.pid, flush=True)\n"
        "try: s.watch()\n"
        "finally: s.stop(); print('stopped', flush=True)"
    )
    command = [str(launcher), "-c", '"$0" "$@"; exit', sys.executable, "-c", program, str(tmp_path / "home")]
    uv = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=PROJECT)
    assert uv.stdout
    child = int(uv.stdout.readline())

    uv.kill()

    assert uv.communicate(timeout=10)[0] == "stopped\n"
    assert not Path(f"/proc/{child}/exe").exists()


def test_a_second_up_on_the_same_home_says_so_and_stops(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert home.claim()
    home.publish({"DECISIONING_URL": "http://127.0.0.1:8123"})

    assert up.main(["--home", str(home.path)]) == 1

    assert f"An installation already runs in {home.path}: http://127.0.0.1:8123" in capsys.readouterr().out


def test_servers_of_the_environment_are_used_and_each_role_needs_its_login(
    home: Home, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, url in {"DATABASE_URL": "postgresql://web@db/x", "REDIS_URL": "redis://cache"}.items():
        monkeypatch.setenv(name, url)
    for name in ("DATABASE_OWNER_URL", "DATABASE_WORKER_URL"):
        monkeypatch.delenv(name, raising=False)
    made = up.Installation(home, supervisor, host="127.0.0.1", port=0, demo=True)

    with pytest.raises(NotStarted, match="DATABASE_OWNER_URL and DATABASE_WORKER_URL must be too"):
        made.start()

    assert supervisor.parts == []
    assert not list(home.path.glob("*.port"))


def test_a_port_that_another_program_has_is_named(home: Home, supervisor: Supervisor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(NotStarted, match=f"Port {port} on 127.0.0.1 is taken"):
            up.Installation(home, supervisor, host="127.0.0.1", port=port, demo=False).start()


def test_postgres_takes_the_connections_of_all_processes_asked_for(
    home: Home, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DATABASE_URL")

    def taken(web: int, worker: int) -> int:
        made = up.Installation(home, supervisor, host="127.0.0.1", port=0, demo=False, web=web, worker=worker)
        assert made.postgres
        (found,) = [word for word in made.postgres.command() if word.startswith("max_connections=")]
        return int(found.partition("=")[2])

    assert taken(1, 1) == 100
    assert taken(4, 8) >= 4 * up.WEB_THREADS + 8 * 2 + 40


@pytest.mark.parametrize("count", ["0", "-1", "33", "two"])
def test_a_number_of_processes_that_makes_no_sense_is_refused(
    count: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        up.main(["--home", str(tmp_path / "home"), "--web", count])

    assert "--web" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


# --- a whole installation ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("installation") / "home")
    made.start()
    yield made
    made.stop()


def test_the_first_start_prints_what_a_person_needs_and_keeps_it_private(installation: Installation) -> None:
    held, printed = installation.credentials(), "".join(installation.printed)

    assert {"url", "admin_user", "admin_password", "api_key"} == held.keys()
    assert all(value in printed for value in held.values())
    assert stat.S_IMODE((installation.home / "credentials.json").stat().st_mode) == 0o600
    assert httpx.get(f"{held['url']}/readyz").status_code == 200
    assert installation.api(held["api_key"]) == 200


def test_no_secret_is_in_a_log_or_on_a_command_line(installation: Installation) -> None:
    secrets = {file.read_text() for file in installation.home.glob("*.secret")}
    secrets |= {installation.credentials()["admin_password"], installation.credentials()["api_key"]}
    seen = "".join(file.read_text() for file in (installation.home / "logs").iterdir())
    seen += "".join(installation.processes().values())

    assert len(secrets) > 5
    assert not [secret for secret in secrets if secret in seen]


def test_the_id_of_a_request_is_in_the_logs_of_web_and_worker_and_in_the_audit(installation: Installation) -> None:
    held, name = installation.credentials(), "look-for-me"
    headers = {"Authorization": f"Bearer {held['api_key']}", "X-Request-ID": name}
    target: dict[str, Any] = {"metric": "traced", "role": "goal"}
    body = {"key": name, "name": name, "hypothesis": "It is found.", "target_kpis": [target]}
    row = {"metric": "traced", "variant": "control", "ts": datetime.now(UTC).isoformat(), "value": 1, "n": 9}
    with httpx.Client(base_url=held["url"], headers=headers, timeout=10) as api:
        api.post("/api/experiments", json=body).raise_for_status()
        answer = api.post(f"/api/experiments/{name}/kpis", json={"rows": [row | {"variance": 1.0}]}).raise_for_status()

    def lines(process: str) -> list[dict[str, Any]]:
        written = (installation.home / "logs" / f"{process}.log").read_text().splitlines()
        return [json.loads(line) for line in written if line.startswith("{")]

    def ticks() -> list[dict[str, Any]]:
        found = [line for line in lines("workers") if name in line.get("woken_by", [])]
        return [
            line for line in found if line["message"].startswith("Task gates.tick[") and "succeeded" in line["message"]
        ]

    assert answer.headers["X-Request-ID"] == name
    assert soon(lambda: bool(ticks()), 40), "no tick says that this request woke it"
    asked = [line["message"] for line in lines("web") if line.get("cause") == name]
    with psycopg.connect(installation.manage("dsn", "--role", "superuser").stdout.strip()) as database:
        by_request = database.execute("SELECT count(*) FROM audit.entries WHERE cid = %s", [name]).fetchone()
    assert f"POST /api/experiments/{name}/kpis 200" in asked
    assert by_request is not None
    assert by_request[0] >= 2, "the experiment and the batch of rows"
    assert ticks()[0]["cause"] != name, "a task has an id of its own, which the audit keeps for what it writes"


def test_bodies_that_nest_thousands_deep_are_refused_and_the_web_process_lives_on(installation: Installation) -> None:
    held = installation.credentials()
    headers = {"Authorization": f"Bearer {held['api_key']}", "Content-Type": "application/json"}
    deep = base64.b64encode(b"[" * 30_000 + b"]" * 30_000).decode()
    hidden = {
        "specversion": "1.0",
        "id": "1",
        "source": "shop",
        "type": "decisioning.metric.observed.v1",
        "data_base64": deep,
    }
    with httpx.Client(base_url=held["url"], headers=headers, timeout=10) as api:
        for path in ("experiments", "experiments/none/kpis", "events", "sources"):
            for body in (b"[" * 8_000, b'{"rows": [], "x": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"):
                assert api.post(f"/api/{path}", content=body).status_code in (400, 404, 415), path
        kind = {"Content-Type": "application/cloudevents+json"}
        assert api.post("/api/events", json=hidden, headers=kind).status_code == 422

    assert "Unexpected exit" not in (installation.home / "logs" / "web.log").read_text()


def test_no_process_has_the_database_login_of_another_role(installation: Installation) -> None:
    superuser = (installation.home / "superuser.secret").read_text()
    owner = (installation.home / "owner.secret").read_text()
    for number in installation.processes():
        environment = Path(f"/proc/{number}/environ").read_text()
        assert superuser not in environment
        assert owner not in environment


def test_a_command_in_a_second_terminal_joins_what_runs(installation: Installation) -> None:
    migrations = installation.manage("showmigrations", "--plan")
    assert migrations.returncode == 0, migrations.stderr
    assert "[X]" in migrations.stdout
    assert "[ ]" not in migrations.stdout

    with psycopg.connect(installation.manage("dsn", "--role", "superuser").stdout.strip()) as connection:
        assert connection.info.user == "postgres"


@pytest.mark.faults
def test_it_comes_back_after_each_of_its_processes_was_killed(installation: Installation) -> None:
    key, url = installation.credentials()["api_key"], installation.credentials()["url"]
    for what in ("bin/postgres", "valkey-server", "granian asgi", "celeryd: worker", "celeryd: courier", "run_celery"):
        os.kill(installation.find(what)[0], signal.SIGKILL)

    def works() -> bool:
        try:
            ready = httpx.get(f"{url}/readyz", timeout=3)
        except httpx.HTTPError:
            return False
        return ready.status_code == 200 and ready.json()["broker"] == "ok" and installation.api(key) == 200

    assert soon(works, 60)
    assert soon(lambda: sum("celery" in line for line in installation.processes().values()) >= 3, 30)


@pytest.mark.faults
def test_kill_9_of_the_supervisor_leaves_no_orphan_and_the_next_start_keeps_everything(
    installation: Installation,
) -> None:
    before = installation.credentials()
    installation.stop(signal.SIGKILL)
    assert soon(lambda: not installation.processes(), 10), installation.processes()
    assert "Nothing runs" in installation.manage("showmigrations").stderr

    installation.start()

    assert installation.credentials() | {"url": ""} == before | {"url": ""}
    assert before["admin_password"] not in "".join(installation.printed)
    assert installation.api(before["api_key"]) == 200


def test_ctrl_c_ends_all_of_it_within_five_seconds(installation: Installation) -> None:
    assert installation.stop() < 5
    assert installation.processes() == {}


@pytest.mark.faults
def test_lost_credentials_are_replaced_and_the_old_key_is_no_longer_good(installation: Installation) -> None:
    before = installation.credentials()
    installation.stop()
    (installation.home / "credentials.json").unlink()

    installation.start()

    assert installation.api(installation.credentials()["api_key"]) == 200
    assert installation.api(before["api_key"]) == 401
