"""The policies every team starts with. Their bodies are written out here, so that they never change."""

from datetime import UTC, datetime

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

DEFAULT = {
    "alpha": 0.05,
    "slot_s": 300,
    "look_s": 3600,
    "closed_after_s": 1800,
    "persist": 4,
    "min_days": 7,
    "max_days": 28,
    "min_units": 1000,
    "max_relative_se": 0.1,
    "planned_units": 100_000,
    "require": "all",
    "snooze_days": 7,
    "gates": [
        {
            "name": "{metric}_uplift",
            "kind": "uplift",
            "for": "goal",
            "effect": "relative",
            "scale_above": 0.0,
            "delete_below": "plan",
        },
        {"name": "{metric}_guard", "kind": "guard", "for": "guardrail", "effect": "relative", "max_harm": "plan"},
        {"name": "density", "kind": "density", "at_least": 0.95},
    ],
}
SHIPPED = {"default": DEFAULT, "quick": {**DEFAULT, "min_days": 1, "look_s": 900, "closed_after_s": 300}}
SINCE = datetime(2026, 1, 1, tzinfo=UTC)


def ship(apps: Apps, _editor: BaseDatabaseSchemaEditor) -> None:
    for name, body in SHIPPED.items():
        policy = apps.get_model("gates", "Policy").objects.create(name=name, created_at=SINCE)
        apps.get_model("gates", "PolicyVersion").objects.create(
            policy=policy,
            number=1,
            body=body,
            author="decisioning",
            created_at=SINCE,
            activated_at=SINCE,
            activated_by="decisioning",
        )


def withdraw(apps: Apps, _editor: BaseDatabaseSchemaEditor) -> None:
    apps.get_model("gates", "Policy").objects.filter(team__isnull=True, name__in=SHIPPED).delete()


class Migration(migrations.Migration):
    dependencies = [("gates", "0002_row_security")]
    operations = [migrations.RunPython(ship, withdraw)]
