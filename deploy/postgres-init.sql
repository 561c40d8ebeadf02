-- Two databases, three with Metabase's, each owned by a role of its own without superuser rights, and the roles of deploy/roles.sql. The passwords
-- come from the environment; without that of chm_app or chm_bi, nobody can log in as it, and without that of
-- chm_metabase (CHM_METABASE_POSTGRES_PASSWORD) there is no database for Metabase:
--   CHM_POSTGRES_PASSWORD='...' CHM_APP_POSTGRES_PASSWORD='...' CHM_DAGSTER_POSTGRES_PASSWORD='...' \
--     CHM_BI_POSTGRES_PASSWORD='...' psql -v ON_ERROR_STOP=1 -f deploy/postgres-init.sql
-- In containers it runs once, when the volume is empty.
\getenv chm_password CHM_POSTGRES_PASSWORD
\getenv dagster_password CHM_DAGSTER_POSTGRES_PASSWORD
CREATE ROLE chm LOGIN PASSWORD :'chm_password';
CREATE ROLE chm_dagster LOGIN PASSWORD :'dagster_password';
CREATE DATABASE chm OWNER chm;
CREATE DATABASE chm_dagster OWNER chm_dagster;
REVOKE ALL ON DATABASE chm, chm_dagster FROM PUBLIC;
\getenv metabase_password CHM_METABASE_POSTGRES_PASSWORD
\if :{?metabase_password}
CREATE ROLE chm_metabase LOGIN PASSWORD :'metabase_password';
CREATE DATABASE chm_metabase OWNER chm_metabase;
REVOKE ALL ON DATABASE chm_metabase FROM PUBLIC;
\endif
-- Roles without a password yet, and what only a superuser may take away. `chm migrate --roles` grants the tables.
\getenv app_password CHM_APP_POSTGRES_PASSWORD
\getenv bi_password CHM_BI_POSTGRES_PASSWORD
\connect chm
\ir roles.sql
\if :{?app_password}
ALTER ROLE chm_app PASSWORD :'app_password';
\endif
\if :{?bi_password}
ALTER ROLE chm_bi PASSWORD :'bi_password';
\endif
