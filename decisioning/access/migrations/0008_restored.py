"""A restored copy says that it is one; and every process may see how new the database is."""

from django.db import migrations

from decisioning.access.restored import MADE

FORWARD = f"""
SET LOCAL lock_timeout = '1500ms';
GRANT SELECT ON public.django_migrations TO decisioning_web, decisioning_worker;
{MADE}
GRANT SELECT ON access.restored TO decisioning_web, decisioning_worker;
SELECT audit.watch('access.restored', 'access.restored', key => 'at', team => 'none');

CREATE OR REPLACE FUNCTION access.key_problem(key bigint) RETURNS text LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = metadata, public, pg_temp AS $$
  WITH RECURSIVE line AS (
    SELECT 0 AS up, a.* FROM api_keys a WHERE a.id = key
    UNION ALL SELECT up + 1, m.* FROM line JOIN api_keys m ON m.id = line.made_by_id)
  SELECT CASE WHEN problem IS NOT NULL AND up > 0 THEN 'The key that made this key has ended.' ELSE problem END
  FROM (SELECT up, CASE
          WHEN revoked_at IS NOT NULL THEN 'This key was revoked.'
          WHEN expires_at <= now() THEN 'This key has expired.'
          WHEN owner_id IS NOT NULL AND access.standing(owner_id, team_id) IS NULL
            THEN 'The owner of this key is not active in its team any more.'
          WHEN created_at <= (SELECT r.at FROM access.restored r)
            THEN 'This is a restored copy, which takes no key made before, until an operator says: manage.py restore --live.' END AS problem
        FROM line) AS judged
  WHERE problem IS NOT NULL ORDER BY up LIMIT 1 $$;
"""  # noqa: S608 - made of constants

REVERSE = """
CREATE OR REPLACE FUNCTION access.key_problem(key bigint) RETURNS text LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = metadata, public, pg_temp AS $$
  WITH RECURSIVE line AS (
    SELECT 0 AS up, a.* FROM api_keys a WHERE a.id = key
    UNION ALL SELECT up + 1, m.* FROM line JOIN api_keys m ON m.id = line.made_by_id)
  SELECT CASE WHEN problem IS NOT NULL AND up > 0 THEN 'The key that made this key has ended.' ELSE problem END
  FROM (SELECT up, CASE
          WHEN revoked_at IS NOT NULL THEN 'This key was revoked.'
          WHEN expires_at <= now() THEN 'This key has expired.'
          WHEN owner_id IS NOT NULL AND access.standing(owner_id, team_id) IS NULL
            THEN 'The owner of this key is not active in its team any more.' END AS problem
        FROM line) AS judged
  WHERE problem IS NOT NULL ORDER BY up LIMIT 1 $$;
DROP TABLE access.restored;
REVOKE SELECT ON public.django_migrations FROM decisioning_web, decisioning_worker;
"""


class Migration(migrations.Migration):
    dependencies = [("access", "0007_invitations"), ("ledger", "0005_told")]
    operations = [migrations.RunSQL(FORWARD, REVERSE)]
