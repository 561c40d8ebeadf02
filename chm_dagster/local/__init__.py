"""Running on one machine: a private Postgres and the processes of `chm up`. Used by entry points only."""
