"""Channels, what becomes of each message on each of them, and what ticks have told already; under row security and audit."""

import django.contrib.postgres.fields
import django.db.models.deletion
from django.db import migrations, models

FORWARD = """
ALTER TABLE public.channels SET SCHEMA metadata;
ALTER TABLE public.deliveries SET SCHEMA metadata;
ALTER TABLE public.alarms SET SCHEMA metadata;

-- Addresses may hold tokens and errors what a receiver said: nothing for people's SQL tools.
SELECT access.protect('metadata.channels', reader => false), access.protect('metadata.deliveries', reader => false);
ALTER TABLE metadata.channels ADD CONSTRAINT channel_and_team UNIQUE (id, team_id);
ALTER TABLE metadata.deliveries ADD CONSTRAINT team_of_channel FOREIGN KEY (channel_id, team_id)
  REFERENCES metadata.channels (id, team_id) DEFERRABLE INITIALLY DEFERRED;
SELECT access.protect('metadata.alarms', writes => '');
GRANT INSERT, UPDATE, DELETE ON metadata.alarms TO decisioning_worker;
GRANT DELETE ON audit.outbox TO decisioning_worker;
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA metadata TO decisioning_web, decisioning_worker;

SELECT audit.watch('metadata.channels', 'ledger.channel', silent => '{failures,failing_since,next_at,leased_until}', secret => '{url,salt}');
-- Deliveries are a record themselves; what a person does to one is to send it again.
CREATE TRIGGER audit_update AFTER UPDATE ON metadata.deliveries REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT
  EXECUTE FUNCTION audit.record('ledger.delivery', 'id', 'team_id', 'experiment_id',
    '{state,next_at,attempts,trying_since,last_at,last_status,last_error,delivered_at}', '{}');
"""

REVERSE = """
REVOKE DELETE ON audit.outbox FROM decisioning_worker;
DROP TRIGGER audit_update ON metadata.deliveries;
DROP TRIGGER audit_insert ON metadata.channels; DROP TRIGGER audit_update ON metadata.channels; DROP TRIGGER audit_delete ON metadata.channels;
ALTER TABLE metadata.deliveries DROP CONSTRAINT team_of_channel;
ALTER TABLE metadata.channels DROP CONSTRAINT channel_and_team;
DO $$
DECLARE t text; p record;
BEGIN
  FOREACH t IN ARRAY '{channels,deliveries,alarms}'::text[] LOOP
    FOR p IN SELECT policyname FROM pg_policies WHERE schemaname = 'metadata' AND tablename = t LOOP
      EXECUTE format('DROP POLICY %I ON metadata.%I', p.policyname, t);
    END LOOP;
    EXECUTE format('ALTER TABLE metadata.%I DISABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE metadata.%I SET SCHEMA public', t);
  END LOOP;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("access", "0003_login_attempts"),
        ("ledger", "0003_seals"),
    ]

    operations = [
        migrations.CreateModel(
            name="Channel",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "kind",
                    models.CharField(
                        choices=[("webhook", "Webhook"), ("slack", "Slack"), ("email", "Email")],
                        default="webhook",
                        max_length=10,
                    ),
                ),
                (
                    "name",
                    models.CharField(help_text="Kind and host: the address itself may hold a token.", max_length=200),
                ),
                ("url", models.CharField(help_text="https://..., or mailto:... for e-mail.", max_length=2000)),
                (
                    "events",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=40), help_text="Types of messages it gets.", size=None
                    ),
                ),
                ("salt", models.CharField(editable=False, max_length=64)),
                ("created_by", models.CharField(max_length=200)),
                ("created_at", models.DateTimeField()),
                ("enabled", models.BooleanField(default=True)),
                ("disabled_at", models.DateTimeField(null=True)),
                ("disabled_reason", models.CharField(blank=True, max_length=200)),
                (
                    "failures",
                    models.PositiveIntegerField(default=0, help_text="Failed attempts since the last good one."),
                ),
                ("failing_since", models.DateTimeField(null=True)),
                (
                    "next_at",
                    models.DateTimeField(help_text="It is not called before: it could not be reached."),
                ),
                (
                    "leased_until",
                    models.DateTimeField(help_text="Whoever serves it has it to himself until then.", null=True),
                ),
                (
                    "team",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="channels", to="access.team"
                    ),
                ),
            ],
            options={
                "db_table": "channels",
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("disabled_at__isnull", True), ("disabled_reason", ""), ("enabled", True)),
                            models.Q(
                                ("disabled_at__isnull", False),
                                ("enabled", False),
                                models.Q(("disabled_reason", ""), _negated=True),
                            ),
                            _connector="OR",
                        ),
                        name="channel_disabled_with_a_reason",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Delivery",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("experiment_id", models.BigIntegerField(null=True)),
                (
                    "state",
                    models.CharField(
                        choices=[("waiting", "Waiting"), ("delivered", "Delivered"), ("dead", "Dead")],
                        default="waiting",
                        max_length=10,
                    ),
                ),
                ("created_at", models.DateTimeField()),
                ("asked_at", models.DateTimeField(help_text="When somebody asked to send it again.", null=True)),
                (
                    "trying_since",
                    models.DateTimeField(help_text="Its first attempt, since it was asked for again.", null=True),
                ),
                ("next_at", models.DateTimeField()),
                ("attempts", models.PositiveIntegerField(default=0)),
                ("last_at", models.DateTimeField(null=True)),
                (
                    "last_status",
                    models.PositiveSmallIntegerField(
                        help_text="HTTP status of the last attempt, if it had one.", null=True
                    ),
                ),
                ("last_error", models.CharField(blank=True, max_length=400)),
                ("delivered_at", models.DateTimeField(null=True)),
                (
                    "channel",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="deliveries", to="ledger.channel"
                    ),
                ),
                (
                    "message",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="deliveries",
                        to="ledger.outboxmessage",
                    ),
                ),
                (
                    "team",
                    models.ForeignKey(
                        editable=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="+",
                        to="access.team",
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "deliveries",
                "db_table": "deliveries",
                "indexes": [
                    models.Index(
                        condition=models.Q(("state", "waiting")),
                        fields=["channel", "experiment_id", "message"],
                        name="deliveries_waiting",
                    ),
                    models.Index(fields=["channel", "-id"], name="deliveries_of_channel"),
                ],
                "constraints": [
                    models.UniqueConstraint(fields=("message", "channel"), name="one_delivery_per_message_and_channel"),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("delivered_at__isnull", False), ("state", "delivered")),
                            models.Q(models.Q(("state", "delivered"), _negated=True), ("delivered_at__isnull", True)),
                            _connector="OR",
                        ),
                        name="delivered_at_iff_delivered",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Alarm",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("team_id", models.BigIntegerField()),
                ("experiment_id", models.BigIntegerField(null=True)),
                ("type", models.CharField(help_text="The event it is told as.", max_length=40)),
                ("subject", models.CharField(help_text="What it is about, within its type and team.", max_length=300)),
                ("data", models.JSONField(default=dict, help_text="What was told.")),
                ("began_at", models.DateTimeField()),
                ("told_at", models.DateTimeField(null=True)),
                (
                    "ended_at",
                    models.DateTimeField(
                        help_text="Since when it is no longer so; begins anew when it comes back.", null=True
                    ),
                ),
            ],
            options={
                "db_table": "alarms",
                "constraints": [
                    models.UniqueConstraint(fields=("type", "team_id", "subject"), name="one_alarm_per_subject")
                ],
            },
        ),
        migrations.RunSQL(FORWARD, REVERSE),
        # Last, because from here on nobody can tell anything until the end.
        migrations.RemoveIndex(model_name="outboxmessage", name="outbox_waiting"),
        migrations.AddField(
            model_name="outboxmessage",
            name="fanned_out_at",
            field=models.DateTimeField(
                help_text="When it was put into the queue of every channel it is for.", null=True
            ),
        ),
        migrations.AlterField(
            model_name="outboxmessage",
            name="delivered_at",
            field=models.DateTimeField(
                help_text="When the last of them had it; at once when it is for none.", null=True
            ),
        ),
        migrations.AddIndex(
            model_name="outboxmessage",
            index=models.Index(
                condition=models.Q(("fanned_out_at__isnull", True)), fields=["id"], name="outbox_to_fan_out"
            ),
        ),
        migrations.AddIndex(
            model_name="outboxmessage", index=models.Index(fields=["created_at"], name="outbox_by_age")
        ),
    ]
