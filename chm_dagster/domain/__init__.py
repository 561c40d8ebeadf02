"""What a client, a pipeline and a run are. Pure: no I/O, no clock, no Dagster, no SQL."""
