"""The Dagster layer: what the operator sees in the UI. All behaviour is implemented in the layers below."""
