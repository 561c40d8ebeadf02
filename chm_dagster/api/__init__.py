"""The HTTP API over the warehouse, and the only home of FastAPI: routers, what they take and answer, who may call."""
