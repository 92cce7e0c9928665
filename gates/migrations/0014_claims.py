"""metadata.claims: who judges an experiment locks its row here. An advisory lock could be taken by any SQL login, and kept."""

from django.db import migrations

FORWARD = """
CREATE TABLE metadata.claims (experiment_id bigint PRIMARY KEY REFERENCES metadata.experiments (id) ON DELETE CASCADE);
ALTER TABLE metadata.claims ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY owner ON metadata.claims TO decisioning_owner USING (true) WITH CHECK (true);
CREATE POLICY worker ON metadata.claims TO decisioning_worker USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON metadata.claims TO decisioning_worker;  -- UPDATE: to lock a row
INSERT INTO metadata.claims SELECT experiment_id FROM metadata.cursors;
"""


class Migration(migrations.Migration):
    dependencies = [("gates", "0013_people_may_go")]
    operations = [migrations.RunSQL(FORWARD, "DROP TABLE metadata.claims")]
