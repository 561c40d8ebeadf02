"""The partner engine: reads the runs of any REST or GraphQL API that a configuration describes."""
