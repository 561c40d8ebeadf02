"""The table `runs`, and what the database knows of syncs: merge observations, record single runs, read, claim."""
