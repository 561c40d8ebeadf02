"""The routes of clients."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from chm_dagster.api import answers
from chm_dagster.api.bodies import SentClient, SentClientChanges
from chm_dagster.api.dependencies import Ledger
from chm_dagster.api.paths import ClientReference
from chm_dagster.api.problems import documented
from chm_dagster.api.queries import ActiveQuery
from chm_dagster.domain.fields import read_new
from chm_dagster.domain.forms import CLIENT
from chm_dagster.domain.inventory import Client
from chm_dagster.warehouse.paging import Page

router = APIRouter(prefix="/api/v1/clients", tags=["clients"])

_NEW = {name: CLIENT[name] for name in ("name", "slug")}


@router.get("", response_model=answers.Page[answers.Client], responses=documented(400))
def list_clients(query: Annotated[ActiveQuery, Query()], ledger: Ledger) -> Page[Client]:
    """Clients by slug; the disabled ones only if asked for."""
    return ledger.clients.list(active=query.wanted_active, **query.part)


@router.post("", status_code=201, response_model=answers.Client, responses=documented(400, 409))
def create_client(sent: SentClient, ledger: Ledger) -> Client:
    """Make a client; its slug is made from its name unless one is sent."""
    return ledger.clients.create(**read_new(sent, _NEW))


@router.get("/{client_id}", response_model=answers.Client, responses=documented(404))
def get_client(client_id: ClientReference, ledger: Ledger) -> Client:
    """A client, also a disabled one."""
    return ledger.clients.get(client_id)


@router.patch("/{client_id}", response_model=answers.Client, responses=documented(400, 404, 409))
def update_client(client_id: ClientReference, sent: SentClientChanges, ledger: Ledger) -> Client:
    """Rename a client, or disable or enable it."""
    return ledger.clients.update(client_id, sent)


@router.delete("/{client_id}", status_code=204, response_class=Response, responses=documented(404))
def disable_client(client_id: ClientReference, ledger: Ledger) -> None:
    """Disable a client: it and its pipelines leave the lists, their history stays. PATCH brings it back."""
    ledger.clients.disable(client_id)
