"""Makes the pictures of the board in `docs/images/`: `python -m chm_dagster_tests.board.pictures`. Needs Chromium."""

import random
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import sqlalchemy as sa
from playwright.sync_api import Browser, sync_playwright

from bench.large_ledger import LedgerSize, make
from chm_dagster.alerting.evaluating import evaluate_rules
from chm_dagster.local.postgres import EmbeddedPostgres
from chm_dagster.warehouse import schema
from chm_dagster.warehouse.engine import Engine, make_engine
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.board.conftest import served
from chm_dagster_tests.board.test_browser import CHROMIUM
from chm_dagster_tests.contracts.histories import HOUR, NOW, Execution, execution, store

IMAGES = Path(__file__).parents[2] / "docs" / "images"
CLIENTS = ("Acme Foods", "Bolt Logistics", "Cove Hotels", "Dune Energy", "Elm & Sons", "Fjord Bank")
CLIENTS += ("Gala Events", "Harbor Health", "Iris Optics", "Juno Travel", "Kite Mobility", "Lumen Media")
PIPELINES = {
    "Orders to warehouse": ("airflow", "ingestion"),
    "Customer 360": ("dbt", "transform"),
    "Invoices to ERP": ("prefect", "export"),
    "Ad spend": ("fivetran", "ingestion"),
    "Stock levels": ("databricks", "transform"),
    "Freshness of orders": ("dagster", "quality"),
}
ERRORS = (
    'Database Error in model customer_360 (models/marts/customer_360.sql): column "region" does not exist',
    "KeyError: 'net_price'",
    'psycopg.OperationalError: connection to server at "10.2.3.4", port 5432 failed: Connection refused',
)
ENDS = {("acme-foods", 1): "FF", ("gala-events", 2): "FFSFFFF", ("kite-mobility", 2): "F", ("juno-travel", 1): "FFF"}
ENDS |= {("bolt-logistics", 3): "F", ("cove-hotels", 4): "R", ("dune-energy", 4): "R", ("fjord-bank", 0): "R"}
"""How the last runs of some pipelines ended: the others succeeded."""
Pictures = dict[str, tuple[str, int, int, str]]
"""The name of each picture, its page, its width and height, and its colours."""
USUAL: Pictures = {
    "board-desktop": ("/", 1440, 900, "light"),
    "board-dark": ("/", 1440, 900, "dark"),
    "board-phone": ("/", 390, 844, "light"),
    "board-wall": ("/wall", 1920, 1080, "dark"),
    "board-errors": ("/errors", 1280, 800, "light"),
    "board-pipeline": ("/clients/gala-events/invoices-to-erp", 1280, 800, "light"),
    "board-back-test": ("{rule}?threshold=1", 1280, 800, "light"),
}
EMPTY: Pictures = {"board-empty": ("/", 1280, 800, "light")}
ALL_FAILING: Pictures = {"board-everything-failing": ("/", 1440, 900, "light")}
LARGE: Pictures = {"board-10000-pipelines": ("/", 1440, 900, "light")}


def history(ends: str, error: str, dice: random.Random) -> Iterator[Execution]:
    """Sixty runs, two hours apart; what fails in the end fails with this error."""
    letters = "".join(dice.choices("SF-", (95, 3, 2), k=60 - len(ends))) + ends
    for number, letter in enumerate(letters):
        begin = NOW - 2 * HOUR * (len(letters) - number) + HOUR
        end = None if letter == "R" else begin + timedelta(minutes=dice.randint(3, 45))
        why = error if number >= 60 - len(ends) else "ReadTimeout: the source did not answer within 30 s"
        yield execution(number, letter, begin, end, error=why)


def nothing(_: Engine) -> str:
    """No client yet."""
    return ""


def failing(engine: Engine) -> str:
    """Every pipeline of every client fails."""
    warehouse, dice = Warehouse(engine), random.Random(11)
    for name in CLIENTS:
        client = warehouse.clients.create(name)
        for number, (title, (platform, kind)) in enumerate(PIPELINES.items()):
            new = {"name": title, "platform": platform, "pipeline_type": kind, "external_id": f"{client.slug}-{number}"}
            pipeline = warehouse.pipelines.create(client.slug, new)
            store(engine, pipeline.id, history("FF", ERRORS[number % 3], dice))
    _read_now(engine)
    return ""


def large(engine: Engine) -> str:
    """10,000 pipelines of 200 clients."""
    make(engine, LedgerSize(runs_per_pipeline=40, days=20))
    _read_now(engine)
    return ""


def _read_now(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pipelines SET observed_through = now(), sync_attempted_at = now()"))


def usual(engine: Engine) -> str:
    """Clients with pipelines in every state of health; returns the address of a back-test."""
    warehouse, dice = Warehouse(engine), random.Random(11)
    ids: dict[tuple[str, int], UUID] = {}
    for name in CLIENTS:
        client = warehouse.clients.create(name)
        for number, (title, (platform, kind)) in enumerate(PIPELINES.items()):
            key = (client.slug, number)
            new = {"name": title, "platform": platform, "pipeline_type": kind, "external_id": f"{client.slug}-{number}"}
            ids[key] = warehouse.pipelines.create(client.slug, new).id
            store(engine, ids[key], history(ENDS.get(key, ""), ERRORS[number % 3], dice))
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE pipelines SET observed_through = now(), created_at = now() - interval '90 days'")
        )
        late = sa.text(
            "UPDATE pipelines SET schedule_cron = '0 */2 * * *', due_at = now() - interval '40 minutes',"
            " known_through = now() WHERE id = :id"
        )
        blind = sa.text(
            "UPDATE pipelines SET connection = 'fivetran', sync_error_code = 'credentials_refused',"
            " sync_error = '401 Unauthorized: the API key was refused', sync_failing_since = now() - interval '3 hours',"
            " sync_attempted_at = now(), observed_through = now() - interval '3 hours',"
            " stale_at = now() - interval '2 hours' WHERE id = :id"
        )
        for slug in ("harbor-health", "iris-optics"):
            connection.execute(blind, {"id": ids[slug, 3]})
        connection.execute(late, {"id": ids["juno-travel", 4]})
        connection.execute(late, {"id": ids["bolt-logistics", 0]})
        connection.execute(sa.text("UPDATE pipelines SET max_runtime_minutes = 30 WHERE slug IN ('stock-levels')"))
    fields = {"rule_type": "consecutive_failures", "threshold": 3, "channel": "slack", "destination": "#data-alerts"}
    rules = [
        warehouse.rules.create({"client_id": slug, **fields}) for slug in ("gala-events", "acme-foods", "juno-travel")
    ]
    evaluate_rules(engine)
    return f"/rules/{rules[0].id}/test"


SCENES = ((usual, USUAL), (nothing, EMPTY), (failing, ALL_FAILING), (large, LARGE))


def take(browser: Browser, url: str, rule: str, pictures: Pictures) -> None:
    """Write these pictures."""
    for name, (path, width, height, scheme) in pictures.items():
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if scheme == "dark" else "light",
            locale="en-GB",
        )
        page = context.new_page()
        page.goto(url + path.format(rule=rule))
        page.screenshot(path=IMAGES / f"{name}.png")
        context.close()


def main() -> None:
    """Start a database and a server, and take the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedPostgres(Path(folder))
        server.start()
        try:
            for fill, pictures in SCENES:
                server.ensure_database(fill.__name__)
                engine = make_engine(server.url(fill.__name__))
                schema.migrate(engine)
                rule = fill(engine)
                with served(Warehouse(engine)) as url, sync_playwright() as playwright:
                    options = ["--no-sandbox", "--disable-gpu"]
                    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
                    take(browser, url, rule, pictures)
                    browser.close()
                engine.dispose()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
