"""CHM, the Client Health Monitor: shows which clients' data pipelines are healthy."""
