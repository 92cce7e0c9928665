"""Invitations into a team: links that work once. Under row security and in the audit as memberships are."""

import django.db.models.deletion
from django.db import migrations, models

FORWARD = """
SET LOCAL lock_timeout = '1500ms';
ALTER TABLE public.invitations SET SCHEMA metadata;
SELECT access.protect('metadata.invitations', reader => false);
SELECT audit.watch('metadata.invitations', 'access.invitation', secret => '{digest}');
GRANT USAGE, SELECT ON SEQUENCE metadata.invitations_id_seq TO decisioning_web, decisioning_worker;
"""
REVERSE = """
DROP TRIGGER audit_insert ON metadata.invitations; DROP TRIGGER audit_update ON metadata.invitations;
DROP TRIGGER audit_delete ON metadata.invitations;
DROP POLICY owner ON metadata.invitations; DROP POLICY worker ON metadata.invitations; DROP POLICY team ON metadata.invitations;
ALTER TABLE metadata.invitations DISABLE ROW LEVEL SECURITY;
ALTER TABLE metadata.invitations SET SCHEMA public;
"""


class Migration(migrations.Migration):
    dependencies = [("access", "0006_locks"), ("ledger", "0005_told")]
    operations = [
        migrations.CreateModel(
            name="Invitation",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "role",
                    models.CharField(
                        choices=[
                            ("viewer", "Viewer"),
                            ("operator", "Operator"),
                            ("approver", "Approver"),
                            ("admin", "Admin"),
                        ],
                        max_length=10,
                    ),
                ),
                ("digest", models.BinaryField(max_length=32, unique=True)),
                (
                    "email",
                    models.EmailField(
                        blank=True, help_text="Whom it is for; empty when the link is handed over.", max_length=254
                    ),
                ),
                ("created_at", models.DateTimeField()),
                ("created_by", models.CharField(max_length=200)),
                ("expires_at", models.DateTimeField()),
                ("used_at", models.DateTimeField(blank=True, null=True)),
                ("used_by", models.CharField(blank=True, max_length=200)),
                (
                    "team",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="invitations", to="access.team"
                    ),
                ),
            ],
            options={"db_table": "invitations"},
        ),
        migrations.RunSQL(FORWARD, REVERSE),
    ]
