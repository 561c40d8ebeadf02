-- Who may do what in CHM's database. `chm migrate --roles` runs this after each migration; containers run it on first start
-- as well. It changes nothing that is as it should be, and psql runs it unchanged.
--
-- - The owner of the database migrates. It owns the tables.
-- - chm_app reads and writes rows. It cannot change the schema.
-- - chm_bi reads, for dashboards and people's own questions: all tables and views, but not what partners sent (payload,
--   lineage). It can make no temporary table and no large object, take no advisory lock and send nothing by pg_notify().
--
-- What only a superuser may do is skipped for anybody else; `chm migrate --roles` then lists what is missing. The limits
-- on time and memory are defaults that a session may change, except temp_file_limit and the number of connections: only
-- privileges bind. Postgres has no privilege for the statements NOTIFY and LISTEN; nothing in CHM listens.

DO $roles$
DECLARE
    may_create boolean := (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user);
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['chm_app', 'chm_bi'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            IF NOT may_create THEN
                RAISE EXCEPTION 'the role % does not exist, and % may not create it', role_name, current_user
                    USING HINT = 'Run deploy/roles.sql once as a superuser.', ERRCODE = 'insufficient_privilege';
            END IF;
            EXECUTE format('CREATE ROLE %I LOGIN', role_name);
        END IF;
        -- The settings of a role may be changed at any time, so they are set again, not only when it is created.
        IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
            EXECUTE format(
                'ALTER ROLE %I NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS NOINHERIT', role_name
            );
        END IF;
    END LOOP;
    IF (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        ALTER ROLE chm_bi CONNECTION LIMIT 10;
        ALTER ROLE chm_bi SET default_transaction_read_only = on;
        ALTER ROLE chm_bi SET statement_timeout = '30s';
        ALTER ROLE chm_bi SET lock_timeout = '5s';
        ALTER ROLE chm_bi SET idle_in_transaction_session_timeout = '60s';
        ALTER ROLE chm_bi SET temp_file_limit = '1GB';
    END IF;
END $roles$;

DO $database$
DECLARE
    owner oid := (SELECT datdba FROM pg_database WHERE datname = current_database());
BEGIN
    IF pg_has_role(owner, 'USAGE') THEN
        EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC, chm_app, chm_bi', current_database());
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO chm_app, chm_bi', current_database());
        -- Runs are staged in a temporary table.
        EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO chm_app', current_database());
    END IF;
END $database$;

-- In this database, functions that lock, notify, sleep or write belong to the owner and chm_app. All overloads are found
-- by name, so that none is forgotten.
DO $functions$
DECLARE
    owner name := (SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database());
    called regprocedure;
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        RETURN;
    END IF;
    FOR called IN
        SELECT p.oid FROM pg_proc AS p
        WHERE p.pronamespace = 'pg_catalog'::regnamespace
          AND (
              p.proname ~ '^(pg_advisory|pg_try_advisory|pg_sleep|lo_|pg_notify$)'
              OR p.proname IN ('loread', 'lowrite', 'pg_cancel_backend', 'pg_terminate_backend', 'pg_export_snapshot')
          )
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC, chm_bi', called);
        -- A writer that was stopped in the middle of a batch is ended by the next one. Postgres lets a role end only its
        -- own sessions.
        IF called::text ~ '^(pg_advisory|pg_try_advisory|pg_sleep|pg_notify|pg_terminate_backend)' THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I, chm_app', called, owner);
        END IF;
    END LOOP;
END $functions$;

-- Tables and views, once there are any. A view runs with the rights of its owner, so a column that is kept back from
-- chm_bi is kept back in every view as well.
DO $tables$
DECLARE
    relation record;
    readable text;
BEGIN
    IF to_regclass('public.runs') IS NULL THEN
        RETURN;
    END IF;
    REVOKE ALL ON SCHEMA public FROM PUBLIC, chm_app, chm_bi;
    GRANT USAGE ON SCHEMA public TO chm_app, chm_bi;
    FOR relation IN
        SELECT c.oid::regclass AS name, c.relname, c.relkind, c.oid
        FROM pg_class AS c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v')
          AND c.relowner = (SELECT relowner FROM pg_class WHERE oid = 'public.runs'::regclass)
    LOOP
        SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO readable
        FROM pg_attribute
        WHERE attrelid = relation.oid AND attnum > 0 AND NOT attisdropped AND attname NOT IN ('payload', 'lineage');
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC, chm_app, chm_bi', relation.name);
        EXECUTE format('GRANT SELECT (%s) ON %s TO chm_bi', readable, relation.name);
        EXECUTE format('GRANT SELECT ON %s TO chm_app', relation.name);
        IF relation.relkind = 'r' AND relation.relname <> 'alembic_version' THEN
            EXECUTE format('GRANT INSERT, UPDATE, DELETE ON %s TO chm_app', relation.name);
        END IF;
    END LOOP;
END $tables$;
