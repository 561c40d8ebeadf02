"""The use case: ask partners for runs, land what they say, map it, and bring the ledger up to date."""
