"""Alerting: evaluate the rules, and deliver what is to be announced."""
