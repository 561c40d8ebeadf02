"""Files of runs: every row is counted once, a bad one is reported and kept, and importing twice writes nothing."""

import io
import threading
import zoneinfo
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from chm_dagster.domain.pipelines import Environment, Pipeline, PipelineType, Platform
from chm_dagster.domain.runs import Observation, RunStatus
from chm_dagster.errors import InputError
from chm_dagster.ingestion.run_files import MAX_CHARS, Row, Shape, read_rows, shape_of
from chm_dagster.ingestion.run_import import ImportReport, import_runs
from chm_dagster.ingestion.run_rows import RowFormat, RowMapper
from chm_dagster.warehouse.ledger.merge import BATCH
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import T0, observation, rows

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
HEADER = "pipeline,id,status,started_at,finished_at\n"
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def csv_rows(text: str | bytes, check: Callable[..., None] = lambda names: None) -> list[Row]:
    raw = text.encode() if isinstance(text, str) else text
    return list(read_rows(io.BufferedReader(io.BytesIO(raw)), Shape.CSV, check))


def json_rows(text: str | bytes) -> list[Row]:
    raw = text.encode() if isinstance(text, str) else text
    return list(read_rows(io.BufferedReader(io.BytesIO(raw)), Shape.JSONL, lambda names: None))


# --- file formats -----------------------------------------------------------------------------------------------------


def test_a_csv_row_has_its_filled_cells_by_header_name() -> None:
    assert csv_rows('ID, Started At,finished-at\r\n1,"a,b",\r\n\r\n,,\r\n2,"x\ny",c\r\n') == [
        Row(2, {"id": "1", "started_at": "a,b"}),
        Row(5, {"id": "2", "started_at": "x\ny", "finished_at": "c"}),
    ]


@pytest.mark.parametrize(
    "raw",
    [
        "a,b\n1,é\n".encode(),
        "\ufeffa,b\n1,é\n".encode(),
        "a;b\n1;é\n".encode(),
        "sep=;\na;b\n1;é\n".encode(),
        "sep=|\na|b\n1|é\n".encode(),
        "a\tb\n1\té\n".encode("utf-16"),
        b'"a","b"\r"1","\xc3\xa9"\r',
        b'a,"b"\n1,\xc3\xa9',
    ],
)
def test_csv_from_spreadsheets_is_read(raw: bytes) -> None:
    assert [row.record for row in csv_rows(raw)] == [{"a": "1", "b": "é"}]


def test_a_comma_in_a_quoted_header_does_not_determine_the_separator() -> None:
    assert csv_rows('"a,b,c";d\n1;2\n')[0].record == {"a,b,c": "1", "d": "2"}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("1", "has 1 cells where the header names 2"),
        ("1,2,3", "has 3 cells where the header names 2"),
        ('"1"x,2', "not CSV: ',' expected after '\"'; check the quotes of this row"),
        (b"1,\xe9", "holds bytes that are not UTF-8; save the file as UTF-8"),
    ],
)
def test_a_broken_row_affects_only_its_own_line(row: str | bytes, problem: str) -> None:
    raw = row.encode() if isinstance(row, str) else row
    found = csv_rows(b"a,b\n0,0\n" + raw + b"\n9,9\n")
    assert [(r.line, r.problem) for r in found] == [(2, None), (3, problem), (4, None)]


def test_cells_beyond_the_header_do_no_harm_while_they_are_empty() -> None:
    assert csv_rows("a,b,\n1,2,,,\n")[0].record == {"a": "1", "b": "2"}


def test_an_unclosed_quote_does_not_silently_swallow_the_file() -> None:
    assert [(row.line, row.problem is None) for row in csv_rows('a,b\n1,2\n2,"x\n3,4\n')] == [(2, True), (3, False)]


def test_a_large_field_is_read_and_an_endless_one_is_rejected() -> None:
    large = "x" * 1_000_000
    assert csv_rows(f"a,b\n1,{large}\n")[0].record["b"] == large
    assert csv_rows('a,b\n1,"' + ("x" * 999 + "\n") * (MAX_CHARS // 1_000 + 1) + '"\n2,3\n')[0].problem
    with pytest.raises(InputError, match="holds a line of more than"):
        csv_rows("a,b\n1," + "x" * MAX_CHARS + "\n")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("", "header: missing; name the columns"),
        (",,", "header: missing; name the columns"),
        ("id,status,ID", "header: names the column id twice"),
        (
            "id,zustand,pipeline",
            "header: has no column 'status'; it has id, zustand, pipeline; or say --column status=",
        ),
        ("status,pipeline", "header: has no column 'id'"),
        ("id,status", "header: has no column 'pipeline'; it has id, status; or give --pipeline for all rows"),
        ("pipeline,id,status,statrted_at", "statrted_at: unknown field; did you mean started_at?"),
    ],
)
def test_an_unusable_header_is_rejected_before_any_row(header: str, said: str) -> None:
    with pytest.raises(InputError) as refused:
        csv_rows(header + "\n1,2,3\n", partial(RowFormat().check_columns, named=False))
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize("header", ["run_id,status", "external_run_id,Status,owner", "id,status,started_at,url"])
def test_a_header_can_use_the_ledgers_field_names(header: str) -> None:
    assert csv_rows(header + "\n", partial(RowFormat().check_columns, named=True)) == []


def test_json_lines_are_objects_one_on_each_line() -> None:
    found = json_rows('\ufeff{"id": 1}\n\n[1]\n{"id": \n7\n{"id": NaN}\n{"id": "z"}')
    assert [(row.line, row.record) for row in found if row.problem is None] == [(1, {"id": 1}), (7, {"id": "z"})]
    assert {row.line: row.problem.partition(":")[0] for row in found if row.problem} == {
        3: "not an object; send one JSON object for each run",
        4: "not JSON",
        5: "not an object; send one JSON object for each run",
        6: "not JSON",
    }


def test_an_endless_line_is_skipped_as_a_whole() -> None:
    found = json_rows(b"x" * (2 * MAX_CHARS + 5) + b'\n{"id": 1}\n')
    assert [(row.line, row.problem is None) for row in found] == [(1, False), (2, True)]


def test_a_json_array_is_read_whatever_the_file_is_called() -> None:
    for shape in (Shape.JSON, Shape.JSONL):
        found = list(read_rows(stream('\ufeff\n[{"id": 1},\n7, {"id": 2}]'), shape, lambda names: None))
        assert [(row.line, row.problem is None) for row in found] == [(1, True), (2, False), (3, True)]


def test_json_lines_in_a_json_file_are_read_as_lines() -> None:
    found = read_rows(stream('{"id": 1}\n{"id": 2}\nx\n'), Shape.JSON, lambda names: None)
    assert [(row.line, row.problem is None) for row in found] == [(1, True), (2, True), (3, False)]


def test_what_is_no_json_and_no_known_document_is_rejected_as_a_whole() -> None:
    for text, said in (("[1", "is not JSON"), ('{"a": 1}', "neither a run nor a file of dbt or Jenkins")):
        with pytest.raises(InputError, match=said):
            list(read_rows(stream(text), Shape.JSON, lambda names: None))


def stream(text: str) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(text.encode()))


def test_the_name_of_a_file_determines_its_format() -> None:
    assert [shape_of(name) for name in ("a.csv", "b.CSV", "c.tsv", "d.jsonl", "e.ndjson", "f.json")] == [
        *[Shape.CSV] * 3,
        *[Shape.JSONL] * 2,
        Shape.JSON,
    ]
    with pytest.raises(InputError, match="ends in none of"):
        shape_of("runs.xlsx")


# --- the content of rows ----------------------------------------------------------------------------------------------


def pipeline(slug: str, external_id: str | None = None) -> Pipeline:
    """A pipeline of acme; a partner reports it if it has an external id."""
    return Pipeline(
        id=uuid4(),
        client_id=uuid4(),
        client_slug="acme",
        client_name="Acme",
        slug=slug,
        name=slug,
        platform=Platform.CUSTOM,
        connection=None,
        external_id=external_id,
        pipeline_type=PipelineType.EXPORT,
        environment=Environment.PROD,
        description=None,
        is_active=True,
        schedule_cron=None,
        schedule_timezone=None,
        grace_minutes=None,
        max_runtime_minutes=None,
        synced_through=None,
        created_at=T0,
        updated_at=T0,
    )


ORDERS, LAKE = pipeline("orders"), pipeline("lake", "lake")


def mapped(record: dict[str, Any], **settings: Any) -> Observation | str:
    return RowMapper([ORDERS], NOON, only=ORDERS, form=RowFormat(**settings))(Row(2, record))


def success(**fields: Any) -> dict[str, Any]:
    return {"id": "r1", "status": "success", "started_at": "2026-03-01T06:00:00Z", **fields}


def test_a_row_is_mapped_as_carefully_as_a_partners_record() -> None:
    found = mapped(
        {
            **success(status=" Error ", attempt="2", rows_processed="10", duration_seconds="12.5", owner="ann"),
            "error_message": "login postgresql://app:hunter2@db",
            "url": "https://x.example/r1",
        },
    )
    assert isinstance(found, Observation)
    assert (found.external_run_id, found.status, found.attempt) == ("r1", RunStatus.FAILED, 2)
    assert (found.rows_processed, found.source_url) == (10, "https://x.example/r1")
    assert "hunter2" not in str(found)
    assert found.payload["owner"] == "ann"
    assert found.observed_at == NOON


def test_texts_and_numbers_are_equivalent() -> None:
    text, number = {"attempt": "2", "rows_processed": "5"}, {"attempt": 2, "rows_processed": 5}
    assert mapped(success(**text)) == mapped(success(**number))


@pytest.mark.parametrize("name", ["external_run_id", "run_id"])
def test_the_ledgers_field_names_win_over_those_of_the_partner_api(name: str) -> None:
    found = mapped(success(id="0190-uuid", source_url="https://x.example", **{name: "r9"}))
    assert isinstance(found, Observation)
    assert (found.external_run_id, found.source_url) == ("r9", "https://x.example")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"status": "success"}, "id: missing; every run needs one"),
        ({"id": "r1"}, "status: missing; every run needs one"),
        (
            success(status="finshed"),
            "status: 'finshed' is not known; write running, success, failed, canceled or skipped",
        ),
        (
            success(started_at="2026-03-01 06:00"),
            "started_at: has no time zone; write an offset such as Z or +02:00, or",
        ),
        (success(started_at="1.3.2026"), "started_at: not a time; send ISO 8601"),
        (success(started_at="2026-03-09T06:00:00Z"), "started_at: more than a day in the future"),
        (success(rows_processed="1.5"), "rows_processed: not a number that can be used; write a whole number"),
        (success(rows_processed=-1), "rows_processed: not a number that can be used"),
        (
            success(duration_seconds="12,5"),
            "duration_seconds: not a number that can be used; write seconds, such as 12.5",
        ),
        (success(duration_seconds=True), "duration_seconds: not a number that can be used"),
        (success(duration_seconds=1e300), "duration_seconds: not a number that can be used"),
        (success(attempt="two"), "attempt: not a number that can be used"),
        (success(statusreason="x"), "statusreason: unknown field; did you mean status_reason?"),
        (success(pipeline="acme/other"), "pipeline: names another one than --pipeline"),
    ],
)
def test_a_mistake_that_a_person_can_fix_is_rejected_with_field_and_fix(record: dict[str, Any], reason: str) -> None:
    found = mapped(record)
    assert isinstance(found, str)
    assert found.startswith(reason)


def test_rows_name_their_pipeline_by_slugs_or_by_id() -> None:
    mapper = RowMapper([ORDERS, LAKE], NOON)
    for ref in ("acme/orders", str(ORDERS.id), " acme/orders "):
        found = mapper(Row(2, success(pipeline=ref)))
        assert isinstance(found, Observation) and found.pipeline_id == ORDERS.id
    assert (
        mapper(Row(2, success(pipeline="acme/order")))
        == "pipeline: no pipeline 'acme/order'; did you mean acme/orders?"
    )
    assert str(mapper(Row(2, success()))).startswith(
        "pipeline: missing; name it as client/pipeline, or give --pipeline"
    )


def test_a_wall_clock_needs_a_zone_and_an_unambiguous_hour() -> None:
    at = partial(mapped, zone=BERLIN)
    found = at(success(started_at="2026-01-31 08:00"))
    assert isinstance(found, Observation) and found.started_at == datetime(2026, 1, 31, 7, tzinfo=UTC)
    found = at(success(started_at="2025-07-31T08:00:00.5"))
    assert isinstance(found, Observation) and found.started_at == datetime(2025, 7, 31, 6, 0, 0, 500_000, tzinfo=UTC)
    # A time with an offset keeps it.
    found = at(success(started_at="2026-01-31T08:00:00Z"))
    assert isinstance(found, Observation) and found.started_at == datetime(2026, 1, 31, 8, tzinfo=UTC)
    for twice_or_never in ("2025-10-26 02:30", "2025-03-30 02:30"):
        assert "comes twice or never in Europe/Berlin" in str(at(success(started_at=twice_or_never)))
    assert str(at(success(started_at="2026-13-01 08:00"))).startswith("started_at: not a time")


@given(
    st.dictionaries(
        st.text(max_size=12), st.none() | st.booleans() | st.integers() | st.floats() | st.text(), max_size=8
    )
)
def test_no_row_makes_the_mapper_raise(record: dict[str, Any]) -> None:
    mapper = RowMapper([], NOON)
    assert isinstance(mapper(Row(1, {**record, "pipeline": "a/b"})), str)


def test_at_most_a_thousand_unknown_pipelines_are_remembered() -> None:
    mapper = RowMapper([ORDERS], NOON)
    for number in range(1_100):
        assert str(mapper(Row(number, success(pipeline=f"acme/x{number}")))).startswith("pipeline: no pipeline")
        mapper(Row(number, success(pipeline="acme/orders", **{f"extra{number}": 1})))
    assert len(mapper._refused) == 1_000
    assert len(mapper._names) == 1_000


def test_columns_and_words_can_be_mapped() -> None:
    given = {"nummer": "r1", "zustand": "Fertig", "start": "2026-03-01T06:00:00Z", "status": "ignored"}
    columns = {"nummer": "id", "zustand": "status", "start": "started_at"}
    found = mapped(given, columns=columns, statuses={"fertig": RunStatus.SUCCESS})
    assert isinstance(found, Observation)
    assert (found.external_run_id, found.status, found.started_at) == ("r1", RunStatus.SUCCESS, T0)


@pytest.mark.parametrize("word", ["completed", "Complete", "done", "FINISHED", "ended"])
def test_a_word_that_leaves_the_outcome_open_is_refused_with_the_way_to_map_it(word: str) -> None:
    said = str(mapped(success(status=word)))
    assert f"status: {word!r} leaves open how the run ended; write running, success, failed" in said
    assert f"--status {word!r}=success" in said
    found = mapped(success(status=word), statuses={word.lower(): RunStatus.FAILED})
    assert isinstance(found, Observation) and found.status is RunStatus.FAILED


def test_dates_and_numbers_of_a_german_spreadsheet_are_read_if_their_form_is_named() -> None:
    row = {
        "id": "1001",
        "status": "success",
        "started_at": "03.11.2025 06:00:00",
        "finished_at": "03.11.2025 06:20",
        "rows_processed": "1.234",
        "duration_seconds": "1.200,5",
    }
    said = str(mapped(success(started_at="03.11.2025 06:00:00"), zone=BERLIN))
    assert "not a time" in said and "--date-format" in said
    forms = ("%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M")
    assert "give --decimal-comma" in str(mapped(row, zone=BERLIN, date_formats=forms))
    found = mapped(row, zone=BERLIN, date_formats=forms, decimal_comma=True)
    assert isinstance(found, Observation)
    assert found.started_at == datetime(2025, 11, 3, 5, tzinfo=UTC)
    assert (found.rows_processed, found.duration_seconds) == (1_234, 1_200.0)
    assert "no time zone" in str(mapped(row, date_formats=forms, decimal_comma=True))


@pytest.mark.parametrize("run_id", ["1,76421E+13", "1.76421E+13", "4E+12"])
def test_an_id_that_a_spreadsheet_has_rounded_is_refused(run_id: str) -> None:
    assert str(mapped(success(id=run_id))).startswith(f"id: {run_id!r} was rounded by a spreadsheet")


def test_an_id_that_only_looks_like_a_number_is_kept() -> None:
    found = mapped(success(id="12e5678"))
    assert isinstance(found, Observation) and found.external_run_id == "12e5678"


def test_a_row_was_not_written_before_the_times_in_it() -> None:
    old = NOON - timedelta(days=9_000)
    mapper = RowMapper([ORDERS], old, only=ORDERS, now=NOON)
    found = mapper(Row(2, success(finished_at="2026-03-01T07:00:00Z")))
    assert isinstance(found, Observation) and found.observed_at == datetime(2026, 3, 1, 7, tzinfo=UTC)
    assert "in the future" in str(mapper(Row(2, success(started_at="2026-03-09T06:00:00Z"))))


# --- files of other tools -----------------------------------------------------------------------------------------------


def imported(document: Any, **settings: Any) -> list[Observation | str]:
    rows_of_file = read_rows(stream(orjson.dumps(document).decode()), Shape.JSON, lambda names: None)
    mapper = RowMapper([ORDERS], NOON, only=ORDERS, form=RowFormat(**settings))
    return [mapper(row) for row in rows_of_file]


def statuses(found: list[Observation | str]) -> dict[str, str]:
    assert all(isinstance(one, Observation) for one in found), found
    return {one.external_run_id: str(one.status) for one in found if isinstance(one, Observation)}


def test_runs_of_github_are_read_as_gh_lists_them() -> None:
    def run(number: int, status: str, conclusion: str) -> dict[str, Any]:
        times = {"startedAt": "2026-03-01T06:00:00Z", "updatedAt": "2026-03-01T06:09:00Z"}
        return {"databaseId": number, "name": "nightly", "status": status, "conclusion": conclusion, **times}

    found = imported([run(1, "completed", "failure"), run(2, "completed", "success"), run(3, "in_progress", "")])
    assert statuses(found) == {"1": "failed", "2": "success", "3": "running"}
    # updatedAt moves for many reasons: it is no end.
    assert {(o.started_at, o.finished_at) for o in found if isinstance(o, Observation)} == {(T0, None)}
    (refused,) = imported([run(4, "completed", "")])
    assert "leaves open how the run ended" in str(refused)
    (neutral,) = imported([run(5, "completed", "neutral")], statuses={"neutral": RunStatus.SKIPPED})
    assert isinstance(neutral, Observation) and neutral.status is RunStatus.SKIPPED


def test_runs_of_airflow_are_read_as_its_cli_lists_them() -> None:
    def run(day: int, state: str, end: str) -> dict[str, Any]:
        return {
            "dag_id": "etl",
            "run_id": f"scheduled__2026-02-{day}T00:00:00+00:00",
            "state": state,
            "execution_date": f"2026-02-{day}T00:00:00+00:00",
            "start_date": f"2026-02-{day + 1}T00:00:03.142491+00:00",
            "end_date": end,
        }

    found = imported([run(20, "success", "2026-02-21T00:10:00+00:00"), run(22, "running", "")])
    assert list(statuses(found).values()) == ["success", "running"]
    assert isinstance(found[0], Observation)
    assert found[0].started_at == datetime(2026, 2, 21, 0, 0, 3, 142_491, tzinfo=UTC)
    assert found[0].finished_at == datetime(2026, 2, 21, 0, 10, tzinfo=UTC)


def dbt(*results: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "dbt_schema_version": "https://schemas.getdbt.com/dbt/run-results/v6.json",
            "generated_at": "2026-03-01T06:01:02.500000Z",
            "invocation_id": "7d0a2f0e-0000-4000-8000-000000000001",
        },
        "elapsed_time": 62.5,
        "results": list(results),
        **more,
    }


def test_an_invocation_of_dbt_is_one_run() -> None:
    ok, bad = {"status": "success", "unique_id": "model.shop.a"}, {"status": "error", "unique_id": "model.shop.b"}
    (found,) = imported(dbt(ok, {**bad, "message": "Database Error"}, {"status": "skipped", "unique_id": "c"}))
    assert isinstance(found, Observation)
    assert (found.status, found.error_message) == (RunStatus.FAILED, "model.shop.b: Database Error")
    assert (found.started_at, found.duration_seconds) == (T0, 62.5)
    assert list(statuses(imported(dbt(ok, {"status": "warn", "unique_id": "t"}))).values()) == ["success"]
    assert list(statuses(imported(dbt({"status": "skipped", "unique_id": "t"}))).values()) == ["skipped"]
    with pytest.raises(InputError, match="dbt has run nothing"):
        imported(dbt())


def test_builds_of_jenkins_are_read_as_its_api_sends_them() -> None:
    started = int(T0.timestamp() * 1000)

    def build(number: int, result: str | None, **more: Any) -> dict[str, Any]:
        known = {
            "number": number,
            "result": result,
            "building": result is None,
            "timestamp": started,
            "duration": 60_000,
        }
        return {**known, **more}

    builds = [build(1, "SUCCESS"), build(2, "FAILURE"), build(3, "ABORTED"), build(4, "NOT_BUILT"), build(5, None)]
    wanted = {"1": "success", "2": "failed", "3": "canceled", "4": "skipped", "5": "running"}
    for name in ("builds", "allBuilds"):
        assert statuses(imported({name: builds})) == wanted
    found = imported(build(1, "SUCCESS"))
    assert isinstance(found[0], Observation)
    assert (found[0].started_at, found[0].finished_at) == (T0, T0 + timedelta(minutes=1))
    (unstable,) = imported(build(6, "UNSTABLE"))
    assert "status: 'UNSTABLE' is not known" in str(unstable)
    assert statuses(imported(build(6, "UNSTABLE"), statuses={"unstable": RunStatus.FAILED})) == {"6": "failed"}
    with pytest.raises(InputError, match=r"builds without their results; ask Jenkins for api/json\?tree="):
        imported({"builds": [{"number": 1, "url": "https://ci.example/1"}]})


# --- from the file into the ledger --------------------------------------------------------------------------------------


@pytest.fixture
def warehouse(engine: sa.Engine) -> Warehouse:
    return Warehouse(engine)


@pytest.fixture
def orders(warehouse: Warehouse) -> Pipeline:
    """A pipeline that no partner reports."""
    warehouse.clients.create("Acme")
    return warehouse.pipelines.create("acme", {"name": "Orders", "platform": "custom", "pipeline_type": "export"})


@pytest.fixture
def lake(warehouse: Warehouse, orders: Pipeline) -> Pipeline:
    """A pipeline that a partner reports."""
    fields = {"name": "Lake", "platform": "airflow", "pipeline_type": "export", "external_id": "lake"}
    return warehouse.pipelines.create("acme", fields)


class Files:
    """Imports texts the way `chm run import` does."""

    def __init__(self, warehouse: Warehouse, pipelines: list[Pipeline], folder: Path) -> None:
        self.engine = warehouse.engine
        self.pipelines = pipelines
        self.rejects = folder / "rejects.jsonl"

    def take(self, text: str, at: datetime = NOON) -> ImportReport:
        check = partial(RowFormat().check_columns, named=False)
        found = read_rows(io.BufferedReader(io.BytesIO(text.encode())), Shape.CSV, check)
        report = import_runs(self.engine, found, RowMapper(self.pipelines, at), self.rejects)
        assert report.accounted_for
        return report

    def rejected(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.rejects.read_bytes().splitlines()]


@pytest.fixture
def files(warehouse: Warehouse, orders: Pipeline, lake: Pipeline, tmp_path: Path) -> Files:
    return Files(warehouse, [orders, lake], tmp_path)


def counts(report: ImportReport) -> dict[str, int]:
    names = ("inserted", "updated", "unchanged", "stale", "rejected")
    return {name: n for name in names if (n := getattr(report.counts, name))}


def test_importing_a_file_twice_changes_nothing(files: Files, engine: sa.Engine) -> None:
    text = HEADER + "".join(f"acme/orders,r{n},success,2026-03-01T06:0{n}:00Z,2026-03-01T07:00:00Z\n" for n in range(5))
    assert counts(files.take(text)) == {"inserted": 5}
    before = rows(engine, "SELECT xmin::text, * FROM runs ORDER BY id")
    assert counts(files.take(text)) == {"unchanged": 5}
    assert counts(files.take(text, NOON + timedelta(days=1))) == {"unchanged": 5}
    assert rows(engine, "SELECT xmin::text, * FROM runs ORDER BY id") == before


def test_a_bad_row_is_reported_and_kept_and_the_others_are_imported(files: Files, engine: sa.Engine) -> None:
    report = files.take(
        HEADER
        + "acme/orders,r1,success,2026-03-01T06:00:00Z,\n"
        + "acme/nope,r2,success,2026-03-01T06:00:00Z,\n"
        + "acme/orders,r3,success\n"
        + "acme/lake,r4,failed,2026-03-01T06:00:00Z,\n"
    )
    assert counts(report) == {"inserted": 2, "rejected": 2}
    assert report.rejections == [
        (3, "pipeline: no pipeline 'acme/nope'"),
        (4, "has 3 cells where the header names 5"),
    ]
    assert [(kept["line"], kept["reason"]) for kept in files.rejected()] == report.rejections
    assert files.rejected()[0]["record"] == {
        "pipeline": "acme/nope",
        "id": "r2",
        "status": "success",
        "started_at": "2026-03-01T06:00:00Z",
    }
    assert {row["external_run_id"] for row in rows(engine, "SELECT external_run_id FROM runs")} == {"r1", "r4"}
    # An existing file of rejects belongs to this import, not to an earlier one.
    files.take(HEADER + "acme/orders,r1,success,2026-03-01T06:00:00Z,\n")
    assert not files.rejects.exists()


def test_secrets_are_not_kept_among_the_rejects(files: Files) -> None:
    files.take(HEADER.strip() + ",api_key,note\nacme/nope,r1,success,,,k3y-of-mine,postgresql://u:hunter2@h/d\n")
    assert "k3y-of-mine" not in files.rejects.read_text()
    assert "hunter2" not in files.rejects.read_text()


def test_unknown_columns_are_named_and_kept(files: Files, engine: sa.Engine) -> None:
    report = files.take(HEADER.strip() + ",owner\nacme/orders,r1,success,2026-03-01T06:00:00Z,,ann\n")
    assert report.kept == {"owner"}
    assert rows(engine, "SELECT payload ->> 'owner' AS owner FROM runs")[0]["owner"] == "ann"
    assert "pipeline" not in rows(engine, "SELECT payload FROM runs")[0]["payload"]


def test_an_older_file_does_not_undo_a_newer_one(files: Files, engine: sa.Engine) -> None:
    row = HEADER + "acme/orders,r1,{},2026-03-01T06:00:00Z,2026-03-01T06:10:00Z\n"
    assert counts(files.take(row.format("success"), NOON)) == {"inserted": 1}
    assert counts(files.take(row.format("failed"), NOON - timedelta(hours=1))) == {"stale": 1}
    assert counts(files.take(row.format("failed"), NOON + timedelta(hours=1))) == {"updated": 1}
    running = HEADER + "acme/orders,r1,running,2026-03-01T06:00:00Z,\n"
    assert counts(files.take(running, NOON + timedelta(hours=2))) == {"stale": 1}


def test_the_partner_has_the_last_word_about_a_run(files: Files, lake: Pipeline, engine: sa.Engine) -> None:
    from chm_dagster.warehouse.ledger.merge import merge_runs

    files.take(HEADER + "acme/lake,r1,success,2026-03-01T06:00:00Z,2026-03-01T06:10:00Z\n")
    again = observation(lake.id, "r1", status=RunStatus.RUNNING, source_version=T0, observed_at=NOON)
    with engine.begin() as connection:
        assert merge_runs(connection, [again])[lake.id].updated == 1
    report = files.take(
        HEADER + "acme/lake,r1,success,2026-03-01T06:00:00Z,2026-03-01T06:10:00Z\n", NOON + timedelta(1)
    )
    assert counts(report) == {"stale": 1}


def test_a_run_that_is_in_a_file_twice_is_counted_twice_and_written_once(files: Files, engine: sa.Engine) -> None:
    row = "acme/orders,r1,success,2026-03-01T06:00:00Z,\n"
    assert counts(files.take(HEADER + row + row)) == {"inserted": 1, "unchanged": 1}
    assert len(rows(engine, "SELECT 1 FROM runs")) == 1


def test_rows_are_read_only_as_fast_as_they_are_written(warehouse: Warehouse, orders: Pipeline, tmp_path: Path) -> None:
    read = written = most = 0

    def endless() -> Iterator[Row]:
        nonlocal read, most
        for number in range(7 * BATCH):
            read += 1
            most = max(most, read - written)
            yield Row(number, success(id=f"r{number}"))

    def progress(_: int) -> None:
        nonlocal written
        written += BATCH

    mapper = RowMapper([orders], NOON, only=orders)
    report = import_runs(warehouse.engine, endless(), mapper, tmp_path / "rejects", progress)
    assert report.counts.inserted == 7 * BATCH
    # Two batches wait, one is being filled, and one is being written and not yet reported.
    assert most <= 5 * BATCH


def test_a_rejected_header_leaves_nothing_behind(files: Files, engine: sa.Engine) -> None:
    with pytest.raises(InputError, match="has no column 'status'"):
        files.take("pipeline,id\nacme/orders,r1\n")
    assert rows(engine, "SELECT 1 FROM runs") == []
    assert not files.rejects.exists()


def test_an_unwritable_path_for_rejects_is_named(files: Files, tmp_path: Path) -> None:
    files.rejects = tmp_path / "missing" / "rejects.jsonl"
    with pytest.raises(
        InputError, match=r"--rejects: cannot write .* \(No such file or directory\); name another file"
    ):
        files.take(HEADER + "acme/nope,r1,success,,\n")


def test_a_deadlock_with_a_sync_costs_a_retry_and_not_the_import(
    files: Files, orders: Pipeline, engine: sa.Engine
) -> None:
    files.take(HEADER + "".join(f"acme/orders,r{n},running,2026-03-01T06:00:00Z,\n" for n in (1, 2)))
    touch = sa.text("UPDATE runs SET ingested_at = now() WHERE external_run_id = :run")
    text = HEADER + "".join(f"acme/orders,r{n},success,2026-03-01T06:00:00Z,2026-03-01T07:00:00Z\n" for n in (1, 2))
    outcome: list[Any] = []
    later = NOON + timedelta(hours=1)
    with engine.begin() as other:
        other.execute(sa.text("SET LOCAL deadlock_timeout = '1min'"))
        other.execute(touch, {"run": "r2"})
        thread = threading.Thread(target=lambda: outcome.append(files.take(text, later)))
        thread.start()
        _wait_for_a_lock(engine)
        # The import has r1 and we have r2: the import must be the one that gives way, and it must retry.
        other.execute(touch, {"run": "r1"})
    thread.join(30)
    assert counts(outcome[0]) == {"updated": 2}


def _wait_for_a_lock(engine: sa.Engine) -> None:
    import time

    query = "SELECT count(*) AS n FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    for _ in range(200):
        if rows(engine, query)[0]["n"]:
            return
        time.sleep(0.05)
    raise AssertionError("the import never came to the lock")


def test_rows_that_share_an_id_but_not_their_content_are_not_merged_silently(files: Files, engine: sa.Engine) -> None:
    line = "acme/orders,r1,{},2026-03-01T06:00:00Z,2026-03-01T07:00:00Z\n"
    report = files.take(HEADER + line.format("success") + line.format("success") + line.format("failed"))
    assert counts(report) == {"inserted": 1, "unchanged": 1, "rejected": 1}
    assert report.rejections == [
        (
            4,
            "id: the same as in line 2, with other content; if both are about one run, give updated_at or attempt, else"
            " give each run an id of its own",
        )
    ]
    assert rows(engine, "SELECT status FROM runs") == [{"status": "success"}]


def test_rows_that_say_which_of_them_is_newer_are_states_of_one_run(files: Files, engine: sa.Engine) -> None:
    header = "pipeline,id,status,started_at,updated_at\n"
    states = (("running", "06:00"), ("failed", "07:00"))
    text = header + "".join(f"acme/orders,r1,{s},2026-03-01T06:00:00Z,2026-03-01T{at}:00Z\n" for s, at in states)
    assert files.take(text).counts.rejected == 0
    assert rows(engine, "SELECT status FROM runs") == [{"status": "failed"}]
