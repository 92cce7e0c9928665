-- What logins of people's SQL tools cannot do to everybody else, made by a superuser in the portal's database. Safe to repeat; it holds for
-- readers made before as well. What it cannot hold (a session may SET its own time limits) the portal's job `access.readers` ends.
DO $fence$
DECLARE
    ours constant text := 'decisioning_owner, decisioning_web, decisioning_worker, decisioning_backup';
    found record;
BEGIN
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO %s', current_database(), ours);

    -- Functions everybody may call unless told otherwise. Large objects: nobody here has any, a backup cannot read them. Advisory locks:
    -- enough of them fill the lock table. A transaction id that is held stops the sealing of the audit. Messages fill WAL and queue.
    -- The rest tells how much other teams write.
    FOR found IN
        SELECT p.oid::regprocedure AS name FROM pg_proc p
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND (
            p.proname ~ '^(lo_|loread$|lowrite$)' OR p.proname ~ 'advisory'
            OR p.proname IN ('pg_current_xact_id', 'txid_current', 'pg_logical_emit_message', 'pg_notify')
            OR p.proname ~ '^pg_stat_get_' OR p.proname IN ('pg_lock_status', 'pg_current_wal_lsn', 'pg_current_wal_insert_lsn', 'pg_current_wal_flush_lsn')
            OR p.proname ~ '^pg_(table|relation|total_relation|indexes|database|tablespace)_size$')
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', found.name);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s, pg_monitor', found.name, ours);
    END LOOP;

    -- Defaults of a session, which it may change, and bounds that only a superuser may: room for sorting on disk, lines in the server's log,
    -- connections. A reader may have given itself other defaults, for this database too.
    FOR found IN
        SELECT r.rolname AS name FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.member
        WHERE m.roleid = 'decisioning_reader'::regrole AND r.rolname <> 'decisioning_owner'
    LOOP
        BEGIN
            SET LOCAL lock_timeout = '2s';  -- it may be holding its own row
            EXECUTE format('ALTER ROLE %I CONNECTION LIMIT 5', found.name);
            EXECUTE format('ALTER ROLE %I IN DATABASE %I RESET ALL', found.name, current_database());
            EXECUTE format('ALTER ROLE %I RESET ALL', found.name);
            EXECUTE format('ALTER ROLE %I SET temp_file_limit = ''1GB''', found.name);
            EXECUTE format('ALTER ROLE %I SET log_min_messages = ''fatal''', found.name);
            EXECUTE format('ALTER ROLE %I SET statement_timeout = ''60s''', found.name);
            EXECUTE format('ALTER ROLE %I SET transaction_timeout = ''300s''', found.name);
            EXECUTE format('ALTER ROLE %I SET idle_in_transaction_session_timeout = ''60s''', found.name);
            EXECUTE format('ALTER ROLE %I SET idle_session_timeout = ''3600s''', found.name);
            EXECUTE format('ALTER ROLE %I SET lock_timeout = ''5s''', found.name);
            EXECUTE format('ALTER ROLE %I SET default_transaction_read_only = on', found.name);
            EXECUTE format('ALTER ROLE %I SET search_path = metadata, metrics, audit, public', found.name);
        EXCEPTION WHEN lock_not_available OR object_in_use OR internal_error THEN
            RAISE WARNING 'The limits of % were not set: it is changing itself. Run this again.', found.name;
        END;
    END LOOP;
END
$fence$;
