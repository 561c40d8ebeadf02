"""What routes ask for in their signatures."""

from typing import Annotated

from fastapi import Depends, Request

from chm_dagster.warehouse.warehouse import Warehouse


async def _warehouse(request: Request) -> Warehouse:
    # async, so that no thread is spent on it
    warehouse: Warehouse = request.app.state.warehouse
    return warehouse


Ledger = Annotated[Warehouse, Depends(_warehouse)]
"""The warehouse that the app was made with."""
