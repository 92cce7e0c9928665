"""What a team may take at most, and how many rows it has sent on a day."""

from django.db import migrations, models

FORWARD = """
SET LOCAL lock_timeout = '1500ms';
-- In a few parts a day, so that batches sent at the same time do not wait for one another.
CREATE TABLE metadata.rows_sent (
  team_id bigint NOT NULL REFERENCES metadata.teams (id) ON DELETE CASCADE,
  day date NOT NULL, part smallint NOT NULL, rows bigint NOT NULL CHECK (rows >= 0), PRIMARY KEY (team_id, day, part));
SELECT access.protect('metadata.rows_sent', reader => false);
"""


def _most(what: str) -> models.PositiveBigIntegerField:
    return models.PositiveBigIntegerField(
        blank=True, null=True, help_text=f"{what} at most; empty: as the installation has it."
    )


class Migration(migrations.Migration):
    dependencies = [("access", "0008_restored")]
    operations = [
        migrations.AddField("team", "most_rows_a_day", _most("Rows sent a day (UTC)")),
        migrations.AddField("team", "most_experiments", _most("Open experiments")),
        migrations.AddField("team", "most_sources", _most("Sources")),
        migrations.AddField("team", "most_webhooks", _most("Webhooks")),
        migrations.RunSQL(FORWARD, "DROP TABLE metadata.rows_sent;"),
    ]
