"""CHM's tables and everything that reads or writes them: the only home of SQLAlchemy and SQL."""
