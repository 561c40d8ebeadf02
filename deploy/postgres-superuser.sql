-- For the container alone: its superuser can log in only from inside it, with `docker compose exec postgres psql -U postgres`.
-- Never run this on a server of your own: it would lock the superuser out.
ALTER ROLE postgres PASSWORD NULL;
