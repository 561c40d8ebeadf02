"""Dagster words only: what the operator sees in the UI. All behaviour lives further down."""
