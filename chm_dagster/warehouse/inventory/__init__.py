"""Clients, pipelines and alert rules, and how people refer to them."""
