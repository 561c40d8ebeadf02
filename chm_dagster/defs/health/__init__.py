"""What the ledger says about the health of clients."""
