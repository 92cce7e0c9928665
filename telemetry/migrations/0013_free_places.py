"""metadata.place_is_free: what belongs to no team may be read where nobody else could be hurt by it."""

from django.db import migrations

FORWARD = """
-- Asked by a team that sees its own places alone, so as owner. Of files `place` is the path below DECISIONING_FILES, links followed.
CREATE FUNCTION metadata.place_is_free(team bigint, kind text, place text) RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = metadata, pg_temp AS $$
  SELECT NOT EXISTS (
      SELECT FROM source_places p
      WHERE p.team_id <> $1 AND p.kind = $2 AND (p.name = place OR ($2 = 'folder' AND starts_with(place, p.name || '/'))))
    AND NOT EXISTS (SELECT FROM teams t WHERE t.id <> $1 AND $2 = 'folder' AND starts_with(place, t.key || '/'))
    AND (($2 = 'folder' AND place NOT LIKE '%/%') OR NOT EXISTS (SELECT FROM teams t WHERE t.id <> $1 AND t.key <> 'demo')) $$;
REVOKE EXECUTE ON FUNCTION metadata.place_is_free FROM PUBLIC;
GRANT EXECUTE ON FUNCTION metadata.place_is_free TO decisioning_web, decisioning_worker;
"""


class Migration(migrations.Migration):
    dependencies = [("telemetry", "0012_due_instants")]
    operations = [migrations.RunSQL(FORWARD, "DROP FUNCTION metadata.place_is_free")]
