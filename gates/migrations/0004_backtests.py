"""Backtests move to `metadata`, under row security and audit."""

import django.db.models.deletion
from django.db import migrations, models

FORWARD = """
ALTER TABLE public.backtests SET SCHEMA metadata;
SELECT access.protect('metadata.backtests'), audit.watch('metadata.backtests', 'gates.backtest', silent => '{result}');
REVOKE UPDATE, DELETE ON metadata.backtests FROM decisioning_web;
CREATE POLICY shipped ON metadata.backtests FOR SELECT TO decisioning_web, decisioning_reader USING (team_id IS NULL);
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA metadata TO decisioning_web, decisioning_worker;
"""

REVERSE = """
DROP TRIGGER audit_insert ON metadata.backtests;
DROP TRIGGER audit_update ON metadata.backtests;
DROP TRIGGER audit_delete ON metadata.backtests;
DO $$
DECLARE p record;
BEGIN
  FOR p IN SELECT policyname FROM pg_policies WHERE schemaname = 'metadata' AND tablename = 'backtests' LOOP
    EXECUTE format('DROP POLICY %I ON metadata.backtests', p.policyname);
  END LOOP;
END $$;
ALTER TABLE metadata.backtests DISABLE ROW LEVEL SECURITY;
ALTER TABLE metadata.backtests SET SCHEMA public;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0003_login_attempts"),
        ("gates", "0003_shipped_policies"),
    ]

    operations = [
        migrations.CreateModel(
            name="Backtest",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "state",
                    models.CharField(
                        choices=[("queued", "Queued"), ("finished", "Finished"), ("failed", "Failed")],
                        default="queued",
                        max_length=10,
                    ),
                ),
                ("asked_by", models.CharField(max_length=200)),
                ("asked_at", models.DateTimeField()),
                ("finished_at", models.DateTimeField(null=True)),
                ("result", models.JSONField(help_text="Figures and experiments as the API shows them.", null=True)),
                ("error", models.TextField(blank=True)),
                (
                    "team",
                    models.ForeignKey(
                        blank=True,
                        editable=False,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="access.team",
                    ),
                ),
                (
                    "version",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="backtests", to="gates.policyversion"
                    ),
                ),
            ],
            options={
                "db_table": "backtests",
                "ordering": ("-id",),
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("state", "queued")), fields=("version",), name="one_queued_backtest"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("result__isnull", False), ("state", "finished")),
                            models.Q(models.Q(("state", "finished"), _negated=True), ("result__isnull", True)),
                            _connector="OR",
                        ),
                        name="backtest_has_result_iff_finished",
                    ),
                ],
            },
        ),
        migrations.RunSQL(FORWARD, REVERSE),
    ]
