-- The database roles (docs/adr/0005-row-security-with-three-logins.md), made by a superuser; the passwords come separately.
-- Guarded and safe to repeat: roles belong to the cluster and outlive databases, so they are never dropped.
DO $roles$
DECLARE
    wanted record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('decisioning_owner',  'LOGIN NOBYPASSRLS'),    -- owns the database and everything in it; migrates
            ('decisioning_web',    'LOGIN NOBYPASSRLS'),    -- requests: sees what the bound team may see
            ('decisioning_worker', 'LOGIN NOBYPASSRLS'),    -- ticks and commands: all teams, by policy
            ('decisioning_backup', 'LOGIN BYPASSRLS'),      -- pg_dump: reads everything, writes nothing
            ('decisioning_reader', 'NOLOGIN NOBYPASSRLS')   -- what logins of people's SQL tools inherit
        ) AS roles (name, options)
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted.name) THEN
            EXECUTE format('CREATE ROLE %I NOSUPERUSER NOCREATEDB NOCREATEROLE %s', wanted.name, wanted.options);
        END IF;
    END LOOP;
END
$roles$;
GRANT pg_read_all_data TO decisioning_backup;
GRANT decisioning_reader TO decisioning_owner WITH ADMIN OPTION;
-- The server's reserved_connections are for these, so that readers never take the last ones.
GRANT pg_use_reserved_connections TO decisioning_owner, decisioning_web, decisioning_worker, decisioning_backup;
-- A function of the owner's ends sessions of readers that go beyond their limits, and no others.
GRANT pg_read_all_stats, pg_signal_backend TO decisioning_owner;
-- Everybody may enter these two by default, and fill the disk from there.
REVOKE CONNECT, TEMPORARY ON DATABASE postgres, template1 FROM PUBLIC;
GRANT CONNECT ON DATABASE postgres TO decisioning_owner, decisioning_web, decisioning_worker, decisioning_backup, pg_monitor;
-- What a session of the portal's has from its start. Given here too, since a pooler's sessions are nobody's own.
ALTER ROLE decisioning_owner SET search_path = public, metadata, metrics, audit;
ALTER ROLE decisioning_owner SET lock_timeout = '1500ms';
ALTER ROLE decisioning_owner SET statement_timeout = '600s';
ALTER ROLE decisioning_owner SET idle_in_transaction_session_timeout = '300s';
ALTER ROLE decisioning_web SET search_path = public, metadata, metrics, audit;
ALTER ROLE decisioning_web SET lock_timeout = '2s';
ALTER ROLE decisioning_web SET statement_timeout = '30s';
ALTER ROLE decisioning_web SET idle_in_transaction_session_timeout = '300s';
ALTER ROLE decisioning_worker SET search_path = public, metadata, metrics, audit;
ALTER ROLE decisioning_worker SET lock_timeout = '10s';
ALTER ROLE decisioning_worker SET statement_timeout = '600s';
ALTER ROLE decisioning_worker SET idle_in_transaction_session_timeout = '300s';
