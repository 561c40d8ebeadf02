-- Runs once, when the volume is empty. One role that is no superuser owns CHM's database and Dagster's.
\getenv password POSTGRES_PASSWORD
CREATE ROLE chm LOGIN PASSWORD :'password';
CREATE DATABASE chm OWNER chm;
CREATE DATABASE chm_dagster OWNER chm;
REVOKE ALL ON DATABASE chm, chm_dagster FROM PUBLIC;
-- The superuser is left to whoever is inside the container: `docker compose exec postgres psql -U postgres`.
ALTER ROLE postgres PASSWORD NULL;
