"""The board as a browser gets it: served on a socket, over a real database."""

from collections.abc import Iterator
from contextlib import AbstractContextManager

import httpx
import pytest
import sqlalchemy as sa

from chm_dagster.api.app import create_app
from chm_dagster.board.answers import Answers
from chm_dagster.serving import serve_in_thread
from chm_dagster.warehouse.engine import Engine
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.conftest import PLAIN_HTTP
from chm_dagster_tests.contracts.histories import watch

TOKEN = "a-token-of-the-tests"
RULE = "/rules/01900000-0000-7000-8000-000000000001/test"
RUN = "/clients/acme/orders/run?id=run-11"
PAGES = (
    *(
        "/",
        "/wall",
        "/pipelines",
        "/changes",
        "/errors",
        "/errors/runs",
        "/flaky",
        "/reports",
        "/reports?client=acme",
        "/errors/runs?error=none&days=30",
        "/rules",
        "/partners",
        "/clients/acme",
        "/clients/acme/orders",
        RUN,
        RULE,
        f"{RULE}?threshold=1&days=90",
    ),
    *(
        "/pipelines?health=paused",
        "/?health=late&environment=prod",
        "/?at=2h",
        "/clients/acme?at=2h",
        "/clients/acme/orders?at=2h",
        "/errors?at=2h",
        "/errors/runs?at=2h&days=1",
        f"{RUN}&at=30m",
        f"{RUN}&at=2h",
        "/rules?at=2h",
        "/?at=2999-01-01",
        "/nowhere-in-particular/../clients/none",
        "/?x=1",
        f"{RULE}?threshold=x",
    ),
)
"""Every page, also those that say why there is nothing to show."""


@pytest.fixture
def warehouse(engine: Engine) -> Warehouse:
    return Warehouse(engine)


def served(
    warehouse: Warehouse, token: str | None = None, answers: Answers | None = None
) -> AbstractContextManager[str]:
    """A server that keeps no answers: what a test has just changed shows at once."""
    app = create_app(warehouse, token=token)
    app.state.answers = answers or Answers(warehouse, costly=float("inf"))
    return serve_in_thread(app)


def browser(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"Accept": "text/html"}, trust_env=False, verify=PLAIN_HTTP, timeout=120)


@pytest.fixture
def board(warehouse: Warehouse) -> Iterator[httpx.Client]:
    """The board of a server without a token."""
    with served(warehouse) as url, browser(url) as client:
        yield client


@pytest.fixture
def busy(engine: Engine) -> Engine:
    """Clients in every state of health, and a rule."""
    watch(engine, "SSSFSSSFSSSF", "orders", "Acme")
    watch(engine, "SSS", "stock", "Acme")
    watch(engine, "SSR", "sales", "Bolt")
    watch(engine, "", "idle", "Cove")
    watch(engine, "FFFF", "items", "Dune")
    watch(engine, "SSSS", "bills", "Dune")
    change(engine, "stock", "due_at = now() - interval '3 hours', schedule_cron = '0 * * * *'")
    # It started an hour ago, and what did not happen is known with a delay.
    change(engine, "sales", "max_runtime_minutes = 5")
    change(engine, "items", "is_active = false")
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "DELETE FROM runs WHERE effective_at >= (SELECT due_at - interval '1 hour' FROM pipelines WHERE slug = 'stock') AND pipeline_id = (SELECT id FROM pipelines WHERE slug = 'stock')"
            )
        )
        connection.execute(
            sa.text(
                "INSERT INTO alert_rules (id, client_id, rule_type, threshold, channel, destination)"
                " SELECT :id, id, 'consecutive_failures', 2, 'slack', '#data' FROM clients WHERE slug = 'acme'"
            ),
            {"id": RULE.split("/")[2]},
        )
    return engine


def change(engine: Engine, slug: str, assignments: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE pipelines SET {assignments} WHERE slug = :slug"), {"slug": slug})
