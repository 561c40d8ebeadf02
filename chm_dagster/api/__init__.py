"""The HTTP API: one router per noun over the warehouse, and the only home of FastAPI."""
