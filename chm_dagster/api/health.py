"""The routes of the questions about health. Each runs one named query of the SQL contract and adds nothing to it."""

from fastapi import APIRouter

router = APIRouter(prefix="/api/v1/health", tags=["health"])
