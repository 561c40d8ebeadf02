"""How much the benchmark measures, and how often."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers of rows and rounds. The per-row contender gets fewer rows because it is far slower."""

    pipelines: int
    runs_per_pipeline: int
    per_row_runs: int
    rounds: int
    sync_pipelines: int
    sync_news: int
    sync_runs_per_pipeline: int
    sync_rounds: int

    @property
    def runs(self) -> int:
        """Rows of one load."""
        return self.pipelines * self.runs_per_pipeline


FULL = Sizes(
    pipelines=2_000,
    runs_per_pipeline=50,
    per_row_runs=1_000,
    rounds=7,
    sync_pipelines=10_000,
    sync_news=500,
    sync_runs_per_pipeline=10,
    sync_rounds=7,
)
QUICK = Sizes(
    pipelines=20,
    runs_per_pipeline=50,
    per_row_runs=20,
    rounds=1,
    sync_pipelines=100,
    sync_news=10,
    sync_runs_per_pipeline=2,
    sync_rounds=1,
)
