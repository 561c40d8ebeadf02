"""`chm`: one module for each noun."""
