"""Reports from a real ledger: what is read, what is known, and that the same ledger gives the same bytes."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from chm_dagster.alerting.backtesting import back_test
from chm_dagster.alerting.evaluating import evaluate_rules
from chm_dagster.domain.alerts import Gap, RunFact
from chm_dagster.domain.backtests import BackTestRequest
from chm_dagster.domain.reports import Report
from chm_dagster.domain.runs import RunStatus
from chm_dagster.domain.service import Cause, Unknown, flakiness
from chm_dagster.errors import Busy, InputError, NotFound
from chm_dagster.presentation.report.content import content
from chm_dagster.reporting import FORMATS, Built, build, issue_report
from chm_dagster.warehouse.engine import make_engine
from chm_dagster.warehouse.reports import report_source, sending
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.reporting.conftest import NOW, Office
from chm_dagster_tests.unit.test_reports import ADDED, F, S, at, daily, run


def built(office: Office, week: str | None = "2026-W47", month: str | None = None, now: datetime = NOW) -> Built:
    return build(office.engine, "acme", week, month, now)


def reported(office: Office, **how: Any) -> Report:
    return built(office, **how).report


def test_a_report_has_what_the_ledger_knows(acme: Office) -> None:
    found = reported(acme)
    assert (found.client, found.client_name, found.period, found.timezone) == (
        "acme",
        "Acme",
        "2026-W47",
        "Europe/Berlin",
    )
    assert (found.start, found.end) == (at(15, 23), at(22, 23))
    assert (found.figures.runs, found.figures.settled, found.figures.success) == (41, 41, 39)
    assert [one.slug for one in found.pipelines] == ["orders", "invoices", "feed"]
    orders, invoices = found.incidents
    assert (orders.pipeline, orders.cause, orders.run, orders.count) == ("orders", Cause.FAILING, "17-3", 2)
    assert (orders.error, orders.source_url) == ("ValueError: no column 'id'", "https://partner.example/runs/17-3")
    assert (invoices.pipeline, invoices.cause, invoices.slot) == ("invoices", Cause.MISSED, at(19, 3))
    feed = found.pipelines[2]
    assert (feed.unknown, feed.known_through) == (Unknown.NOT_READ_SINCE, at(20, 9) - timedelta(minutes=5))
    assert feed.success_rate is None
    assert found.figures.coverage is not None and 0.85 < found.figures.coverage < 0.9


def test_the_last_week_that_is_over_is_the_default(acme: Office) -> None:
    assert reported(acme, week=None).period == "2026-W47"
    assert reported(acme, week=None, now=NOW - timedelta(hours=10)).period == "2026-W46"


def test_a_month_is_a_period_as_well(acme: Office) -> None:
    found = reported(acme, week=None, month="2026-11", now=datetime(2026, 12, 2, tzinfo=UTC))
    assert (found.period, len(found.days), found.figures.runs) == ("2026-11", 30, 131)


@pytest.mark.parametrize(
    ("week", "month", "field", "issue"),
    [
        ("2026-W48x", None, "week", "must be an ISO week such as 2026-W47"),
        ("2026-W49", None, "week", "2026-W49 has not begun yet"),
        (None, "2026-12", "month", "2026-12 has not begun yet"),
        ("2026-W47", "2026-11", "month", "send a week or a month, not both"),
    ],
)
def test_a_period_that_makes_no_report_is_refused(
    acme: Office, week: str | None, month: str | None, field: str, issue: str
) -> None:
    with pytest.raises(InputError) as refused:
        build(acme.engine, "acme", week, month, NOW)
    assert refused.value.field == field and refused.value.issue.startswith(issue)


def test_an_unknown_client_is_refused(acme: Office) -> None:
    with pytest.raises(NotFound):
        build(acme.engine, "nobody", None, None, NOW)


def test_pipelines_outside_of_production_are_counted_and_left_out(acme: Office) -> None:
    acme.add("trial", [run(at(17, 1), F)], environment="dev")
    found = reported(acme)
    assert (found.others, found.figures.runs, len(found.pipelines)) == (1, 41, 3)


def test_a_pipeline_that_reports_itself_is_known_without_a_sync(acme: Office) -> None:
    pipeline = acme.pipeline("acme/backup", pushed=True)
    acme.set("pipelines", pipeline, created_at=ADDED)
    acme.runs(pipeline, daily(3))
    backup = next(one for one in reported(acme).pipelines if one.slug == "backup")
    assert (backup.coverage, backup.reports_itself, backup.success_rate) == (1.0, True, 1.0)


def test_a_report_is_not_known_where_records_could_not_be_understood(acme: Office) -> None:
    acme.set("pipelines", acme.warehouse.pipelines.get("acme/orders").id, doubt="1 rejected", doubt_since=at(19))
    orders = next(one for one in reported(acme).pipelines if one.slug == "orders")
    assert (orders.unknown, orders.known_through) == (Unknown.NOT_UNDERSTOOD, at(19))
    assert orders.coverage == round((3 * 24 + 1) / (7 * 24), 6)


# What the ledger knows of the pipeline, and the hours of the week that are unknown. The week begins at at(16).
SIGHTS: dict[str, tuple[bool, dict[str, Any], Sequence[Gap], float]] = {
    "pulled": (False, {"observed_through": at(25)}, [], 0),
    "pulled, and the API was down": (False, {"observed_through": at(25)}, [(at(18), at(19))], 0),
    "pushed": (True, {}, [], 0),
    "pushed, read long ago": (True, {"observed_through": at(17)}, [], 0),
    "pushed, an outage within the week": (True, {}, [(at(18), at(18, 6))], 6),
    "pushed, outages around the week": (True, {}, [(at(15, 20), at(16, 1)), (at(22, 21), at(25))], 4),
    "pushed, outages before and after": (True, {}, [(at(14), at(16)), (at(23), at(24))], 0),
    "pushed, added in mid-week": (True, {"created_at": at(18)}, [], 48),
    "pushed, added in mid-week after an outage": (True, {"created_at": at(18)}, [(at(17), at(19))], 72),
    "never read": (False, {"observed_through": None}, [], 168),
    "read until the middle of the week": (False, {"observed_through": at(20)}, [], 72 + 5 / 60),
    "known until the middle of the week": (False, {"observed_through": at(25), "known_through": at(19, 12)}, [], 84),
    "not understood from the middle on": (False, {"observed_through": at(25), "doubt_since": at(20)}, [], 72),
    "pulled, added in mid-week": (False, {"observed_through": at(25), "created_at": at(18)}, [], 48),
}


@pytest.mark.parametrize(("pushed", "fields", "gaps", "hours"), SIGHTS.values(), ids=SIGHTS)
def test_a_report_knows_of_a_week_what_a_back_test_knows(
    office: Office, pushed: bool, fields: dict[str, Any], gaps: Sequence[Gap], hours: float
) -> None:
    pipeline = office.pipeline("acme/orders", pushed=pushed)
    doubt = {"doubt": "1 rejected"} if "doubt_since" in fields else {}
    office.set("pipelines", pipeline, **{"created_at": ADDED, **doubt, **fields})
    outages = json.dumps([{"lost": lost.isoformat(), "heard": again.isoformat()} for lost, again in gaps])
    office.acme(api_gaps=outages)
    found = reported(office).figures
    assert found.coverage == pytest.approx(1 - hours / 168, abs=1e-5)
    end = at(23)
    tested = back_test(office.warehouse, BackTestRequest.read({"rule_type": "on_failure", "days": 7}), end)
    assert (tested.since, tested.until) == (at(16), end)
    assert tested.unknown_share == pytest.approx(1 - found.coverage, abs=1e-4)
    assert found.is_known == (hours == 0)


def test_a_week_of_heartbeats_with_an_outage_is_unknown_and_not_a_hundred_percent(office: Office) -> None:
    pipeline = office.pipeline("acme/backup", pushed=True, schedule_cron="0 3 * * *", schedule_timezone="UTC")
    office.set("pipelines", pipeline, created_at=ADDED)
    office.runs(pipeline, [one for one in daily(3) if one.effective_at != at(18, 3)])
    assert reported(office).figures.incidents == 1, "a heartbeat is missing"
    office.acme(api_gaps=json.dumps([{"lost": at(18, 2).isoformat(), "heard": at(18, 4).isoformat()}]))
    found = reported(office)
    assert (found.figures.success_rate, found.figures.on_time_rate, found.figures.incidents) == (None, None, 0)
    assert content(found).notes[0] == ("Not known", "Backup, not heard while CHM's API was down.")


# A report that was lost weeks before the week in question: the end of a run, or a run of the first of the month.
LOST: dict[str, tuple[str, dict[str, Any], list[RunFact], Gap]] = {
    "the end of a run": (
        "running_too_long",
        {"max_runtime_minutes": 60},
        [run(at(5, 2), RunStatus.RUNNING), *daily(3, first=6)],
        (at(5, 2.5), at(5, 4)),
    ),
    "a whole run": (
        "missed_run",
        {"schedule_cron": "0 3 1 * *", "schedule_timezone": "UTC"},
        [run(datetime(2026, 10, 1, 3, tzinfo=UTC))],
        (at(1, 2), at(1, 5)),
    ),
}


@pytest.mark.parametrize("down", [True, False], ids=["the API was down", "it was up"])
@pytest.mark.parametrize(("rule_type", "fields", "runs", "outage"), LOST.values(), ids=LOST)
def test_of_what_an_older_outage_explains_a_report_and_a_back_test_say_what_the_live_rule_says(
    office: Office, rule_type: str, fields: dict[str, Any], runs: list[RunFact], outage: Gap, down: bool
) -> None:
    pipeline = office.pipeline(pushed=True, **fields)
    office.set("pipelines", pipeline, created_at=ADDED)
    office.runs(pipeline, runs)
    office.due(pipeline)
    lost, heard = (time.isoformat() for time in outage)
    office.acme(api_gaps=json.dumps([{"lost": lost, "heard": heard}] if down else []))
    office.rule(rule_type)
    live = evaluate_rules(office.engine, at(23))
    tested = back_test(office.warehouse, BackTestRequest.read({"rule_type": rule_type, "days": 7}), at(23))
    found = reported(office).figures
    assert live is not None and live.open_episodes == (0 if down else 1)
    assert (found.incidents, tested.episodes) == (live.open_episodes, live.open_episodes)
    assert (found.coverage, tested.unknown_share) == (1.0, 0.0), "the outage was before the week"


def test_history_from_before_a_pipeline_was_added_is_known(office: Office) -> None:
    """The first sync reads all that the partner has; what is older than its oldest run is not known."""
    pipeline = office.add("orders", daily(3, first=18))
    office.set("pipelines", pipeline, created_at=at(23))
    found = reported(office)
    assert found.pipelines[0].unknown is Unknown.NEW
    assert found.figures.coverage == round((5 * 24 - 3) / (7 * 24), 6)


@pytest.mark.parametrize(
    ("story", "start"),
    [
        pytest.param([run(at(1, 1)), run(at(2, 1), F), run(at(3, 1), F)], at(2, 1), id="after a success"),
        pytest.param([run(at(2, 1), F), run(at(3, 1), F)], at(2, 1), id="from the first run on"),
        pytest.param([run(at(1, 1)), *[run(at(2, n / 8), F) for n in range(100)]], at(2), id="far more than thirty"),
    ],
)
def test_an_incident_that_began_long_before_the_week_has_its_true_start(
    office: Office, story: list[Any], start: datetime
) -> None:
    office.add("orders", [*story, run(at(20, 1))])
    [incident] = reported(office).incidents
    assert (incident.start, incident.end) == (start + timedelta(minutes=10), at(20, 1) + timedelta(minutes=10))


def test_a_run_that_has_been_going_on_since_before_the_weeks_is_seen(office: Office) -> None:
    office.add("orders", [run(at(1, 1), RunStatus.RUNNING)], max_runtime_minutes=60)
    [incident] = reported(office).incidents
    assert (incident.cause, incident.start, incident.is_open) == (Cause.OVERRUNNING, at(1, 2), True)


def test_what_is_flaky_is_what_the_sql_contract_calls_flaky(office: Office) -> None:
    now = datetime.now(UTC)
    stories = {
        "flips": [S, F] * 10,
        "rarely": [*[S] * 20, F, S],
        "twice": [S, F, S, F, *[S] * 8],
        "fails": [F] * 20,
        "few": [S, F, S, F, S],
        "edge": [*[S] * 14, F, S, F, S, *[S] * 3],
    }
    for name, statuses in stories.items():
        runs = [run(now - timedelta(hours=2 * n), status) for n, status in enumerate(statuses, 1)]
        office.add(name, runs)
    listed = {row["pipeline_slug"]: row for row in Warehouse(office.engine).ask("flaky_pipelines")}
    with report_source(office.engine) as source:
        pipelines = source.pipelines(source.client("acme").id, now, now, now)
        runs_of = source.runs([id_ for id_, _ in pipelines], now, now)
    found = {one.slug: flakiness(runs_of[id_], now) for id_, one in pipelines}
    assert {slug for slug, flaky in found.items() if flaky} == set(listed) == {"flips", "twice", "edge"}
    for slug, row in listed.items():
        flaky = found[slug]
        assert flaky is not None
        assert (flaky.flips, flaky.recoveries, flaky.settled) == (row["flips"], row["recoveries"], row["settled_runs"])


# --- the same ledger, the same bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_ledger_gives_the_same_bytes(acme: Office, form: str) -> None:
    write, _ = FORMATS[form]
    first = write(reported(acme))
    assert write(reported(acme)) == first
    later = write(reported(acme, now=NOW + timedelta(hours=31)))
    assert later == first, "the time of building is not part of it"


def test_rows_in_another_order_give_the_same_bytes(acme: Office) -> None:
    first = {form: write(reported(acme)) for form, (write, _) in FORMATS.items()}
    with acme.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM runs"))
        connection.execute(sa.text("DELETE FROM pipelines"))
        connection.execute(sa.text("DELETE FROM clients"))
    acme.fill(seed=2)
    assert {form: write(reported(acme)) for form, (write, _) in FORMATS.items()} == first


def test_building_changes_nothing(acme: Office) -> None:
    before = acme.warehouse.clients.get("acme")
    for form, _ in FORMATS.values():
        form(reported(acme))
    with report_source(acme.engine) as source:
        assert source.client("acme").issues == {}
    assert acme.warehouse.clients.get("acme") == before


# --- revisions ---------------------------------------------------------------------------------------------------------


def issued(office: Office, now: datetime = NOW, week: str = "2026-W47") -> Report:
    return issue_report(office.engine, "acme", week, None, now).report


def test_late_data_make_a_revision_and_the_ledger_keeps_the_figures(acme: Office) -> None:
    first = issued(acme)
    assert (first.revision, issued(acme)) == (1, first)
    with acme.engine.begin() as connection:
        connection.execute(sa.text("UPDATE runs SET status = 'failed' WHERE external_run_id = '20-3'"))
    assert reported(acme).revision == 2, "shown before it is issued"
    second = issued(acme)
    assert second.revision == 2
    assert [one.figure for one in second.revisions[0].changes][:1] == ["success_rate"]
    assert issued(acme, NOW + timedelta(days=1)) == second == reported(acme)


def test_a_week_that_is_not_over_is_not_issued(acme: Office) -> None:
    assert not issued(acme, week="2026-W48").is_final
    with report_source(acme.engine) as source:
        assert source.client("acme").issues == {}


def test_the_issues_of_the_latest_sixty_periods_are_kept(acme: Office) -> None:
    from chm_dagster.domain.periods import Period

    period = Period.week("2026-W47")
    for _ in range(62):
        issued(acme, week=str(period))
        period = period.before()
    with report_source(acme.engine) as source:
        kept = list(source.client("acme").issues)
    assert (len(kept), max(kept)) == (60, "2026-W47")
    with acme.engine.connect() as connection:
        size = connection.scalar(sa.text("SELECT pg_column_size(reports) FROM clients"))
    assert size < 60_000


def test_two_processes_do_not_issue_at_the_same_time(acme: Office, database_url: str) -> None:
    other = make_engine(database_url)
    with sending(other) as is_mine:
        assert is_mine
        with pytest.raises(Busy):
            issued(acme)
    other.dispose()
    assert issued(acme).revision == 1


# --- maintenance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["client", "pipeline"])
def test_maintenance_of_a_client_or_a_pipeline_is_left_out(acme: Office, scope: str) -> None:
    window = {"start": "2026-11-17T02:00:00Z", "end": "2026-11-17T16:00:00Z", "reason": "Upgrade"}
    if scope == "client":
        acme.warehouse.clients.update("acme", {"maintenance": [window]})
    else:
        acme.warehouse.pipelines.update("acme/orders", {"maintenance": [window], "owner": "Data team"})
    found = reported(acme)
    assert [incident.pipeline for incident in found.incidents] == ["invoices"]
    assert found.figures.in_maintenance == (6 if scope == "client" else 2)
    assert found.figures.settled == found.figures.success == 41 - found.figures.in_maintenance
    orders = next(one for one in found.pipelines if one.slug == "orders")
    assert orders.owner == (None if scope == "client" else "Data team")
