#!/bin/sh
# Writes a .env with new random passwords for docker-compose.yml:  sh docker/env.sh decisions.example.org > .env
set -eu
umask 077
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
echo "DECISIONING_SITE=${1:-localhost}"
for name in POSTGRES_PASSWORD VALKEY_PASSWORD DECISIONING_SECRET_KEY DECISIONING_ADMIN_PASSWORD \
    DECISIONING_OWNER_PASSWORD DECISIONING_WEB_PASSWORD DECISIONING_WORKER_PASSWORD DECISIONING_BACKUP_PASSWORD; do
    echo "$name=$(secret)$(secret)"
done
