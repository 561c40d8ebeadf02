"""CHM, the Client Health Monitor: whose data pipelines are healthy, at any minute."""
