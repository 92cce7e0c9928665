#!/bin/sh
# Makes the database and its roles on an external PostgreSQL, as a superuser (libpq's PG* variables say where and who).
# Passwords come from the environment and from nowhere else. Safe to repeat; a changed password is set.
set -eu
roles=${ROLES_SQL:-$(dirname "$0")/../decisioning/roles.sql}
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname postgres --file "$roles"
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname postgres \
    --set owner="${DECISIONING_OWNER_PASSWORD:?}" --set web="${DECISIONING_WEB_PASSWORD:?}" \
    --set worker="${DECISIONING_WORKER_PASSWORD:?}" --set backup="${DECISIONING_BACKUP_PASSWORD:?}" <<'SQL'
ALTER ROLE decisioning_owner PASSWORD :'owner';
ALTER ROLE decisioning_web PASSWORD :'web';
ALTER ROLE decisioning_worker PASSWORD :'worker';
ALTER ROLE decisioning_backup PASSWORD :'backup';
SELECT 'CREATE DATABASE decisioning OWNER decisioning_owner'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'decisioning') \gexec
SQL
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --dbname decisioning --file "$(dirname "$roles")/readers.sql"
