"""Forms people fill in. They check what can be seen in the form; the domain refuses the rest."""

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django import forms
from django.core.validators import FileExtensionValidator

from decisioning.access.models import Membership, Team, valid_key
from decisioning.access.pictures import PictureRefused, check_size, redrawn
from decisioning.access.scopes import Scope
from decisioning.ledger.outbox import EVENTS
from experiments.expected import MOST_S, WEEKDAYS, normal
from experiments.expected import faults as faults_of
from gates.policies import faults
from telemetry.outages import NewOutage

if TYPE_CHECKING:  # generic for the type checker alone
    _Choice = forms.ModelChoiceField[Team]
else:
    _Choice = forms.ModelChoiceField


def _input(**attrs: str) -> dict[str, Any]:
    return {"attrs": {"class": "input", **attrs}}


class IndentedJSON(json.JSONEncoder):
    """JSON as a person edits it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"indent": 2})


class TeamField(_Choice):
    """A team by its name."""

    def label_from_instance(self, obj: Any) -> str:
        return str(obj.name)


class KeyForm(forms.Form):
    """A new key for one team."""

    team = TeamField(Team.objects.none(), widget=forms.Select(**_input()), empty_label=None)
    scopes = forms.MultipleChoiceField(
        choices=[(s.value, s.value) for s in Scope],
        widget=forms.CheckboxSelectMultiple,
        error_messages={"required": "Choose at least one thing the key may do."},
    )
    agent = forms.BooleanField(
        required=False, help_text="This is an AI agent's key: it may create and push, never decide."
    )
    expires_in_days = forms.IntegerField(
        required=False, min_value=1, max_value=3650, widget=forms.NumberInput(**_input()), help_text="Empty: never."
    )
    rate = forms.RegexField(
        r"^[1-9][0-9]{0,6}/[smhd]$",
        required=False,
        widget=forms.TextInput(**_input(placeholder="600/m")),
        help_text="Requests allowed, such as 40/m. Empty: the portal's default.",
        error_messages={"invalid": "Write a number, a slash and s, m, h or d, such as 40/m."},
    )


class InviteForm(forms.Form):
    """Somebody new in a team."""

    role = forms.ChoiceField(
        choices=Membership.Role.choices, initial=Membership.Role.OPERATOR, widget=forms.Select(**_input())
    )
    email = forms.EmailField(
        required=False,
        widget=forms.EmailInput(**_input(autocomplete="off")),
        help_text="Whom it is for. Empty: hand the link over yourself.",
    )


class ImageForm(forms.Form):
    """A picture of a variant and what it shows."""

    image = forms.FileField(validators=[FileExtensionValidator(["png", "jpg", "jpeg", "gif", "webp"])])
    alt = forms.CharField(max_length=400)

    media_type: str
    body: bytes

    def clean_image(self) -> Any:
        image = self.cleaned_data["image"]
        try:
            check_size(image.size)
            self.body, self.media_type = redrawn(image.read())
        except PictureRefused as refusal:
            raise forms.ValidationError(f"{image.name}: {refusal}") from refusal
        return image


class WebhookForm(forms.Form):
    """A new receiver of one team's events."""

    team = TeamField(Team.objects.none(), widget=forms.Select(**_input()), empty_label=None)
    url = forms.CharField(
        label="Address",
        max_length=2000,
        widget=forms.TextInput(**_input(placeholder="https://...", autocomplete="off", spellcheck="false")),
        help_text="Where messages are posted; an incoming webhook of Slack; or mailto:somebody@example.org.",
    )
    kind = forms.ChoiceField(
        label="As",
        required=False,
        choices=[
            ("", "what the address says"),
            ("webhook", "signed webhook"),
            ("slack", "Slack message"),
            ("email", "e-mail"),
        ],
        widget=forms.Select(**_input()),
    )
    events = forms.MultipleChoiceField(
        choices=[(event, f"{when.rstrip('.')} ({event})") for event, when in EVENTS.items()],
        widget=forms.CheckboxSelectMultiple,
        initial=["decision.proposed", "decision.overdue", "freshness.breached", "guard.failed"],
        error_messages={"required": "Choose at least one thing to be told."},
    )


class DoubtForm(forms.Form):
    """How somebody knows that doubted rows are right."""

    reason = forms.CharField(
        max_length=500,
        widget=forms.TextInput(
            **_input(autocomplete="off", placeholder="Checked against the bank's statement of that day")
        ),
        error_messages={"required": "Say how you know that the rows are right; one sentence is enough."},
    )


class OutageForm(forms.Form):
    """A stretch of time in which feeds of a team are away on purpose."""

    FIELDS = {"from": "begins_at", "to": "ends_at", "reason": "reason", "metrics": "metrics", "sources": "sources"}

    team = TeamField(Team.objects.none(), widget=forms.Select(**_input()), empty_label=None)
    begins_at = forms.DateTimeField(
        label="From",
        widget=forms.DateTimeInput(format="%Y-%m-%dT%H:%M", **_input(type="datetime-local")),
        help_text="In the time zone that you read in; what is due then is not expected.",
    )
    ends_at = forms.DateTimeField(
        label="To",
        widget=forms.DateTimeInput(format="%Y-%m-%dT%H:%M", **_input(type="datetime-local")),
        help_text="What is due then is not expected either.",
    )
    sources = forms.MultipleChoiceField(required=False, widget=forms.CheckboxSelectMultiple)
    metrics = forms.CharField(
        required=False,
        max_length=10_000,
        widget=forms.TextInput(**_input(list="metrics", autocomplete="off", spellcheck="false", placeholder="vrps")),
        help_text="Keys, with commas between them.",
    )
    reason = forms.CharField(
        label="Why",
        max_length=500,
        widget=forms.TextInput(**_input(autocomplete="off", placeholder="The warehouse moves")),
    )

    def outage(self) -> NewOutage:
        """What a form that is valid asks for."""
        data = self.cleaned_data
        metrics = [key for part in data["metrics"].split(",") if (key := part.strip())]
        named = {name: data[name] for name in ("begins_at", "ends_at", "reason", "sources")}
        return NewOutage(**named, metrics=metrics)


class SnoozeForm(forms.Form):
    """For how long nothing is told of an alarm, and why."""

    LASTS = {"1": "1 hour", "4": "4 hours", "24": "1 day", "72": "3 days", "168": "1 week"}

    lasts = forms.ChoiceField(
        label="For",
        choices=[*LASTS.items(), ("", "until the instant below")],
        initial="4",
        required=False,
        widget=forms.Select(**_input()),
    )
    until = forms.DateTimeField(
        label="Until",
        required=False,
        widget=forms.DateTimeInput(format="%Y-%m-%dT%H:%M", **_input(type="datetime-local")),
        help_text="In the time zone that you read in. It counts where nothing is chosen above.",
    )
    reason = forms.CharField(
        max_length=500,
        widget=forms.TextInput(**_input(autocomplete="off", placeholder="The vendor mends it by Thursday")),
        error_messages={"required": "Say why nobody needs to be told meanwhile."},
    )

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if not data.get("lasts") and not data.get("until") and "until" not in self.errors:
            self.add_error("until", "Choose for how long, or give an instant.")
        return data

    def instant(self, now: datetime) -> datetime:
        """When it ends, of a form that is valid."""
        lasts = self.cleaned_data["lasts"]
        return now + timedelta(hours=int(lasts)) if lasts else self.cleaned_data["until"]


class PolicyForm(forms.Form):
    """A policy's body as it is stored. A new policy has a team and a name too; the next version of one has them already."""

    team = TeamField(Team.objects.none(), widget=forms.Select(**_input()), empty_label=None)
    name = forms.CharField(
        max_length=63,
        validators=[valid_key],
        widget=forms.TextInput(**_input(autocomplete="off", spellcheck="false")),
        help_text="Experiments name it, such as careful.",
    )
    body = forms.JSONField(
        widget=forms.Textarea(attrs={"class": "input code", "rows": "26", "spellcheck": "false"}),
        encoder=IndentedJSON,
        error_messages={"invalid": "This is no JSON: a comma, a quote or a bracket is missing or too many."},
        help_text="Settings that are left out have the value of the shipped default.",
    )

    def clean_body(self) -> dict[str, Any]:
        body = self.cleaned_data["body"]
        if not isinstance(body, dict):
            raise forms.ValidationError("The body must be a JSON object.")
        if found := faults(body):
            raise forms.ValidationError([fault.message for fault in found])
        return body


METRIC_IS = [
    ("mean increase", "an average, more is better"),
    ("mean decrease", "an average, less is better"),
    ("proportion increase", "a share of units, more is better"),
    ("proportion decrease", "a share of units, less is better"),
]


COMES = [
    ("", "choose"),
    ("minutes", "every so many minutes"),
    ("hourly", "every hour"),
    ("daily", "every day"),
    ("weekdays", "Monday to Friday"),
    ("weekly", "once a week"),
    ("monthly", "once a month"),
    ("cron", "by cron"),
]
# Where what is wrong with a schedule stands in the form.
_COMES_AT = {"every_s": "comes_minutes", "cron": "comes_cron", "at": "comes_at", "timezone": "comes_zone"}


BOTH = "Give both the mean and its standard deviation, or neither."


class ExperimentForm(forms.Form):
    """Name, hypothesis and what tells: enough to start. Everything else has a default that can be seen."""

    name = forms.CharField(max_length=200, widget=forms.TextInput(**_input(autofocus="autofocus")))
    hypothesis = forms.CharField(
        max_length=4000,
        widget=forms.Textarea(**_input(rows="3")),
        help_text="What you change, for whom, and why it should help.",
    )
    team = TeamField(Team.objects.none(), widget=forms.Select(**_input()), empty_label=None)
    goal = forms.CharField(
        label="Goal KPI",
        max_length=200,
        widget=forms.TextInput(**_input(list="metrics", autocomplete="off", spellcheck="false")),
        help_text="Pick one, or name a new one in your own words.",
    )
    minimum_effect = forms.FloatField(
        label="Smallest effect worth having, %",
        initial=2,
        min_value=0.0001,
        max_value=1000,
        widget=forms.NumberInput(**_input(step="any")),
        help_text="Less than this is not worth its upkeep.",
    )
    goal_is = forms.ChoiceField(
        label="If it is new, it is", required=False, choices=METRIC_IS, widget=forms.Select(**_input())
    )
    guardrails = forms.CharField(
        label="KPIs that must not be harmed",
        required=False,
        max_length=1000,
        widget=forms.TextInput(
            **_input(list="metrics", autocomplete="off", spellcheck="false", placeholder="error_rate, refunds")
        ),
        help_text="With commas between them; known ones or new ones.",
    )
    comes = forms.ChoiceField(
        label="Data of new ones comes",
        required=False,
        choices=COMES,
        widget=forms.Select(**_input()),
        help_text="A KPI that stays away for longer counts as stale, and nothing is proposed on stale data.",
    )
    comes_minutes = forms.IntegerField(
        label="Minutes from one row to the next",
        required=False,
        min_value=1,
        max_value=MOST_S // 60,
        widget=forms.NumberInput(**_input(placeholder="15")),
    )
    comes_weekday = forms.ChoiceField(
        label="On",
        required=False,
        choices=[(day, day.capitalize()) for day in (*WEEKDAYS[1:], WEEKDAYS[0])],
        widget=forms.Select(**_input()),
    )
    comes_day = forms.ChoiceField(
        label="On day",
        required=False,
        choices=[*((str(day), str(day)) for day in range(1, 29)), ("last", "the last")],
        widget=forms.Select(**_input()),
    )
    comes_at = forms.CharField(
        label="At",
        required=False,
        max_length=5,
        widget=forms.TextInput(**_input(placeholder="06:00", autocomplete="off")),
        help_text="The time in its rows, at which what they cover ends: 06:00, or 24:00 for the end of the day.",
    )
    comes_cron = forms.CharField(
        label="Cron",
        required=False,
        max_length=200,
        widget=forms.TextInput(**_input(placeholder="0 6 * * 1-5", autocomplete="off", spellcheck="false")),
        help_text="Minute, hour, day, month and weekday.",
    )
    comes_zone = forms.CharField(
        label="On the clocks of",
        required=False,
        max_length=63,
        widget=forms.TextInput(**_input(list="zones", autocomplete="off", spellcheck="false", placeholder="UTC")),
    )
    guards_are = forms.ChoiceField(
        label="New ones are",
        required=False,
        choices=[METRIC_IS[i] for i in (1, 3, 0, 2)],
        widget=forms.Select(**_input()),
    )
    max_harm = forms.FloatField(
        label="Most harm that is tolerated, %",
        initial=1,
        min_value=0.0001,
        max_value=1000,
        widget=forms.NumberInput(**_input(step="any")),
    )
    units = forms.FloatField(
        label="Units a day, all variants together",
        required=False,
        min_value=1,
        widget=forms.NumberInput(**_input(step="any", placeholder="20000")),
        help_text="Users or sessions; with it the planned duration can be said.",
    )
    baseline_mean = forms.FloatField(
        label="The goal today: mean; of a share, in %",
        required=False,
        widget=forms.NumberInput(**_input(step="any", placeholder="3.1")),
        help_text="A share of 5% is 5 here, and has no deviation of its own.",
    )
    baseline_stddev = forms.FloatField(
        label="and its standard deviation per unit",
        required=False,
        min_value=0,
        widget=forms.NumberInput(**_input(step="any", placeholder="22")),
    )
    treatments = forms.IntegerField(
        label="Treatments beside the control",
        initial=1,
        min_value=1,
        max_value=8,
        widget=forms.NumberInput(**_input()),
    )
    start = forms.BooleanField(label="Start it now", required=False, initial=True)

    def clean_guardrails(self) -> list[str]:
        return [key for part in self.cleaned_data["guardrails"].split(",") if (key := part.strip())]

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        data["expected"] = self._expected(data)
        mean, spread = data.get("baseline_mean"), data.get("baseline_stddev")
        if mean is None and spread is not None and "baseline_mean" not in self.errors:
            self.add_error("baseline_mean", BOTH)
        if spread is not None and spread <= 0:
            self.add_error("baseline_stddev", "The standard deviation must be above 0.")
        return data

    def _expected(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """When new ones are due, as it is kept; None where nothing is said, or nothing that can be."""
        comes, zone = data.get("comes"), data.get("comes_zone") or "UTC"
        if not comes:
            return None
        if comes == "minutes":
            if not data.get("comes_minutes"):
                self.add_error("comes_minutes", "Say how many minutes.")
                return None
            return {"every_s": 60 * data["comes_minutes"]}
        if comes == "hourly":
            return {"every_s": 3_600}
        if comes == "cron":
            said = {"cron": data.get("comes_cron") or "", "timezone": zone}
        else:
            on = {"weekly": data.get("comes_weekday") or "monday", "monthly": data.get("comes_day") or "1"}.get(comes)
            said = {"every": comes, "at": data.get("comes_at") or "", "timezone": zone}
            said |= {} if on is None else {"on": int(on) if on.isdigit() else on}
        if comes != "cron" and not said["at"]:
            self.add_error("comes_at", "Say at which time: 06:00, or 24:00 for the end of the day.")
            return None
        problems = list(faults_of(said))
        for problem in problems:
            self.add_error(_COMES_AT.get(problem.pointer.strip("/"), "comes"), problem.detail)
        return None if problems else normal(said)
