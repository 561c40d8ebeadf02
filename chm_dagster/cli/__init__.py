"""`chm`: one module for each noun or question, and `up` for all that installs and runs."""
