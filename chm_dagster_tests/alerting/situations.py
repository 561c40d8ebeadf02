"""Clients, pipelines, runs and rules for the tests of alerting."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa

from chm_dagster.alerting.evaluating import EvaluationReport, evaluate_rules
from chm_dagster.domain.alerts import Episode, RunFact
from chm_dagster.domain.messages import Message
from chm_dagster.domain.rules import AlertRule
from chm_dagster.warehouse.ledger.due_times import refresh_due
from chm_dagster.warehouse.outbox import Outbox
from chm_dagster.warehouse.warehouse import Warehouse
from chm_dagster_tests.factories import rows
from chm_dagster_tests.unit.test_alert_evaluation import at, story

EARLIER = at(-24)


class World:
    """A database with clients and pipelines whose runs are written as stories; hours count from one day's midnight."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.warehouse = Warehouse(engine)

    def pipeline(self, key: str = "acme/orders", *, pushed: bool = False, **fields: Any) -> UUID:
        client, name = key.split("/")
        if not rows(self.engine, "SELECT 1 FROM clients WHERE slug = :slug", slug=client):
            self.warehouse.clients.create({"name": client.capitalize(), "slug": client})
        new = {"name": name.capitalize(), "slug": name, "platform": "custom", "pipeline_type": "ingestion", **fields}
        if not pushed:
            new["external_id"] = name
        pipeline = self.warehouse.pipelines.create(client, new)
        self.set("pipelines", pipeline.id, created_at=EARLIER, schedule_changed_at=None)
        return pipeline.id

    def set(self, table: str, row: UUID, **values: Any) -> None:
        names = ", ".join(f"{name} = :{name}" for name in values)
        with self.engine.begin() as connection:
            connection.execute(sa.text(f"UPDATE {table} SET {names} WHERE id = :id"), {"id": row, **values})

    def runs(
        self, pipeline: UUID, what: str | Sequence[RunFact], *, error: str | None = "ValueError: no column 'id'"
    ) -> None:
        """These are the pipeline's runs."""
        with self.engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM runs WHERE pipeline_id = :id"), {"id": pipeline})
            for run in story(what) if isinstance(what, str) else what:
                connection.execute(
                    sa.text(
                        "INSERT INTO runs (pipeline_id, external_run_id, status, started_at, queued_at, finished_at, kind,"
                        " will_retry, error_message, source_url) VALUES (:pipeline, :run, :status, :started, :queued,"
                        " :finished, :kind, :retry, :error, :link)"
                    ),
                    {
                        "pipeline": pipeline,
                        "run": run.run,
                        "status": run.status,
                        "started": run.started_at,
                        "queued": run.effective_at,
                        "finished": run.finished_at,
                        "kind": run.kind,
                        "retry": run.will_retry,
                        "error": error if run.status == "failed" else None,
                        "link": f"https://partner.example/runs/{run.run}",
                    },
                )

    def due(self, pipeline: UUID) -> None:
        """The due time follows the runs, as when a sync wrote them."""
        with self.engine.begin() as connection:
            refresh_due(connection, [pipeline])

    def known(self, hour: float | None, *pipelines: UUID) -> None:
        """The last complete sync began five minutes after this time, so that everything up to it is known."""
        moment = None if hour is None else at(hour) + timedelta(minutes=5)
        for pipeline in pipelines:
            self.set("pipelines", pipeline, observed_through=moment)

    def rule(self, kind: str = "on_failure", **fields: Any) -> AlertRule:
        scope = {} if "client_id" in fields else {"pipeline_id": "acme/orders"}
        return self.warehouse.rules.create(
            {"rule_type": kind, "channel": "slack", "destination": "#alerts", **scope, **fields}
        )

    def evaluate(self, hour: float) -> EvaluationReport:
        report = evaluate_rules(self.engine, at(hour))
        assert report is not None
        return report

    def look(self, hour: float, *pipelines: UUID) -> list[str]:
        """Everything is known up to this hour: evaluate, take all messages out, and return what they announce."""
        self.known(hour, *pipelines)
        self.evaluate(hour)
        return self.taken()

    def taken(self) -> list[str]:
        outbox, found = Outbox(self.engine), []
        for message in outbox.messages():
            found += [f"{item.kind} {item.pipeline_key}" for item in message.items]
            outbox.delivered(message)
        return found

    def messages(self) -> list[Message]:
        return Outbox(self.engine).messages()

    def episodes(self) -> dict[tuple[UUID, UUID], Episode]:
        found = rows(self.engine, "SELECT id, episodes FROM alert_rules")
        episodes = [(row["id"], msgspec.convert(e, Episode)) for row in found for e in row["episodes"]]
        return {(rule_id, episode.pipeline_id): episode for rule_id, episode in episodes}

    def open_since(self) -> Mapping[tuple[UUID, UUID], datetime]:
        return {pair: episode.since for pair, episode in self.episodes().items()}

    def make_due(self, message: Message) -> None:
        """As if the wait until the next attempt had passed."""
        Outbox(self.engine).postponed(msgspec.structs.replace(message, next_at=EARLIER))
