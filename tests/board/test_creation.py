"""Creating on the board: under a minute, with what is wrong said at its field and the duration said before the start."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from decisioning.access.models import Membership, Team
from decisioning.board.forms import ExperimentForm
from experiments.feeds import set_out
from experiments.models import Experiment, Metric, TargetKpi, Variant
from gates.engine.policy import DEFAULT_BODY
from gates.models import Policy, PolicyBinding, PolicyVersion
from tests.board.scenes import Scene
from tests.conftest import as_role

FORM = {"name": "One-page checkout", "hypothesis": "Fewer steps raise value", "goal": "vrps", "minimum_effect": "2",
        "guardrails": "error_rate, refunds", "max_harm": "1", "treatments": "1", "start": "on",
        "comes": "hourly"}  # fmt: skip


def send(board: Client, scene: Scene, **changes: Any) -> Any:
    return board.post("/new", FORM | {"team": scene.team.pk} | changes)


def test_name_hypothesis_and_goal_make_a_running_experiment_with_its_parts(board: Client, scene: Scene) -> None:
    response = send(board, scene)

    assert (response.status_code, response.url) == (302, "/experiments/one-page-checkout")
    with as_role("owner"):
        e = Experiment.objects.get(key="one-page-checkout")
        kpis = list(
            TargetKpi.objects.filter(experiment=e).values_list("metric__key", "role", "minimum_effect", "max_harm")
        )
        arms = list(Variant.objects.filter(experiment=e).values_list("key", "control"))
    assert (e.status, e.owner) == ("running", "ines")
    assert kpis == [
        ("vrps", "goal", 0.02, None),
        ("error_rate", "guardrail", None, 0.01),
        ("refunds", "guardrail", None, 0.01),
    ]
    assert arms == [("control", True), ("treatment", False)]
    assert "Hold, no data" in board.get("/experiments/one-page-checkout").text


def test_a_kpi_may_be_named_in_ones_own_words_and_says_which_way_is_better(board: Client, scene: Scene) -> None:
    with as_role("owner"):
        scene.metric("vrps", name="Value per session")
    named = {
        "goal": "value per Session",
        "guardrails": "Refunds within 24 h, error_rate",
        "guards_are": "proportion decrease",
    }
    assert send(board, scene, **named).status_code == 302

    with as_role("owner"):
        kpis = TargetKpi.objects.filter(experiment__key="one-page-checkout").order_by("position")
        said = list(kpis.values_list("metric__key", "metric__name", "metric__kind", "metric__direction"))
    assert said == [
        ("vrps", "Value per session", "mean", "increase"),
        ("refunds_within_24_h", "Refunds within 24 h", "proportion", "decrease"),
        ("error_rate", "Error rate", "proportion", "decrease"),
    ]


def test_without_start_it_is_a_draft_that_can_be_started(board: Client, scene: Scene) -> None:
    fields = {k: v for k, v in FORM.items() if k != "start"}
    board.post("/new", fields | {"team": scene.team.pk})

    assert "Start it" in board.get("/experiments/one-page-checkout").text
    board.post("/experiments/one-page-checkout/to/running")
    with as_role("owner"):
        assert Experiment.objects.get(key="one-page-checkout").status == "running"


def test_what_is_missing_or_wrong_is_said_at_its_field_and_nothing_is_made(board: Client, scene: Scene) -> None:
    for changes, said in (
        ({"name": ""}, "This field is required"),
        ({"goal": "!"}, "is no metric key"),
        ({"guardrails": "vrps"}, "vrps is named twice"),
        ({"baseline_mean": "3.1"}, "Give both the mean and its standard deviation"),
        ({"minimum_effect": "-1"}, "greater than or equal to 0"),
        ({"minimum_effect": "0"}, "greater than or equal to 0.0001"),
    ):
        response = send(board, scene, **changes)
        assert response.status_code == 422, changes
        assert said in response.text, (changes, response.text)
    with as_role("owner"):
        assert Experiment.objects.count() == 0


def test_what_the_policy_cannot_judge_is_refused_at_its_field_in_the_words_of_the_api(
    board: Client, scene: Scene
) -> None:
    with as_role("owner"):
        scene.metric("temperature", kind="gauge", direction="increase")
        scene.metric("colour", kind="mean", direction=None)

    for changes, field, said in (
        ({"goal": "temperature"}, "goal", "temperature_uplift: temperature is a gauge, which has no units to compare."),
        ({"goal": "colour"}, "goal", "colour_uplift: colour has no direction"),
        ({"guardrails": "temperature"}, "guardrails", "temperature_guard: temperature is a gauge"),
        ({"guardrails": "colour"}, "guardrails", "colour_guard: colour has no direction"),
        ({"goal": "colour", "start": ""}, "goal", "colour_uplift: colour has no direction"),
    ):
        response = send(board, scene, **changes)
        assert response.status_code == 422, changes
        assert said in response.text.split(f'id="id_{field}_error"')[1].split("</p>")[0], changes
    with as_role("owner"):
        assert Experiment.objects.count() == 0


def test_an_effect_below_what_the_teams_policy_scales_at_is_refused_at_its_number(board: Client, scene: Scene) -> None:
    gate = {"name": "{metric}_uplift", "kind": "uplift", "for": "goal", "scale_above": 0.05, "delete_below": "plan"}
    with as_role("owner"):
        own = Policy.objects.create(name="steep", team=scene.team, created_at=scene.now)
        PolicyVersion.objects.create(
            policy=own, team=scene.team, number=1, body={"gates": [gate]}, author="ada", created_at=scene.now, activated_at=scene.now
        )  # fmt: skip
        PolicyBinding.objects.create(team=scene.team, policy=own)

    refused = send(board, scene)

    assert refused.status_code == 422
    assert (
        "delete_below (0.02) is less than scale_above (0.05)" in refused.text.split('id="id_minimum_effect_error"')[1]
    )
    assert send(board, scene, minimum_effect="6").status_code == 302


def test_the_planned_duration_is_worked_out_from_baseline_effect_and_units(board: Client) -> None:
    plan = {"baseline_mean": "3.1", "baseline_stddev": "3", "units": "40000", "minimum_effect": "2", "treatments": "1"}

    assert "Decided in" in board.get("/new/duration", plan).text
    assert "Too long" in board.get("/new/duration", plan | {"units": "200"}).text
    assert "Never less than 7 days" in board.get("/new/duration", {"minimum_effect": "x", "units": "inf"}).text


def test_the_planned_duration_counts_the_days_on_which_data_comes(board: Client, scene: Scene) -> None:
    plan = {
        "goal": "sign_ups",
        "baseline_mean": "3.1",
        "baseline_stddev": "22",
        "units": "1400000",
        "minimum_effect": "2",
    }

    def days(**said: str) -> int:
        return int(board.get("/new/duration", plan | said).text.split("Decided in ")[1].split(" day")[0])

    weekdays = {"comes": "weekdays", "comes_at": "24:00", "comes_zone": "Europe/Berlin"}
    assert days(comes="daily", comes_at="24:00") + 4 <= days(**weekdays)
    with as_role("owner"):
        metric = scene.metric("sign_ups")
        expected = {"every": "weekdays", "at": "24:00", "timezone": "Europe/Berlin"}
        set_out(metric, expected, since=None, now=scene.now)
    assert days(comes="minutes", comes_minutes="5") == days(**weekdays), "what is registered counts"


def test_the_planned_duration_is_that_of_the_policy_of_the_team_that_is_chosen(
    board: Client, scene: Scene, ines: User
) -> None:
    plan = {"baseline_mean": "3.1", "baseline_stddev": "3", "units": "4000000", "minimum_effect": "2"}
    with as_role("owner"):
        careful = Team.objects.create(key="careful", name="Careful", created_at=scene.now)
        Membership.objects.create(team=careful, user=ines, role="approver")
        own = Policy.objects.create(name="slow", team=careful, created_at=scene.now)
        PolicyVersion.objects.create(
            policy=own, team=careful, number=1, body=DEFAULT_BODY | {"min_days": 21}, author="ada", created_at=scene.now, activated_at=scene.now
        )  # fmt: skip
        PolicyBinding.objects.create(team=careful, policy=own)

    assert "Decided in 7 days" in board.get("/new/duration", plan | {"team": scene.team.pk}).text
    assert "Decided in 21 days" in board.get("/new/duration", plan | {"team": careful.pk}).text
    assert "Decided in 21 days" in send(board, scene, **plan, team=careful.pk, name="").text


def test_a_goal_that_no_gate_of_the_teams_policy_compares_is_said_to_be_decided_never(
    board: Client, scene: Scene
) -> None:
    plan = {"baseline_mean": "3.1", "baseline_stddev": "3", "units": "40000", "minimum_effect": "2"}
    with as_role("owner"):
        scene.metric("vrps", name="Value per session")
        own = Policy.objects.create(name="one-metric", team=scene.team, created_at=scene.now)
        gate = {"name": "vrps", "kind": "uplift", "metric": "vrps", "delete_below": "plan"}
        PolicyVersion.objects.create(
            policy=own, team=scene.team, number=1, body={"gates": [gate]}, author="ada", created_at=scene.now, activated_at=scene.now
        )  # fmt: skip
        PolicyBinding.objects.create(team=scene.team, policy=own)

    assert "Decided in" in board.get("/new/duration", plan | {"goal": "Value per session"}).text
    assert "nothing decides it" in board.get("/new/duration", plan | {"goal": "returns"}).text
    for odd in ({"goal": "\0"}, {"team": "x"}, {"team": "9" * 30}, {"goal": "!" * 3000}):
        assert board.get("/new/duration", plan | odd).status_code in (200, 400), odd


def test_an_answer_with_htmx_is_a_part_and_without_it_the_whole_page(board: Client, scene: Scene) -> None:
    assert "<html" not in board.get("/new/duration").text
    assert "<html" in send(board, scene, name="").text


def test_a_running_plan_that_cannot_end_says_so_on_its_page(board: Client, scene: Scene) -> None:
    send(board, scene, minimum_effect="0.1", baseline_mean="3.1", baseline_stddev="22", units="20000")

    text = board.get("/experiments/one-page-checkout").text
    assert "the smallest effect that is surely decided by then is" in text


def test_a_new_kpi_is_due_as_often_as_was_said(board: Client, scene: Scene) -> None:
    board.cookies["zone"] = "Europe/Berlin"
    assert 'name="comes_zone" value="Europe/Berlin"' in board.get("/new").text.replace("\n", " ")

    made = send(board, scene, goal="sign_ups", comes="weekdays", comes_at="06:00", comes_zone="Europe/Berlin")

    assert made.status_code == 302
    with as_role("owner"):
        metric = Metric.objects.get(key="sign_ups")
        schedules = list(metric.schedules.values_list("expected", flat=True))
    assert (metric.expected_every_s, metric.freshness_target_s) == (86_400, 21_600)
    assert schedules == [{"every": "weekdays", "at": "06:00", "timezone": "Europe/Berlin"}]
    assert "unknown to us" not in board.get("/experiments/one-page-checkout").text


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"comes": "minutes", "comes_minutes": "5"}, {"every_s": 300}),
        ({"comes": "hourly"}, {"every_s": 3_600}),
        ({"comes": "daily", "comes_at": "24:00"}, {"every": "daily", "at": "24:00", "timezone": "UTC"}),
        ({"comes": "weekly", "comes_weekday": "friday", "comes_at": "06:00"}, {"every": "weekly", "on": "friday", "at": "06:00", "timezone": "UTC"}),
        ({"comes": "monthly", "comes_day": "last", "comes_at": "06:00"}, {"every": "monthly", "on": "last", "at": "06:00", "timezone": "UTC"}),
        ({"comes": "cron", "comes_cron": "0 6 * * 1-5", "comes_zone": "Asia/Kathmandu"}, {"cron": "0 6 * * 1-5", "timezone": "Asia/Kathmandu"}),
    ],
)  # fmt: skip
def test_how_often_data_comes_is_said_in_words(said: dict[str, str], expected: dict[str, Any]) -> None:
    form = ExperimentForm(FORM | said)
    form.is_valid()

    assert form.cleaned_data["expected"] == expected
    assert form.errors.keys() <= {"team"}


@pytest.mark.parametrize(
    ("said", "field", "mend"),
    [
        ({"comes": ""}, "comes", "vrps, error_rate, refunds are new: say how often data comes."),
        ({"comes": "minutes"}, "comes_minutes", "Say how many minutes"),
        ({"comes": "daily"}, "comes_at", "Say at which time"),
        ({"comes": "daily", "comes_at": "6 am"}, "comes_at", "must be a time of day, as 06:00"),
        ({"comes": "daily", "comes_at": "06:00", "comes_zone": "Mars"}, "comes_zone", "is no time zone"),
        ({"comes": "cron", "comes_cron": "*/5 * * * * *"}, "comes_cron", "has six fields"),
        ({"comes": "cron"}, "comes_cron", "must have five"),
        ({"comes": "cron", "comes_cron": "0 0 30 2 *"}, "comes_cron", "is never due"),
    ],
)
def test_a_new_kpi_never_silently_means_some_minutes(
    board: Client, scene: Scene, said: dict[str, str], field: str, mend: str
) -> None:
    response = send(board, scene, **said)

    assert response.status_code == 422
    assert mend in response.context["page"]["form"].errors[field][0]
    with as_role("owner"):
        assert not Metric.objects.exists()


def test_of_known_kpis_nothing_is_asked(board: Client, scene: Scene) -> None:
    with as_role("owner"):
        scene.metric("vrps")
    assert send(board, scene, guardrails="", comes="").status_code == 302


def test_a_form_that_is_pressed_twice_makes_one_experiment(board: Client, scene: Scene) -> None:
    form = board.get("/new").text.split('name="once" value="')[1].split('"')[0]

    send(board, scene, once=form)
    send(board, scene, once=form)

    with as_role("owner"):
        assert Experiment.objects.count() == 1


def test_a_share_that_is_hardly_meant_is_warned_of_and_one_that_cannot_be_is_refused_at_its_field(
    board: Client, scene: Scene
) -> None:
    with as_role("owner"):
        scene.metric("kept", kind="proportion", direction="increase")
    for changes in ({"max_harm": "100"}, {"max_harm": "500"}, {"minimum_effect": "200"}):
        response = send(board, scene, guardrails="kept", **changes)
        assert response.status_code == 422
        (field,) = changes
        assert "It is a fraction of control: 0.05 is 5%." in response.context["page"]["form"].errors[field][0]

    made = send(board, scene, guardrails="kept", max_harm="60")
    page = board.get(made.url).text
    warning = "kept_guard: max_harm is 0.6, which is 60%. It is a fraction of control: 0.05 is 5%."
    assert page.count(warning) == 2, "once as news, once beside what it waits for"
    assert board.get(made.url).text.count(warning) == 1
