"""The nouns (client, pipeline, run, rule), their values, and what follows from them: schedules, health, the state of
syncs, evaluation of rules. Pure: no I/O, no clock, no Dagster, no SQL.
"""
