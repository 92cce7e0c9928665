"""metrics.watermark: a cumulative row is news when anything it says differs from the row before it, not its n alone."""

from importlib import import_module

from django.db import migrations

BEFORE = import_module("telemetry.migrations.0006_watermark").FORWARD
SAID = "k.n, k.value, k.variance, k.denominator_value, k.denominator_variance, k.covariance"
FORWARD = (
    BEFORE.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
    .replace("SELECT k.ts, k.n INTO newest", f"SELECT k.ts, {SAID} INTO newest")
    .replace("k.n IS DISTINCT FROM newest.n", f"({SAID}) IS DISTINCT FROM ({SAID.replace('k.', 'newest.')})")
)


class Migration(migrations.Migration):
    dependencies = [("telemetry", "0008_long_job_names")]
    operations = [migrations.RunSQL(FORWARD, BEFORE.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))]
