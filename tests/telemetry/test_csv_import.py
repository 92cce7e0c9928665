"""CSV in the admin: a preview of what would change, the import, a file of what was refused."""

import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from decisioning.access.models import Team
from experiments.models import Experiment, Metric, Variant
from telemetry.csv_import import FileRefused, load
from telemetry.models import ExperimentKpi, Source
from tests.api.warehouse import bind
from tests.conftest import as_role

URL = "/admin/telemetry/source/import/"
TOP = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


@pytest.fixture
def person(team: Team, settings: Any) -> Client:
    settings.STATIC_ROOT.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    with as_role("owner"):
        Metric.objects.create(key="vrps", name="Value per session", created_at=now)
        made = Experiment.objects.create(
            key="checkout", name="Checkout", hypothesis="h", owner="o", team=team, status="running", created_at=now, started_at=TOP
        )  # fmt: skip
        Variant.objects.create(experiment=made, team=team, key="control", control=True, position=0)
        admin = User.objects.create_superuser("ada", "ada@example.org", "x")
    client = Client()
    client.force_login(admin)
    return client


def line(hours_ago: int, value: str, experiment: str = "checkout") -> str:
    return f"{experiment},vrps,control,{(TOP - timedelta(hours=hours_ago)).isoformat()},{value},10,2.0"


def upload(
    person: Client, team: Team, *lines: str, header: str = "experiment,metric,variant,ts,value,n,variance"
) -> Any:
    text = "\n".join([header, *lines]).encode()
    return person.post(URL, {"team": team.pk, "file": SimpleUploadedFile("rows.csv", text)})


def stored() -> list[float]:
    with as_role("worker"):
        return list(ExperimentKpi.objects.order_by("-ts").values_list("value", flat=True))


def test_a_file_is_shown_before_it_is_stored_and_refused_lines_come_back(person: Client, team: Team) -> None:
    first = upload(person, team, line(1, "3.5"), line(2, "4.5"))
    assert (first.context["outcome"].accepted, stored()) == (2, [])
    done = person.post(URL, {"held": first.context["held"], "import": "1"})
    assert (done.status_code, stored()) == (302, [3.5, 4.5])

    second = upload(person, team, line(1, "3.75"), line(2, "4.5"), line(3, "x"), line(4, "1", "nowhere"), "=1+1,,,,,,")
    outcome = second.context["outcome"]
    assert (outcome.accepted, outcome.changed, outcome.duplicates) == (0, 1, 1)
    assert [(c.before, c.after) for c in outcome.changes] == [({"value": 3.5}, {"value": 3.75})]
    assert [r.line for r in outcome.refused] == [4, 5, 6]
    assert stored() == [3.5, 4.5], "a preview stores nothing"
    file = person.post(URL, {"held": second.context["held"], "refused": "1"})
    lines = file.content.decode().splitlines()
    assert lines[0] == "line,problem,experiment,metric,variant,ts,value,n,variance"
    assert [text.split(",")[0] for text in lines[1:]] == ["4", "5", "6"]
    assert "'=1+1" in lines[3]
    person.post(URL, {"held": second.context["held"], "import": "1"})
    assert stored() == [3.75, 4.5]


def test_the_preview_lists_the_rows_that_the_import_will_change_and_no_other(person: Client, team: Team) -> None:
    header = "experiment,metric,variant,ts,value,n,variance,revision"
    first = upload(person, team, *(f"{line(h, '3.5')},5" for h in (1, 2)), line(3, "3.5") + ",", header=header)
    person.post(URL, {"held": first.context["held"], "import": "1"})

    lower, higher = f"{line(1, '9.5')},4", f"{line(2, '4.5')},6"
    units = line(3, "3.5").replace(",10,", ",5000,") + ","
    outcome = upload(person, team, lower, higher, f"{line(2, '8.5')},5", units, header=header).context["outcome"]

    assert (outcome.changed, len(outcome.changes)) == (2, 2)
    assert [(c.before, c.after) for c in outcome.changes] == [
        ({"n": 10}, {"n": 5000}),
        ({"value": 3.5, "revision": 5}, {"value": 4.5, "revision": 6}),
    ]


@pytest.mark.parametrize("header", ["experiment,metric,ts", 'experiment,"metric', ""])
def test_what_is_no_csv_of_rows_says_what_is_missing(person: Client, team: Team, header: str) -> None:
    response = upload(person, team, header=header)
    assert response.status_code == 200
    assert response.context["form"].errors


def test_a_held_file_cannot_be_made_up(person: Client, team: Team) -> None:
    assert person.post(URL, {"held": "anything", "import": "1"}).status_code == 302
    assert stored() == []


def test_nobody_imports_for_a_team_that_is_not_theirs(person: Client, team: Team) -> None:
    page = upload(person, team, line(1, "3.5"))
    with as_role("owner"):
        other = User.objects.create_user("eve", "eve@example.org", "x", is_staff=True)
    stranger = Client()
    stranger.force_login(other)
    assert stranger.post(URL, {"held": page.context["held"], "import": "1"}).status_code == 403
    assert stored() == []


def test_the_list_of_sources_leads_to_the_import(person: Client) -> None:
    assert URL in person.get("/admin/telemetry/source/").content.decode()
    assert person.get(URL).status_code == 200


def test_a_source_made_here_is_checked_and_tried_out(
    person: Client, team: Team, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.SOURCES_DIR = tmp_path
    bind(team, folder="rows.csv")
    header = "experiment,metric,variant,ts,value,n,variance"
    (tmp_path / "rows.csv").write_text("\n".join([header, line(1, "3.5")]))
    said = {
        "key": "exports", "team": team.pk, "kind": "file", "path": "rows.csv", "schedule_s": 900, "overlap_s": 0, "time_limit_s": 5, "step_s": 60,
        "query": "SELECT * FROM rows WHERE ts > :since AND ts <= :until", "metrics": "vrps", "enabled": "on",
        "due_at_0": "2026-11-24", "due_at_1": "06:00:00",
    }  # fmt: skip
    refused = person.post("/admin/telemetry/source/add/", {**said, "path": "../secret.csv"})
    assert "not below the folder" in refused.content.decode()
    assert person.post("/admin/telemetry/source/add/", said).status_code == 302
    with as_role("owner"):
        made = Source.objects.get()
    tried = person.post(
        "/admin/telemetry/source/", {"action": "try_out", "_selected_action": [made.pk]}, follow=True
    ).content.decode()
    assert "1 new, 0 changed, 0 duplicate and 0 refused rows." in tried
    assert stored() == []

    for module in ("files", "preview"):
        monkeypatch.setattr(f"telemetry.sources.{module}.CHUNK", 5_000)
    many = [line(1, "3.5").replace(":00:00", f":{n // 60:02}:{n % 60:02}") for n in range(3_600)]
    (tmp_path / "rows.csv").write_text("\n".join([header, *many, *(row.replace("control", "nobody") for row in many)]))
    tried = person.post(
        "/admin/telemetry/source/", {"action": "try_out", "_selected_action": [made.pk]}, follow=True
    ).content.decode()
    assert "3600 new, 0 changed, 0 duplicate and 1400 refused rows, in the first part alone." in tried


def test_saving_a_source_shows_what_its_first_rows_are_understood_as_and_what_looks_wrong(
    person: Client, team: Team, tmp_path: Path, settings: Any
) -> None:
    settings.SOURCES_DIR = tmp_path
    bind(team, folder="rows.csv")
    newest = datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(hours=2)
    at = [newest - timedelta(hours=hours) for hours in (3, 4)] + [newest]
    shares = [(0.25, 8), (0.75, 8), (0.5, 4)]
    rows = [
        f"checkout,control,{ts.isoformat()},{p},{n},{p * (1 - p)},blue" for ts, (p, n) in zip(at, shares, strict=True)
    ]
    (tmp_path / "rows.csv").write_text("\n".join(["Experiment,VARIANT,ts,value,users,variance,colour", *rows]))
    said = {
        "key": "shares", "team": team.pk, "kind": "file", "path": "rows.csv", "schedule_s": 900, "overlap_s": 0, "time_limit_s": 5, "step_s": 60,
        "query": "SELECT * FROM rows WHERE ts > :since", "metrics": "vrps", "columns": '{"users": "n"}', "due_at_0": "2026-11-24", "due_at_1": "06:00:00",
    }  # fmt: skip
    assert "it has no :until" in person.post("/admin/telemetry/source/add/", said).text

    said["query"] = "SELECT * FROM rows WHERE ts > :since AND :until < '2100-01-01'"
    saved = person.post("/admin/telemetry/source/add/", said, follow=True)

    (told,) = [str(message) for message in saved.context["messages"] if "shares since" in str(message)]
    assert "2 new, 0 changed, 0 duplicate and 1 refused rows" in told
    assert f"vrps: 3 rows, n 20, mean 0.5, standard deviation 0.25, newest {newest:%Y-%m-%d %H:%MZ}." in told
    assert "Left out: colour." in told
    assert f"Times look local: the newest, {newest:%Y-%m-%d %H:%MZ}, is " in told
    assert "Variances look like a population's" in told
    assert (
        f"First: experiment checkout, metric vrps, variant control, ts {at[0]:%Y-%m-%d %H:%MZ}, value 0.25, n 8, variance 0.1875"
        in told
    )
    assert "mean 0.5, standard deviation 0.25" in saved.text, "the person sees it"
    assert stored() == []


def test_a_file_that_names_a_column_twice_is_refused(person: Client, team: Team) -> None:
    answer = upload(person, team, header="experiment,metric,variant,ts,value,Value")
    assert "The first line names value twice." in answer.content.decode()


def test_float_dust_in_a_file_is_rounded_and_what_nothing_can_be_computed_with_is_refused_by_its_line(
    person: Client, team: Team
) -> None:
    file = upload(person, team, line(1, "3.5").replace(",2.0", ",-7e-15"), line(2, "1e200"), line(3, "1e-200"))
    outcome = file.context["outcome"]
    assert outcome.accepted == 1
    assert [(bad.line, bad.problem.split(";")[0]) for bad in outcome.refused] == [
        (3, "value is 1e+200"),
        (4, "value is 1e-200"),
    ]


def test_a_line_with_more_or_fewer_cells_than_the_first_has_names_is_refused_by_its_number(
    person: Client, team: Team
) -> None:
    file = upload(person, team, line(1, "3.5"), line(2, "4.5,9"), line(3, "5").removesuffix(",10,2.0"), "")
    outcome = file.context["outcome"]
    assert outcome.accepted == 1
    assert [(bad.line, bad.problem) for bad in outcome.refused] == [
        (3, "The line has 8 cells, the first line 7 names."),
        (4, "The line has 5 cells, the first line 7 names."),
    ]


def test_a_number_is_one_as_it_is_over_http_and_a_line_of_blanks_says_nothing(person: Client, team: Team) -> None:
    outcome = upload(person, team, line(1, "1_000"), "   ", line(2, "1e3"), "").context["outcome"]

    assert outcome.accepted == 1
    assert [(refused.line, refused.problem) for refused in outcome.refused] == [
        (2, "value is '1_000'; it must be a finite number.")
    ]


_HEAD = "experiment,metric,variant,ts,value,n,variance"
_ROW = "shop,m,a,2026-01-01T00:00:00Z,1,1,1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_HEAD + "\n" + "a,b\n" * 1_000_000, "More than 10,000 rows"),
        (_HEAD + "," + ",".join(f"c{n}" for n in range(1_000)) + "\n" + (_ROW + ",ab" * 1_000 + "\n") * 1_200, "More than 300,000 cells"),
        (_HEAD + "\n" + "ab," * 1_300_000, "Line 2 has 3,900,000 characters"),
        (_HEAD + "\n" + "\U0001f600,b\n" * 600_000, "More than 10,000 rows"),
        (",".join(f"c{n}" for n in range(500_000)), "Line 1 has"),
    ],
    ids=["short lines", "many columns", "a wide line", "wide characters", "names"],
)  # fmt: skip
def test_a_preview_of_four_megabytes_takes_at_most_64_whatever_is_in_them(text: str, said: str, team: Team) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FileRefused, match=said) as refusal:
            load(text, team=team, now=TOP, keep=False)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refusal.value.code == "too_large"
    assert most < 64 * 2**20


def test_a_preview_of_as_many_rows_as_go_in_takes_at_most_64_megabytes(person: Client, team: Team) -> None:
    lines = [_HEAD + ",note", *(f"{line(n, '3.5')},{'x' * 300}" for n in range(10_000))]
    tracemalloc.start()
    try:
        outcome = load("\n".join(lines), team=team, now=datetime.now(UTC), keep=False)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert outcome.accepted + len(outcome.refused) == 10_000
    assert most < 64 * 2**20
