"""When the API could hear jobs that report themselves."""

from datetime import UTC, datetime, timedelta

import httpx
import sqlalchemy as sa

from chm_dagster.api.app import create_app
from chm_dagster.serving import serve_in_thread
from chm_dagster.warehouse.api_uptime import LONGEST_SILENCE, api_gaps, mark_api_up
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import add_pipeline, minutes, rows

EVER = datetime(2000, 1, 1, tzinfo=UTC)


def push(engine: sa.Engine, client: str = "Acme") -> None:
    """A pipeline that reports its runs itself."""
    change(engine, "pipelines", "external_id = NULL", add_pipeline(engine, client=client).id)


def change(engine: sa.Engine, table: str, values: str, row_id: object = None, **parameters: object) -> None:
    where = "" if row_id is None else " WHERE id = :id"
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {table} SET {values}{where}"), {"id": row_id, **parameters})


def gaps(
    engine: sa.Engine, since: datetime | None = EVER, now: datetime | None = None
) -> list[tuple[datetime, datetime]]:
    with engine.connect() as connection:
        return api_gaps(connection, datetime.now(UTC) if now is None else now, since)


def heard(engine: sa.Engine) -> list[datetime | None]:
    return [row["heard_through"] for row in rows(engine, "SELECT heard_through FROM clients ORDER BY slug")]


def test_an_api_that_never_was_up_and_one_that_is_have_no_gaps(engine: sa.Engine) -> None:
    push(engine)
    assert gaps(engine) == []
    mark_api_up(engine)
    mark_api_up(engine)
    assert gaps(engine) == []
    (now,) = heard(engine)
    assert now is not None
    assert datetime.now(UTC) - now < minutes(1)


def test_a_silence_is_a_gap_while_it_lasts_and_afterwards(engine: sa.Engine) -> None:
    push(engine)
    down = datetime.now(UTC) - minutes(10)
    change(engine, "clients", "heard_through = :down", down=down)
    ((lost, until),) = gaps(engine)
    assert lost == down
    assert datetime.now(UTC) - until < minutes(1)
    mark_api_up(engine)
    ((lost, again),) = gaps(engine)
    assert lost == down
    assert until <= again == heard(engine)[0]
    ninety = timedelta(days=90)
    assert gaps(engine, None, again + ninety) == []
    assert gaps(engine, None, again + ninety - minutes(1)) == [(down, again)]
    assert gaps(engine, again, again + ninety - minutes(1)) == [(down, again)], "it explains what is missing since"
    assert gaps(engine, again - minutes(1), again + ninety) == [(down, again)]
    assert gaps(engine, again, again + ninety) == []


def test_what_is_shorter_than_marks_are_apart_is_no_gap(engine: sa.Engine) -> None:
    push(engine)
    change(engine, "clients", "heard_through = now() - :almost", almost=LONGEST_SILENCE - timedelta(seconds=15))
    assert gaps(engine) == []
    mark_api_up(engine)
    assert gaps(engine) == []


def test_gaps_of_several_clients_are_one_where_they_overlap_and_old_ones_are_dropped(engine: sa.Engine) -> None:
    now = datetime.now(UTC)
    for client, spans in {"Acme": [(-91 * 24, -91 * 24), (-9, -8), (-5, -3)], "Zenith": [(-4, -2)]}.items():
        push(engine, client)
        found = [f'{{"lost": "{now + timedelta(hours=a)}", "heard": "{now + timedelta(hours=b)}"}}' for a, b in spans]
        with engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE clients SET api_gaps = CAST(:gaps AS jsonb) WHERE name = :name"),
                {"gaps": f"[{','.join(found)}]", "name": client},
            )
    change(engine, "clients", "heard_through = now() - interval '1 hour'")
    hours = [tuple(round((time - now) / timedelta(hours=1)) for time in gap) for gap in gaps(engine)]
    assert hours == [(-2184, -2184), (-9, -8), (-5, -2), (-1, 0)]
    mark_api_up(engine)
    assert len(gaps(engine)) == 3


def test_clients_without_such_jobs_are_not_marked_and_have_no_gap_when_they_get_one(engine: sa.Engine) -> None:
    pipeline = add_pipeline(engine)
    mark_api_up(engine)
    assert heard(engine) == [None]
    change(engine, "clients", "heard_through = now() - interval '1 day'")
    mark_api_up(engine)
    assert heard(engine) == [None]
    change(engine, "pipelines", "connection = 'openlineage:acme'", pipeline.id)
    mark_api_up(engine)
    assert heard(engine) != [None]
    assert gaps(engine) == []


def test_a_client_that_somebody_is_changing_is_left_for_the_next_time(engine: sa.Engine) -> None:
    push(engine)
    with engine.begin() as other:
        other.execute(sa.text("UPDATE clients SET name = 'Acme Ltd'"))
        mark_api_up(engine)
    assert heard(engine) == [None]
    mark_api_up(engine)
    assert heard(engine) != [None]


def test_an_edit_of_a_client_is_newer_than_a_mark(engine: sa.Engine) -> None:
    push(engine)
    before = rows(engine, "SELECT updated_at FROM clients")
    mark_api_up(engine)
    assert rows(engine, "SELECT updated_at FROM clients") == before


def test_the_api_notes_that_it_is_up_as_soon_as_it_answers_and_when_it_stops(
    engine: sa.Engine, warehouse: Warehouse
) -> None:
    push(engine)
    down = datetime.now(UTC) - minutes(10)
    change(engine, "clients", "heard_through = :down", down=down)
    with serve_in_thread(create_app(warehouse)) as url:
        assert httpx.get(f"{url}/livez", trust_env=False).status_code < 500
    (stopped,) = heard(engine)
    ((lost, up),) = gaps(engine)
    assert (lost, up < stopped) == (down, True)
