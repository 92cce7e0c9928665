"""A new installation ships policies that doubt what is too good to be true and tolerate a split that is off by little.

Where experiments are there already, the shipped versions go on as they are: what is live keeps its behaviour.
"""

from django.db import migrations

FORWARD = """
UPDATE metadata.policy_versions v SET body = jsonb_build_object('doubt_above', 0.5, 'srm_tolerance', 0.001) || v.body
FROM metadata.policies p WHERE p.id = v.policy_id AND p.team_id IS NULL AND NOT EXISTS (SELECT FROM metadata.experiments);
"""
REVERSE = """
UPDATE metadata.policy_versions v SET body = v.body - 'doubt_above' - 'srm_tolerance'
FROM metadata.policies p WHERE p.id = v.policy_id AND p.team_id IS NULL;
"""


class Migration(migrations.Migration):
    dependencies = [("gates", "0018_outages_disturb"), ("experiments", "0005_doubt")]
    operations = [migrations.RunSQL(FORWARD, REVERSE)]
