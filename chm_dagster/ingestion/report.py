"""What an ingestion did: every record of every pipeline, counted exactly once."""

import dataclasses
from datetime import datetime
from typing import Any

SAMPLES = 10
"""Rejections quoted in a report, for each pipeline; all of them are in the landing."""


@dataclasses.dataclass(slots=True)
class PipelineReport:
    """What became of one pipeline's records. `error` is set if the partner could not be read to the end."""

    key: str
    connection: str
    fetched: int = 0
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    stale: int = 0
    rejected: int = 0
    unknown_statuses: dict[str, int] = dataclasses.field(default_factory=dict)
    rejections: list[str] = dataclasses.field(default_factory=list)
    newest_run: datetime | None = None
    synced_through: datetime | None = None
    error: str | None = None

    @property
    def has_news(self) -> bool:
        """Whether anything happened that somebody may want to see in the pipeline's history."""
        return bool(self.inserted or self.updated or self.rejected)

    @property
    def accounted_for(self) -> bool:
        """Whether every record that was fetched ended in exactly one outcome."""
        return self.fetched == self.inserted + self.updated + self.unchanged + self.stale + self.rejected


@dataclasses.dataclass(slots=True)
class IngestReport:
    """The reports of all pipelines that were asked for, by key."""

    started_at: datetime
    pipelines: dict[str, PipelineReport] = dataclasses.field(default_factory=dict)

    @property
    def failed(self) -> list[PipelineReport]:
        """The pipelines whose partner could not be read."""
        return [p for p in self.pipelines.values() if p.error is not None]

    def total(self, outcome: str) -> int:
        """The sum of one count (`fetched`, `inserted`, ...) over all pipelines."""
        return sum(getattr(p, outcome) for p in self.pipelines.values())

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "IngestReport":
        """Read a report that was saved as JSON."""
        report = cls(datetime.fromisoformat(data["started_at"]))
        for key, raw in data["pipelines"].items():
            times = {name: raw[name] and datetime.fromisoformat(raw[name]) for name in ("newest_run", "synced_through")}
            report.pipelines[key] = PipelineReport(**{**raw, **times})
        return report
