"""How much is measured, and how often."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """Rows and rounds. A row at a time gets fewer of them: it would take minutes for what the others do in seconds."""

    pipelines: int
    runs_per_pipeline: int
    per_row_runs: int
    rounds: int
    sweep_pipelines: int
    sweep_news: int
    sweep_runs_per_pipeline: int
    sweep_rounds: int

    @property
    def runs(self) -> int:
        """Rows of one load."""
        return self.pipelines * self.runs_per_pipeline


FULL = Sizes(
    pipelines=2_000,
    runs_per_pipeline=50,
    per_row_runs=1_000,
    rounds=7,
    sweep_pipelines=10_000,
    sweep_news=500,
    sweep_runs_per_pipeline=10,
    sweep_rounds=7,
)
QUICK = Sizes(
    pipelines=20,
    runs_per_pipeline=50,
    per_row_runs=20,
    rounds=1,
    sweep_pipelines=100,
    sweep_news=10,
    sweep_runs_per_pipeline=2,
    sweep_rounds=1,
)
