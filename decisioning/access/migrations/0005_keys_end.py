"""A key is never more than its person and its maker: it ends with them, and holds what its owner's role holds now."""

import django.db.models.deletion
from django.db import migrations, models

STANDING = """
SET LOCAL lock_timeout = '1500ms';

-- The role a person has in a team now: 'admin' everywhere for an admin of the installation; none for who is deactivated or gone.
CREATE FUNCTION access.standing(person bigint, team bigint) RETURNS text LANGUAGE sql STABLE SECURITY DEFINER
SET search_path = metadata, public, pg_temp AS $$
  SELECT CASE WHEN u.is_superuser THEN 'admin' ELSE (SELECT m.role FROM memberships m WHERE m.user_id = u.id AND m.team_id = team) END
  FROM public.auth_user u WHERE u.id = person AND u.is_active $$;

-- Why a key is not good, by itself, by its owner or by the keys that made it; NULL for one that is.
CREATE FUNCTION access.key_problem(key bigint) RETURNS text LANGUAGE sql STABLE SECURITY DEFINER
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

-- As bind_key, with what narrows a key: the owner's role now, and the names and rates of the keys that made it, the nearest first. Of one that
-- has ended its name and team all the same: that team wants to know of who still tries.
CREATE FUNCTION access.bind_api_key(secret_digest bytea, request_id text, OUT id bigint, OUT public_id text, OUT team_id bigint,
  OUT scopes text[], OUT agent boolean, OUT rate text, OUT owner text, OUT owner_id bigint, OUT role text, OUT makers jsonb, OUT problem text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = metadata, public, pg_temp AS $$
DECLARE
  k api_keys;
BEGIN
  SELECT * INTO k FROM api_keys a WHERE a.digest = secret_digest;
  problem := CASE WHEN k.id IS NULL THEN 'This key is not known.' ELSE access.key_problem(k.id) END;
  public_id := k.public_id; team_id := k.team_id;
  IF problem IS NOT NULL THEN
    PERFORM access.bind('anonymous', NULL, 'dk_' || k.public_id, NULL, false, request_id);
    RETURN;
  END IF;
  id := k.id; scopes := k.scopes; agent := k.agent; rate := k.rate;
  IF k.owner_id IS NOT NULL THEN
    SELECT coalesce(nullif(u.email, ''), u.username), u.id INTO owner, owner_id FROM public.auth_user u WHERE u.id = k.owner_id;
    role := access.standing(k.owner_id, k.team_id);
  END IF;
  IF k.made_by_id IS NOT NULL THEN
    WITH RECURSIVE line AS (
      SELECT 0 AS up, a.* FROM api_keys a WHERE a.id = k.made_by_id
      UNION ALL SELECT up + 1, m.* FROM line JOIN api_keys m ON m.id = line.made_by_id)
    SELECT jsonb_agg(jsonb_build_array('dk_' || line.public_id, line.rate) ORDER BY up) INTO makers FROM line;
  END IF;
  IF coalesce(k.last_used_at, '-infinity') < now() - interval '10 minutes' AND NOT pg_is_in_recovery() THEN
    UPDATE api_keys SET last_used_at = now()
    WHERE api_keys.id = (SELECT a.id FROM api_keys a WHERE a.id = k.id FOR NO KEY UPDATE SKIP LOCKED);
  END IF;
  PERFORM access.bind('key', k.id, 'dk_' || k.public_id, ARRAY[k.team_id], false, request_id);
END $$;

-- For processes of the version before, while they still run: a key that has ended is none for them either.
CREATE OR REPLACE FUNCTION access.bind_key(secret_digest bytea, request_id text, OUT id bigint, OUT public_id text, OUT team_id bigint,
  OUT scopes text[], OUT agent boolean, OUT rate text, OUT owner text, OUT owner_id bigint, OUT problem text)
LANGUAGE sql SECURITY DEFINER SET search_path = metadata, public, pg_temp AS $$
  SELECT id, public_id, team_id, scopes, agent, rate, owner, owner_id, problem FROM access.bind_api_key(secret_digest, request_id) $$;

-- What has ended stays ended: who comes back to a team makes new keys.
CREATE FUNCTION access.end_keys_of_person() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = metadata, public, pg_temp AS $$
DECLARE
  person bigint := CASE TG_TABLE_NAME WHEN 'memberships' THEN (to_jsonb(OLD) ->> 'user_id')::bigint ELSE (to_jsonb(OLD) ->> 'id')::bigint END;
BEGIN
  UPDATE api_keys SET revoked_at = now() WHERE owner_id = person AND revoked_at IS NULL
    AND (expires_at IS NULL OR expires_at > now()) AND access.standing(person, team_id) IS NULL;
  RETURN NULL;
END $$;
CREATE TRIGGER ends_keys AFTER UPDATE OR DELETE ON metadata.memberships FOR EACH ROW EXECUTE FUNCTION access.end_keys_of_person();
CREATE TRIGGER ends_keys AFTER UPDATE OF is_active, is_superuser ON public.auth_user FOR EACH ROW
  WHEN ((OLD.is_active, OLD.is_superuser) IS DISTINCT FROM (NEW.is_active, NEW.is_superuser)) EXECUTE FUNCTION access.end_keys_of_person();

-- A key that loses its owner ends, instead of becoming one that needs none.
CREATE FUNCTION access.end_key_without_owner() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NEW.revoked_at := coalesce(NEW.revoked_at, now());
  RETURN NEW;
END $$;
CREATE TRIGGER ends_without_owner BEFORE UPDATE OF owner_id ON metadata.api_keys FOR EACH ROW
  WHEN (OLD.owner_id IS NOT NULL AND NEW.owner_id IS DISTINCT FROM OLD.owner_id) EXECUTE FUNCTION access.end_key_without_owner();

CREATE FUNCTION access.end_keys_made() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = metadata, public, pg_temp AS $$
BEGIN
  UPDATE api_keys SET revoked_at = NEW.revoked_at WHERE made_by_id = NEW.id AND revoked_at IS NULL;
  RETURN NULL;
END $$;
CREATE TRIGGER ends_keys_made AFTER UPDATE ON metadata.api_keys FOR EACH ROW
  WHEN (OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL) EXECUTE FUNCTION access.end_keys_made();

REVOKE EXECUTE ON FUNCTION access.standing, access.key_problem, access.bind_api_key, access.end_keys_of_person,
  access.end_key_without_owner, access.end_keys_made FROM PUBLIC;
GRANT EXECUTE ON FUNCTION access.bind_api_key, access.standing, access.key_problem TO decisioning_web, decisioning_worker;
"""

REVERSE = """
DROP TRIGGER ends_keys ON metadata.memberships; DROP TRIGGER ends_keys ON public.auth_user;
DROP TRIGGER ends_without_owner ON metadata.api_keys; DROP TRIGGER ends_keys_made ON metadata.api_keys;
CREATE OR REPLACE FUNCTION access.bind_key(secret_digest bytea, request_id text, OUT id bigint, OUT public_id text, OUT team_id bigint,
  OUT scopes text[], OUT agent boolean, OUT rate text, OUT owner text, OUT owner_id bigint, OUT problem text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = metadata, public, pg_temp AS $$
DECLARE
  k api_keys;
BEGIN
  SELECT * INTO k FROM api_keys a WHERE a.digest = secret_digest;
  problem := CASE WHEN k.id IS NULL THEN 'This key is not known.'
                  WHEN k.revoked_at IS NOT NULL THEN 'This key was revoked.'
                  WHEN k.expires_at <= now() THEN 'This key has expired.' END;
  IF problem IS NOT NULL THEN
    PERFORM access.bind('anonymous', NULL, NULL, NULL, false, request_id);
    RETURN;
  END IF;
  id := k.id; public_id := k.public_id; team_id := k.team_id; scopes := k.scopes; agent := k.agent; rate := k.rate;
  SELECT coalesce(nullif(u.email, ''), u.username), u.id INTO owner, owner_id FROM public.auth_user u WHERE u.id = k.owner_id;
  IF coalesce(k.last_used_at, '-infinity') < now() - interval '10 minutes' AND NOT pg_is_in_recovery() THEN
    UPDATE api_keys SET last_used_at = now()
    WHERE api_keys.id = (SELECT a.id FROM api_keys a WHERE a.id = k.id FOR NO KEY UPDATE SKIP LOCKED);
  END IF;
  PERFORM access.bind('key', k.id, 'dk_' || k.public_id, ARRAY[k.team_id], false, request_id);
END $$;
DROP FUNCTION access.end_keys_made, access.end_key_without_owner, access.end_keys_of_person, access.bind_api_key, access.key_problem, access.standing;
"""


class Migration(migrations.Migration):
    dependencies = [("access", "0004_reads")]
    operations = [
        migrations.AddField(
            model_name="apikey",
            name="made_by",
            field=models.ForeignKey(
                blank=True,
                help_text="The key that asked for this one: it ends with it.",
                null=True,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="made",
                to="access.apikey",
            ),
        ),
        migrations.RunSQL(STANDING, REVERSE),
    ]
