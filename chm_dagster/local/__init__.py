"""One machine: a private Postgres and the processes of `chm up`. Only entry points use it."""
