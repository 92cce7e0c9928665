"""audit.seals: a hash chain over closed ranges of entries, so that nobody edits history unseen, the owner included."""

from django.db import migrations

FORWARD = r"""
-- What an entry says, as 32 bytes. The columns are named: with to_jsonb(e) a column added later would change every hash. No time zone
-- is involved.
CREATE FUNCTION audit.hash(e audit.entries) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE
  RETURN sha256(convert_to(jsonb_build_array(e.id, e.content_type_id, e.object_pk, e.object_id, e.object_repr, e.serialized_data, e.action,
    e.changes, e.changes_text, (extract(epoch FROM e.timestamp) * 1000000)::bigint, e.cid, e.remote_addr, e.remote_port, e.additional_data,
    e.actor_id, e.actor_email, e.actor_kind, e.actor_name, e.team_id, e.experiment_id)::text, 'UTF8'));

-- One closed range: the ids in it, the hash of each, and the digest that chains it to the seal before. The hashes let a verification
-- name the entry.
CREATE TABLE audit.seals (
  n bigint PRIMARY KEY CHECK (n > 0),
  from_id bigint NOT NULL,
  to_id bigint NOT NULL CHECK (to_id >= from_id),
  ids bigint[] NOT NULL,
  hashes bytea[] NOT NULL CHECK (cardinality(hashes) = cardinality(ids)),
  digest bytea NOT NULL,
  sealed_at timestamptz NOT NULL
);
-- The last id drawn when a tick looked, and the transaction id it drew after that.
CREATE TABLE audit.mark (one boolean PRIMARY KEY DEFAULT true CHECK (one), last_id bigint NOT NULL, next_xid xid8 NOT NULL);
-- What the last verification found.
CREATE TABLE audit.verification (
  one boolean PRIMARY KEY DEFAULT true CHECK (one), at timestamptz NOT NULL, seals bigint NOT NULL, entries bigint NOT NULL, problem text NOT NULL);

CREATE FUNCTION audit.digest(prev bytea, from_id bigint, to_id bigint, hashes bytea[]) RETURNS bytea LANGUAGE sql IMMUTABLE
  RETURN sha256(prev || convert_to(from_id || '-' || to_id || ':', 'UTF8') || coalesce((SELECT string_agg(h, ''::bytea ORDER BY i) FROM unnest(hashes) WITH ORDINALITY AS u(h, i)), ''::bytea));

-- A range is closed when every transaction that could hold one of its ids has ended. So a tick notes the last id drawn and then draws a
-- transaction id of its own; a later tick seals up to that id once no older transaction runs. (A writer owns its transaction id before it
-- draws the entry's id. pg_snapshot_xmax will not do: running transactions can be above it.) A restored cluster, whose transaction
-- ids start low, waits one tick more. At most `most` ids a seal. Returns the seal made, or nothing.
CREATE FUNCTION audit.seal(most bigint DEFAULT 20000) RETURNS SETOF audit.seals LANGUAGE plpgsql SECURITY DEFINER
SET search_path = audit, pg_temp AS $$
DECLARE
  m mark; last seals; top bigint; own xid8; done bigint; until bigint;
BEGIN
  IF pg_current_xact_id_if_assigned() IS NOT NULL THEN RAISE EXCEPTION 'audit.seal() needs a transaction of its own'; END IF;
  PERFORM pg_advisory_xact_lock(hashtext('audit.seal'));
  SELECT * INTO m FROM mark;
  SELECT * INTO last FROM seals ORDER BY n DESC LIMIT 1;
  done := coalesce(last.to_id, 0);
  SELECT CASE WHEN is_called THEN last_value ELSE 0 END INTO top FROM entries_id_seq;
  IF top = done THEN RETURN; END IF;
  own := pg_current_xact_id();                                  -- after the id was read, or a writer could slip in between
  IF m.last_id > done AND m.next_xid <= own THEN
    IF pg_snapshot_xmin(pg_current_snapshot()) < m.next_xid THEN RETURN; END IF;           -- an older writer still runs
    until := least(m.last_id, done + most);
    RETURN QUERY
      INSERT INTO seals (n, from_id, to_id, ids, hashes, digest, sealed_at)
      SELECT coalesce(last.n, 0) + 1, done + 1, until, ids, hashes, digest(coalesce(last.digest, ''), done + 1, until, hashes), now()
      FROM (SELECT coalesce(array_agg(e.id ORDER BY e.id), '{}') AS ids, coalesce(array_agg(hash(e) ORDER BY e.id), '{}') AS hashes
            FROM entries e WHERE e.id BETWEEN done + 1 AND until) AS found
      RETURNING *;
    IF until < m.last_id THEN RETURN; END IF;                   -- the mark holds for the rest of its range
  END IF;
  INSERT INTO mark (last_id, next_xid) VALUES (top, own) ON CONFLICT (one) DO UPDATE SET last_id = top, next_xid = own;
END $$;

-- The first thing that is wrong, or NULL. `anchors` maps seal numbers to digests (hex) noted outside this database: they alone
-- find a tail cut together with its seals, or a chain written anew.
CREATE FUNCTION audit.verify(anchors jsonb DEFAULT '{}', OUT seals bigint, OUT entries bigint, OUT waiting bigint, OUT problem text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = audit, pg_temp AS $$
DECLARE
  s audit.seals; prev bytea := ''; at bigint := 0; bad record; missing bigint;
BEGIN
  seals := 0; entries := 0;
  FOR s IN SELECT * FROM audit.seals ORDER BY n LOOP
    IF s.n <> seals + 1 OR s.from_id <> at + 1 THEN
      problem := format('seal %s is missing: entries from %s on are not vouched for', seals + 1, at + 1); EXIT;
    END IF;
    SELECT coalesce(a.id, b.id) AS id, CASE WHEN b.id IS NULL THEN 'is gone' WHEN a.id IS NULL THEN 'was added after the sealing' ELSE 'was changed' END AS how
      INTO bad FROM unnest(s.ids, s.hashes) AS a(id, h)
      FULL JOIN (SELECT e.id, hash(e) AS h FROM audit.entries e WHERE e.id BETWEEN s.from_id AND s.to_id) AS b ON b.id = a.id
      WHERE a.h IS DISTINCT FROM b.h ORDER BY 1 LIMIT 1;
    IF FOUND THEN problem := format('entry %s %s (seal %s)', bad.id, bad.how, s.n); EXIT; END IF;
    IF s.digest <> digest(prev, s.from_id, s.to_id, s.hashes) THEN
      problem := format('seal %s was changed: entries %s to %s are not vouched for', s.n, s.from_id, s.to_id); EXIT;
    END IF;
    IF anchors ->> s.n::text <> encode(s.digest, 'hex') THEN
      problem := format('entry %s or a later one up to %s was changed, and seal %s with it: it is not the seal noted outside the database', s.from_id, s.to_id, s.n); EXIT;
    END IF;
    seals := s.n; entries := entries + cardinality(s.ids); prev := s.digest; at := s.to_id;
  END LOOP;
  IF problem IS NULL THEN
    SELECT min(k::bigint) INTO missing FROM jsonb_object_keys(anchors) AS k WHERE k::bigint > seals;
    IF missing IS NOT NULL THEN problem := format('the tail is cut: entries from %s on are gone with their seal %s', at + 1, missing); END IF;
  END IF;
  SELECT count(*) INTO waiting FROM audit.entries e WHERE e.id > at;
  INSERT INTO verification (at, seals, entries, problem) VALUES (now(), verify.seals, verify.entries, coalesce(verify.problem, ''))
  ON CONFLICT (one) DO UPDATE SET at = excluded.at, seals = excluded.seals, entries = excluded.entries, problem = excluded.problem;
END $$;

REVOKE EXECUTE ON FUNCTION audit.hash, audit.digest, audit.seal, audit.verify FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit.seal, audit.verify TO decisioning_worker;
GRANT EXECUTE ON FUNCTION audit.hash TO decisioning_web, decisioning_worker, decisioning_reader;
-- That history is sealed is everybody's to know; which ids belong to whom is not.
GRANT SELECT (n, from_id, to_id, digest, sealed_at) ON audit.seals TO decisioning_web, decisioning_worker, decisioning_reader;
GRANT SELECT ON audit.verification TO decisioning_web, decisioning_worker;
"""

REVERSE = """
DROP FUNCTION audit.verify, audit.seal, audit.digest;
DROP FUNCTION audit.hash;
DROP TABLE audit.seals, audit.mark, audit.verification;
"""


class Migration(migrations.Migration):
    dependencies = [("ledger", "0002_audit")]
    operations = [migrations.RunSQL(FORWARD, REVERSE)]
