"""What people call things: find them by slug or id, and say what they may have meant."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

from chm_dagster.domain.fields import shown
from chm_dagster.domain.inventory import Client, Pipeline
from chm_dagster.domain.rules import AlertRule
from chm_dagster.errors import InputError, NotFound
from chm_dagster.warehouse.paging import MAX_LIMIT, Page, every
from chm_dagster.warehouse.warehouse import Warehouse

T = TypeVar("T")
SHORT = 8
"""How many of a rule's last characters name it in a table."""


def first(limit: int | None, ask: Callable[..., Page[T]], **filters: Any) -> Iterator[T]:
    """The first items of a list, all of them without a limit."""
    return islice(every(ask, size=min(limit or MAX_LIMIT, MAX_LIMIT), **filters), limit)


def find_client(warehouse: Warehouse, ref: str) -> Client:
    """The client of this slug or id. Raises NotFound with what comes close."""
    try:
        return warehouse.clients.get(ref)
    except NotFound as error:
        known = [client.slug for client in every(warehouse.clients.list, active=None)]
        raise _did_you_mean(error, ref, "client", known) from None


def find_pipeline(warehouse: Warehouse, ref: str) -> Pipeline:
    """The pipeline of this `client/pipeline` or id. Raises NotFound with what comes close."""
    try:
        return warehouse.pipelines.get(ref)
    except NotFound as error:
        known = [pipeline.key for pipeline in every(warehouse.pipelines.list, active=None)]
        named = [key for key in known if key.partition("/")[2] == ref]
        raise _did_you_mean(error, ref, "pipeline", known, named[:3]) from None


def _did_you_mean(error: NotFound, ref: str, noun: str, known: list[str], meant: Sequence[str] = ()) -> NotFound:
    close = meant or difflib.get_close_matches(ref[:200].lower(), known, n=1)
    if close:
        return NotFound(f"no {noun} '{shown(ref)}'; did you mean {' or '.join(close)}?")
    return error if known else NotFound(f"no {noun} '{shown(ref)}': there are none yet; see `chm {noun} create --help`")


def find_rule(warehouse: Warehouse, ref: str) -> AlertRule:
    """The rule of this id, or of the last characters of it. Raises NotFound, InputError for an ambiguous end."""
    if len(ref) == 36:
        return warehouse.rules.get(ref)
    ends = ref.lower()
    found = [rule for rule in every(warehouse.rules.list) if len(ends) >= 4 and str(rule.id).endswith(ends)]
    if len(found) > 1:
        raise InputError("rule", f"{len(found)} ids end in {shown(ref)}; give more of it")
    if not found:
        raise NotFound(f"no alert rule '{shown(ref)}': give its id, or the end of it, as `chm rule list` shows them")
    return found[0]


class Scopes:
    """Slugs of the clients and pipelines that rules are about, looked up once."""

    def __init__(self, warehouse: Warehouse, rules: Iterable[AlertRule]) -> None:
        wanted = list(rules)
        # One rule needs two look-ups; for many it is cheaper to list everything.
        self._clients = {id_: warehouse.clients.get(id_).slug for id_ in {r.client_id for r in wanted[:1]} if id_}
        self._pipelines = {id_: warehouse.pipelines.get(id_).key for id_ in {r.pipeline_id for r in wanted[:1]} if id_}
        if len(wanted) > 1:
            self._clients = {client.id: client.slug for client in every(warehouse.clients.list, active=None)}
            self._pipelines = {p.id: p.key for p in every(warehouse.pipelines.list, active=None)}

    def client(self, client_id: UUID | None) -> str | None:
        """The client's slug."""
        return self._clients.get(client_id) if client_id else None

    def pipeline(self, pipeline_id: UUID | None) -> str | None:
        """The pipeline's `client/pipeline`."""
        return self._pipelines.get(pipeline_id) if pipeline_id else None
