"""Who is deleted is erased: his names go from every record and from the audit, whose chain tells that and stays whole."""

from django.db import migrations

FORWARD = r"""
SET LOCAL lock_timeout = '1500ms';

-- Whose names have to go. Held until they have: `audit.erase` takes them up once nobody can write them any more.
CREATE TABLE audit.to_erase (
  person bigint PRIMARY KEY, names text[] NOT NULL, asked_at timestamptz NOT NULL DEFAULT now(), xid xid8 NOT NULL DEFAULT pg_current_xact_id());
-- What sealed entries said before and after, as hashes. The entry `access.erasure` of the same person holds a digest of these rows, and the
-- chain holds that entry: whoever changes history by this door is in it.
CREATE TABLE audit.erased (person bigint, id bigint, before bytea NOT NULL, after bytea NOT NULL, PRIMARY KEY (person, id));
CREATE INDEX erased_by_entry ON audit.erased (id);

CREATE FUNCTION audit.erasure_asked() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = audit, pg_temp AS $$
BEGIN
  INSERT INTO to_erase (person, names) VALUES (OLD.id, ARRAY(
    SELECT DISTINCT lower(name) FROM unnest(ARRAY[OLD.username, OLD.email, OLD.first_name, OLD.last_name, OLD.first_name || ' ' || OLD.last_name]) AS name
    WHERE btrim(name) <> '')) ON CONFLICT DO NOTHING;
  RETURN NULL;
END $$;
CREATE TRIGGER erased AFTER DELETE ON public.auth_user FOR EACH ROW EXECUTE FUNCTION audit.erasure_asked();

CREATE FUNCTION audit.names_in(said text, names text[]) RETURNS boolean LANGUAGE sql IMMUTABLE
  RETURN EXISTS (SELECT FROM unnest(names) AS name WHERE strpos(lower(said), name) > 0);

-- A text without the names. Where a person stands (of_person), a text that is one of them is another; anywhere else an e-mail address is, and
-- with `words` any name: a user called "checkout" is not what an experiment of that key is called.
CREATE FUNCTION audit.unnamed(said text, names text[], pseudonym text, of_person boolean, words boolean DEFAULT false) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = audit, pg_temp AS $$
DECLARE
  name text;
BEGIN
  IF of_person AND lower(said) = ANY (names) THEN RETURN pseudonym; END IF;
  FOREACH name IN ARRAY names LOOP
    IF (words OR name LIKE '%@%') AND strpos(lower(said), name) > 0 THEN
      said := regexp_replace(said, '(?<![\w.+-])' || regexp_replace(name, '([^[:alnum:]_])', '\\\1', 'g') || '(?![\w-]|\.\w)', pseudonym, 'gi');
    END IF;
  END LOOP;
  RETURN said;
END $$;

-- The same of a document, under whose keys people stand.
CREATE FUNCTION audit.unnamed(doc jsonb, names text[], pseudonym text, of_person boolean) RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = audit, pg_temp AS $$
  SELECT CASE jsonb_typeof(doc)
    WHEN 'object' THEN (SELECT coalesce(jsonb_object_agg(k, unnamed(v, names, pseudonym, k = ANY (
      '{by,owner,author,activated_by,asked_by,created_by,used_by,snoozed_by,acknowledged_by,username,email,first_name,last_name}'))), '{}') FROM jsonb_each(doc) AS e(k, v))
    WHEN 'array' THEN (SELECT coalesce(jsonb_agg(unnamed(v, names, pseudonym, of_person) ORDER BY i), '[]') FROM jsonb_array_elements(doc) WITH ORDINALITY AS e(v, i))
    WHEN 'string' THEN to_jsonb(unnamed(doc #>> '{}', names, pseudonym, of_person))
    ELSE doc END $$;

-- Erase one person that was deleted; who it was, or nothing. Waits until every transaction has ended that ran when he was deleted.
CREATE FUNCTION audit.erase() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = audit, public, pg_temp SET timezone = 'UTC' AS $$
DECLARE
  asked to_erase; names text[]; pseudonym text; sealed bigint; top bigint; place record; number bigint; entry bigint;
  people constant int := audit.content_type('auth.user');
BEGIN
  SELECT * INTO asked FROM to_erase t WHERE t.xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY t.asked_at LIMIT 1 FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN RETURN NULL; END IF;
  pseudonym := 'person-' || asked.person;
  -- What he was called before he was renamed, too. A name that somebody else has by now is his.
  names := ARRAY(
    SELECT DISTINCT said.name FROM (
      SELECT unnest(asked.names) AS name UNION ALL
      SELECT lower(pair.value #>> '{}') FROM entries e, jsonb_each(e.changes) AS field, jsonb_array_elements(field.value) AS pair
      WHERE e.content_type_id = people AND e.object_pk = asked.person::text AND field.key IN ('username', 'email') AND jsonb_typeof(field.value) = 'array') AS said
    WHERE btrim(coalesce(said.name, '')) <> '' AND NOT EXISTS (SELECT FROM public.auth_user u WHERE said.name IN (lower(u.username), lower(u.email))));
  LOCK TABLE mark IN SHARE ROW EXCLUSIVE MODE;                    -- nothing is sealed meanwhile
  sealed := coalesce((SELECT max(to_id) FROM seals), 0);

  FOR place IN SELECT * FROM (VALUES
    ('metadata.decisions', 'by', true), ('metadata.decisions', 'reason', false), ('metadata.experiments', 'owner', true),
    ('metadata.experiments', 'hypothesis', false), ('metadata.policy_versions', 'author', true), ('metadata.policy_versions', 'activated_by', true),
    ('metadata.backtests', 'asked_by', true), ('metadata.invitations', 'email', true), ('metadata.invitations', 'created_by', true),
    ('metadata.invitations', 'used_by', true), ('metadata.channels', 'created_by', true), ('metadata.alarms', 'snoozed_by', true),
    ('metadata.alarms', 'acknowledged_by', true), ('metadata.alarms', 'snoozed_because', false), ('metadata.outages', 'reason', false)) AS p (tab, col, of_person)
  LOOP
    EXECUTE format('UPDATE %1$s SET %2$I = audit.unnamed(%2$I, $1, $2, $3) WHERE audit.names_in(%2$I, $1) AND audit.unnamed(%2$I, $1, $2, $3) <> %2$I',
                   place.tab, place.col) USING names, pseudonym, place.of_person;
  END LOOP;
  -- Its reason is in evidence, whose digest people's decisions hold.
  UPDATE metadata.target_kpis k SET trusted = (
      SELECT jsonb_agg(CASE WHEN lower(t ->> 'by') = ANY (names) THEN t || jsonb_build_object('by', pseudonym) ELSE t END ORDER BY i)
      FROM jsonb_array_elements(k.trusted) WITH ORDINALITY AS e(t, i))
    WHERE EXISTS (SELECT FROM jsonb_array_elements(k.trusted) AS t WHERE lower(t ->> 'by') = ANY (names));
  UPDATE audit.outbox SET data = unnamed(data, names, pseudonym, false) WHERE names_in(data::text, names);
  UPDATE metadata.alarms SET data = unnamed(data, names, pseudonym, false), told = unnamed(told, names, pseudonym, false) WHERE names_in(data::text || told::text, names);
  UPDATE public.django_admin_log SET object_repr = left(unnamed(object_repr, names, pseudonym, true, true), 200), change_message = unnamed(change_message, names, pseudonym, true, true)
    WHERE names_in(object_repr || ' ' || change_message, names);
  DELETE FROM public.login_attempts WHERE lower(username) = ANY (names);
  DELETE FROM noted WHERE names_in(who, names);
  DELETE FROM metadata.idempotency WHERE names_in(encode(body, 'escape'), names);
  -- The entries of just these changes hold the names they took away, and are nobody's yet.
  DELETE FROM entries e WHERE e.xmin::text::bigint = pg_current_xact_id()::text::bigint & 4294967295;

  WITH found AS (
    SELECT e.id, hash(e) AS before, e.content_type_id IN (people, content_type('access.signin'), content_type('access.signout'), content_type('access.failedsignin')) AS of_person
    FROM entries e
    WHERE (e.actor_kind = 'user' AND e.actor_id = asked.person)
      OR names_in(concat_ws(' ', e.actor_name, e.actor_email, e.object_repr, e.changes::text, e.serialized_data::text, e.additional_data::text), names)
  ), changed AS (
    UPDATE entries e SET
      actor_name = CASE WHEN e.actor_kind = 'user' AND e.actor_id = asked.person THEN pseudonym ELSE unnamed(e.actor_name, names, pseudonym, e.actor_kind = 'user' AND e.actor_id IS NULL) END,
      actor_email = unnamed(e.actor_email, names, pseudonym, true),
      remote_addr = CASE WHEN e.actor_kind = 'user' AND e.actor_id = asked.person THEN NULL ELSE e.remote_addr END,
      object_repr = unnamed(e.object_repr, names, pseudonym, f.of_person),
      changes = unnamed(e.changes, names, pseudonym, false),
      serialized_data = unnamed(e.serialized_data, names, pseudonym, false), additional_data = unnamed(e.additional_data, names, pseudonym, false)
    FROM found f WHERE f.id = e.id RETURNING e.id, f.before, hash(e) AS after
  ), kept AS (
    INSERT INTO erased SELECT asked.person, c.id, c.before, c.after FROM changed c WHERE c.id <= sealed AND c.before <> c.after RETURNING 1)
  SELECT count(*) INTO number FROM changed c WHERE c.before <> c.after;

  entry := enter('access.erasure', 1, asked.person::text, pseudonym, jsonb_build_object('entries', jsonb_build_array(NULL, number),
                 'digest', jsonb_build_array(NULL, encode(erasure_digest(asked.person), 'hex'))), NULL, NULL, NULL, NULL);
  DELETE FROM to_erase WHERE person = asked.person;
  RETURN asked.person;
END $$;

CREATE FUNCTION audit.erasure_digest(of bigint) RETURNS bytea LANGUAGE sql STABLE SET search_path = audit, pg_temp
  AS $$ SELECT sha256(coalesce(string_agg(int8send(x.id) || x.before || x.after, ''::bytea ORDER BY x.id), '')) FROM erased x WHERE x.person = of $$;

-- The hash an entry has to have that was sealed with this one: what erasures have made of it, each vouched for by its entry.
CREATE FUNCTION audit.now_hashed(of bigint, hashed bytea) RETURNS bytea LANGUAGE plpgsql STABLE SET search_path = audit, pg_temp AS $$
DECLARE
  step record;
BEGIN
  LOOP
    SELECT x.after INTO step FROM erased x WHERE x.id = of AND x.before = hashed AND x.after <> hashed;
    IF NOT FOUND THEN RETURN hashed; END IF;
    hashed := step.after;
  END LOOP;
END $$;

CREATE OR REPLACE FUNCTION audit.verify(anchors jsonb DEFAULT '{}', OUT seals bigint, OUT entries bigint, OUT waiting bigint, OUT problem text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = audit, pg_temp AS $$
DECLARE
  s audit.seals; prev bytea := ''; at bigint := 0; bad record; missing bigint; unvouched bigint;
BEGIN
  seals := 0; entries := 0;
  SELECT min(x.person) INTO unvouched FROM (SELECT DISTINCT person FROM audit.erased) AS x WHERE NOT EXISTS (
    SELECT FROM audit.entries e JOIN public.django_content_type c ON c.id = e.content_type_id AND (c.app_label, c.model) = ('access', 'erasure')
    WHERE e.object_pk = x.person::text AND e.changes #>> '{digest,1}' = encode(erasure_digest(x.person), 'hex'));
  IF unvouched IS NOT NULL THEN problem := format('no entry vouches for the erasure of person-%s: entries were changed by its name', unvouched); END IF;
  FOR s IN SELECT * FROM audit.seals ORDER BY n LOOP
    EXIT WHEN problem IS NOT NULL;
    IF s.n <> seals + 1 OR s.from_id <> at + 1 THEN
      problem := format('seal %s is missing: entries from %s on are not vouched for', seals + 1, at + 1); EXIT;
    END IF;
    SELECT coalesce(a.id, b.id) AS id, CASE WHEN b.id IS NULL THEN 'is gone' WHEN a.id IS NULL THEN 'was added after the sealing' ELSE 'was changed' END AS how
      INTO bad FROM unnest(s.ids, s.hashes) AS a(id, h)
      FULL JOIN (SELECT e.id, hash(e) AS h FROM audit.entries e WHERE e.id BETWEEN s.from_id AND s.to_id) AS b ON b.id = a.id
      WHERE a.h IS DISTINCT FROM b.h AND (a.id IS NULL OR b.id IS NULL OR now_hashed(a.id, a.h) <> b.h) ORDER BY 1 LIMIT 1;
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

REVOKE EXECUTE ON FUNCTION audit.erasure_asked, audit.names_in, audit.unnamed(text, text[], text, boolean, boolean), audit.unnamed(jsonb, text[], text, boolean),
  audit.erase, audit.erasure_digest, audit.now_hashed FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit.erase TO decisioning_worker;
GRANT SELECT (person, id) ON audit.erased TO decisioning_worker;
"""


def verify_before() -> str:
    """What `audit.verify` was, taken from where it was made."""
    import importlib

    made = importlib.import_module("decisioning.ledger.migrations.0003_seals").FORWARD
    begin = made.index("CREATE FUNCTION audit.verify(")
    text: str = made[begin : made.index("END $$;", begin) + len("END $$;")]
    return text.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")


REVERSE = f"""
{verify_before()}
DROP TRIGGER erased ON public.auth_user;
DROP FUNCTION audit.erase, audit.erasure_asked, audit.now_hashed, audit.erasure_digest, audit.names_in,
  audit.unnamed(jsonb, text[], text, boolean), audit.unnamed(text, text[], text, boolean, boolean);
DROP TABLE audit.erased, audit.to_erase;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("ledger", "0006_snoozed"),
        ("experiments", "0005_doubt"),
        ("telemetry", "0019_outages"),
        ("gates", "0018_outages_disturb"),
        ("access", "0009_quotas"),
    ]
    operations = [migrations.RunSQL(FORWARD, REVERSE)]
