#!/bin/sh
# Gives libpq the passwords of this container in a file that only its user can read. So they are in no URL, may contain any
# character, and are not in the environment of the program that is started.
set -eu
umask 077
line() {
    [ -z "$2" ] || printf '*:*:*:%s:%s\n' "$1" "$(printf '%s' "$2" | sed 's/[\\:]/\\&/g')"
}
if [ -n "${PGPASSFILE:-}" ]; then
    {
        line chm "${CHM_POSTGRES_PASSWORD:-}"
        line chm_app "${CHM_APP_POSTGRES_PASSWORD:-}"
        line chm_dagster "${CHM_DAGSTER_POSTGRES_PASSWORD:-}"
    } >"$PGPASSFILE"
fi
unset CHM_POSTGRES_PASSWORD CHM_APP_POSTGRES_PASSWORD CHM_DAGSTER_POSTGRES_PASSWORD
umask 022
exec "$@"
