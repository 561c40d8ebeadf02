"""`make bench`: what ingestion costs, beside what it could cost at best and at worst, in one run on one server."""
