"""The use case: read runs from partners, land the records, map them, and update the ledger."""
