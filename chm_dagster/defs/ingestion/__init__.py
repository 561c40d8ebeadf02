"""From partners to the ledger, one partition for each pipeline."""
