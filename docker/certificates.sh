#!/bin/sh
# Certificates for PostgreSQL and Valkey inside Compose:  sh docker/certificates.sh FOLDER [--new]
# FOLDER/ca/ca.crt is for who connects, FOLDER/{postgres,valkey}/server.{crt,key} and ca.crt for who serves. The authority's key is thrown
# away: who needs another certificate makes all of them anew, and starts again who uses them. What is there and lasts 60 days is kept.
set -eu
umask 077
at=${1:?the folder}
days=825 soon=$((60 * 86400)) images_user=999
if [ "${2:-}" != --new ] && openssl x509 -in "$at/ca/ca.crt" -noout -checkend $soon 2>/dev/null \
    && openssl verify -CAfile "$at/ca/ca.crt" "$at/postgres/server.crt" "$at/valkey/server.crt" >/dev/null 2>&1; then
    echo "Certificates are there."
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days $days -subj "/CN=decisioning inside" \
    -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign" \
    -keyout "$work/ca.key" -out "$work/ca.crt" 2>/dev/null
mkdir -p "$at/ca"
for name in postgres valkey; do
    mkdir -p "$at/$name"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$name" -keyout "$work/$name.key" -out "$work/$name.csr" 2>/dev/null
    printf 'subjectAltName=DNS:%s,DNS:localhost\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE\n' "$name" >"$work/$name.ext"
    openssl x509 -req -in "$work/$name.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial -days $days \
        -extfile "$work/$name.ext" -out "$work/$name.crt" 2>/dev/null
    cp "$work/$name.crt" "$at/$name/server.crt"
    cp "$work/$name.key" "$at/$name/server.key"
    cp "$work/ca.crt" "$at/$name/ca.crt"
    chmod 755 "$at/$name"
    chmod 644 "$at/$name/server.crt" "$at/$name/ca.crt"
    if [ "$(id -u)" = 0 ]; then chown $images_user "$at/$name/server.key"; fi # as whom both images serve
done
cp "$work/ca.crt" "$at/ca/ca.crt"
chmod 755 "$at/ca"
chmod 644 "$at/ca/ca.crt"
echo "Certificates are made, for $days days."
