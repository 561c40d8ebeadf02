"""Client reports in Dagster: the sensor, the partitions, the gates, and what is sent."""

from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
import sqlalchemy as sa

from chm_dagster.definitions import assembled
from chm_dagster.defs.automation import resources
from chm_dagster.domain.periods import Period, PeriodKind, last_over
from chm_dagster.domain.reports import Issued
from chm_dagster.errors import ConfigError, Transient
from chm_dagster.ingestion.landing import LandingZone
from chm_dagster.reporting import send_report
from chm_dagster.warehouse.reports import report_source
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import FakeFeed, fake_partner, one_page, record, rows
from chm_dagster_tests.reporting.conftest import Office
from chm_dagster_tests.unit.test_reports import F, run


class Mailbox:
    """A fake mail server: keeps what it accepts, or refuses it."""

    email_from = "chm@agency.example"

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.error: Exception | None = None

    def send_mail(self, mail: EmailMessage) -> None:
        if self.error is not None:
            raise self.error
        self.mails.append(mail)


class Reports:
    """CHM's definitions on a real instance, with a client whose pipeline failed once last week."""

    def __init__(self, engine: sa.Engine, instance: dg.DagsterInstance, zone: LandingZone) -> None:
        self.office, self.instance, self.mailbox = Office(engine), instance, Mailbox()
        feed = FakeFeed(lambda target: one_page(target.external_id, record("old")))
        vended = resources(lambda: Warehouse(engine), lambda: fake_partner(feed), zone, lambda: self.mailbox)
        self.defs = assembled(vended, "*/5 * * * *")
        self.cursor: str | None = None
        # A zone in which it is never just before nine on a Monday would not do all year: the week before is due anyway.
        self.week, self.month = (last_over(k, datetime.now(UTC) - timedelta(hours=9), UTC_ZONE) for k in PeriodKind)
        begin = self.week.start(UTC_ZONE)
        pipeline = self.office.pipeline("acme/orders")
        long_ago = begin - timedelta(weeks=5)
        self.office.set("pipelines", pipeline, created_at=long_ago, observed_through=datetime.now(UTC))
        runs = [run(begin + timedelta(hours=hour)) for hour in range(1, 100)]
        self.office.runs(pipeline, [*runs, run(begin + timedelta(hours=101), F, run="bad")])
        self.office.acme(report_email="reports@acme.example", created_at=long_ago)

    def tick(self) -> dg.SensorResult:
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            resources={"warehouse": self.office.warehouse},
        ) as context:
            data: Any = self.defs.resolve_sensor_def("reports_due").evaluate_tick(context)
        for request in data.dynamic_partitions_requests or ():
            if isinstance(request, dg.AddDynamicPartitionsRequest):
                self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
            else:
                for key in request.partition_keys:
                    self.instance.delete_dynamic_partition(request.partitions_def_name, key)
        self.cursor = data.cursor or self.cursor
        return data

    def execute(self, request: dg.RunRequest) -> Any:
        job = self.defs.resolve_job_def(str(request.job_name))
        return job.execute_in_process(
            run_config=request.run_config,
            tags=dict(request.tags),
            instance=self.instance,
            raise_on_error=False,
        )

    def ingest(self) -> dg.ExecuteInProcessResult:
        config = {"ops": {"ingest_runs": {"config": {"everything": True}}}}
        return self.defs.resolve_job_def("ingest").execute_in_process(instance=self.instance, run_config=config)

    def choose(self, client: str, period: Period) -> Any:
        key = dg.MultiPartitionKey({"client": client, str(period.kind): period.first.isoformat()})
        job = self.defs.resolve_job_def(
            "client_month_reports" if "month" in key.keys_by_dimension else "client_reports"
        )
        return job.execute_in_process(partition_key=key, instance=self.instance, raise_on_error=False)

    def kept(self) -> dict[str, Issued]:
        with report_source(self.office.engine) as source:
            return dict(source.client("acme").issues)

    def partitions(self, asset: str = "client_report") -> set[str]:
        return self.instance.get_materialized_partitions(dg.AssetKey(asset))


UTC_ZONE = ZoneInfo("UTC")


@pytest.fixture
def reports(engine: sa.Engine, tmp_path: Path) -> Any:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        yield Reports(engine, instance, LandingZone(tmp_path / "landing"))


def test_what_is_due_is_issued_sent_and_shown_as_a_partition(reports: Reports) -> None:
    assert reports.ingest().success, "the ledger that the report depends on has events of its own"
    [request] = reports.tick().run_requests or ()
    assert reports.instance.get_dynamic_partitions("chm_clients") == ["acme"]
    result = reports.execute(request)
    assert result.success
    assert reports.partitions() == {f"acme|{reports.week.first.isoformat()}"}
    [mail] = reports.mailbox.mails
    assert mail["To"] == "reports@acme.example"
    event = next(e for e in result.asset_materializations_for_node("client_report") if e.partition)
    assert (event.metadata["runs"].value, event.metadata["revision"].value) == (100, 1)
    assert event.metadata["success rate"].value == 0.99
    assert {e.check_name: e.passed for e in result.get_asset_check_evaluations()} == {
        "unique_external_run_ids": True,
        "status_progression": True,
        "every_record_accounted_for": True,
        "every_report_is_deliverable": True,
    }


def test_a_month_that_is_due_is_issued_and_sent_in_a_run_of_its_own_partition(reports: Reports) -> None:
    assert reports.ingest().success, "the ledger that the report depends on has events of its own"
    reports.office.acme(report_period="month")
    [request] = reports.tick().run_requests or ()
    partition = f"acme|{reports.month.first.isoformat()}"
    assert (request.job_name, request.tags["dagster/partition"]) == ("client_month_reports", partition)
    result = reports.execute(request)
    assert result.success
    assert (reports.partitions(), reports.partitions("client_month_report")) == (set(), {partition})
    assert list(reports.kept()) == [str(reports.month)]
    [mail] = reports.mailbox.mails
    assert mail["Subject"] == f"Acme: {reports.month.first:%B %Y}"
    assert {e.check_name: e.passed for e in result.get_asset_check_evaluations()} == {
        "unique_external_run_ids": True,
        "status_progression": True,
        "every_record_accounted_for": True,
        "every_report_is_deliverable": True,
    }
    [once_a_day] = reports.tick().run_requests or ()
    assert once_a_day.tags["dagster/partition"] == partition
    assert reports.execute(once_a_day).success
    assert not reports.tick().run_requests
    assert len(reports.mailbox.mails) == 1


def test_one_run_issues_the_week_and_the_month_that_are_due(reports: Reports) -> None:
    assert reports.ingest().success
    reports.office.acme(report_period="both")
    [request] = reports.tick().run_requests or ()
    assert reports.execute(request).success
    assert reports.partitions() == {f"acme|{reports.week.first.isoformat()}"}
    assert reports.partitions("client_month_report") == {f"acme|{reports.month.first.isoformat()}"}
    assert len(reports.mailbox.mails) == 2


def test_a_months_email_that_waits_makes_a_run_of_its_month(reports: Reports) -> None:
    reports.office.acme(report_period="month")
    [request] = reports.tick().run_requests or ()
    reports.mailbox.error = Transient("email: the mail server closed the connection")
    assert not reports.execute(request).success
    with reports.office.engine.begin() as connection:
        path = f"{{{reports.month},mail,next_at}}"
        connection.execute(
            sa.text("UPDATE clients SET reports = jsonb_set(reports, CAST(:path AS text[]), to_jsonb(now()))"),
            {"path": path},
        )
    reports.mailbox.error = None
    [again] = reports.tick().run_requests or ()
    assert again.job_name == "client_month_reports"
    assert reports.execute(again).success
    assert len(reports.mailbox.mails) == 1


OLD = Period.week("2025-W48")
"""A week before the first partition."""


def test_an_email_of_a_week_without_a_partition_is_sent_in_a_run_of_a_partition_that_exists(reports: Reports) -> None:
    [request] = reports.tick().run_requests or ()
    assert reports.execute(request).success
    reports.mailbox.error = Transient("email: the mail server closed the connection")
    with pytest.raises(Transient):
        send_report(reports.office.engine, reports.mailbox, "acme", str(OLD), None, datetime.now(UTC))
    reports.mailbox.error = None
    [again] = reports.tick().run_requests or ()
    partition = f"acme|{reports.week.first.isoformat()}"
    assert (again.job_name, again.tags["dagster/partition"]) == ("client_reports", partition)
    assert reports.execute(again).success
    assert [mail["Subject"].split(":")[0] for mail in reports.mailbox.mails] == ["Acme", "Acme"]
    assert not reports.tick().run_requests, "nothing is left to be sent"


def test_once_a_day_the_sensor_looks_for_late_data(reports: Reports) -> None:
    [first] = reports.tick().run_requests or ()
    reports.execute(first)
    [second] = reports.tick().run_requests or ()
    assert second.run_config["ops"]["client_report"]["config"] == {"due": True, "revise": True}
    assert not reports.tick().run_requests, "once a day"
    with reports.office.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE runs SET status = 'success', error_message = NULL, error_fingerprint = NULL")
        )
    reports.execute(second)
    assert reports.kept()[str(reports.week)].revision == 2
    assert len(reports.mailbox.mails) == 1


@pytest.mark.alone
@pytest.mark.parametrize("chosen", [False, True], ids=["due", "partition"])
def test_a_report_is_not_issued_past_a_gate(reports: Reports, chosen: bool) -> None:
    """Runs of the last ingestion that are both running and finished; the constraint is dropped to get them in."""
    assert reports.ingest().success
    [request] = reports.tick().run_requests or ()
    with reports.office.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE runs DROP CONSTRAINT ck_runs_running_is_not_finished"))
        connection.execute(
            sa.text("UPDATE runs SET status = 'running', error_message = NULL, error_fingerprint = NULL, progress = 0")
        )
    result = reports.choose("acme", reports.week) if chosen else reports.execute(request)
    assert not result.success
    assert {e.check_name for e in result.get_asset_check_evaluations() if not e.passed} == {"status_progression"}
    assert (reports.partitions(), reports.kept(), reports.mailbox.mails) == (set(), {}, [])


def test_a_chosen_partition_is_issued_and_not_sent(reports: Reports) -> None:
    reports.tick()
    before, month = reports.week.before(), reports.month.before()
    assert reports.choose("acme", before).success
    assert reports.choose("acme", month).success
    assert reports.partitions() == {f"acme|{before.first.isoformat()}"}
    assert reports.partitions("client_month_report") == {f"acme|{month.first.isoformat()}"}
    assert set(reports.kept()) == {str(before), str(month)}
    assert reports.mailbox.mails == []


def test_what_cannot_be_sent_fails_the_run_and_is_tried_again(reports: Reports) -> None:
    [request] = reports.tick().run_requests or ()
    reports.mailbox.error = ConfigError("email: CHM_SMTP_URL is not set")
    result = reports.execute(request)
    assert not result.success
    [failure] = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_failure_data.error.message.endswith("email: CHM_SMTP_URL is not set")
    assert reports.partitions() == {f"acme|{reports.week.first.isoformat()}"}, "it was issued all the same"
    mail = reports.kept()[str(reports.week)].mail
    assert mail is not None and mail.attempts == 1 and mail.next_at is not None


def test_a_client_that_is_disabled_loses_its_partition(reports: Reports) -> None:
    reports.tick()
    reports.office.warehouse.clients.disable("acme")
    assert not reports.tick().run_requests
    assert reports.instance.get_dynamic_partitions("chm_clients") == []
    assert len(rows(reports.office.engine, "SELECT 1 FROM clients")) == 1


@pytest.mark.parametrize("job", ["client_reports", "client_month_reports"])
@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_while_a_run_is_under_way_no_other_one_is_asked_for(
    reports: Reports, job: str, status: dg.DagsterRunStatus
) -> None:
    reports.instance.add_run(dg.DagsterRun(job_name=job, status=status))
    assert not reports.tick().run_requests
