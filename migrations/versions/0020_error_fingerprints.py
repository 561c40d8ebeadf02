"""What failures of the same error have in common, stored with each failed run and shown by the views on runs.

SQL cannot compute it: it starts with the line of a traceback, a log or a JSON document that says what went wrong.
"""

import sqlalchemy as sa
from alembic import context, op

from chm_dagster.domain.error_text import fingerprint

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

COMMENT = "What a failure has in common with others of the same error"
FITS = "error_fingerprint IS NULL OR (status = 'failed' AND length(error_fingerprint) <= 1000)"
FAILED = "SELECT id, coalesce(nullif(error_message, ''), status_reason) AS error FROM runs WHERE status = 'failed'"
FILL = """
UPDATE runs SET error_fingerprint = f.text
FROM unnest(CAST(:ids AS uuid[]), CAST(:texts AS text[])) AS f(id, text)
WHERE runs.id = f.id
"""
CHUNK = 10_000


def upgrade() -> None:
    op.add_column("runs", sa.Column("error_fingerprint", sa.Text(), nullable=True, comment=COMMENT))
    op.create_check_constraint(op.f("ck_runs_error_fingerprint_fits_status"), "runs", FITS)
    _fill(op.get_bind())
    for name, query in _views().items():
        op.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")
        op.execute(f"COMMENT ON COLUMN {name}.error_fingerprint IS '{COMMENT}'")


def downgrade() -> None:
    before = _before()
    for name in reversed(before.VIEWS):
        op.execute(f"DROP VIEW {name}")
    before._drop_blocks()
    op.execute("DROP VIEW ledger_runs")
    op.drop_column("runs", "error_fingerprint")
    before._create_blocks("ledger_runs")
    for name, (comment, query) in before.VIEWS.items():
        before._create_view(name, comment, query)
    before._comment_columns([*before.VIEWS, *before.BLOCKS])


def _fill(bind: sa.Connection) -> None:
    """With the function of this release, on purpose: what is stored must be what it returns now."""
    failed = bind.execute(sa.text(FAILED), execution_options={"yield_per": CHUNK})
    for chunk in failed.partitions():
        values = {"ids": [row.id for row in chunk], "texts": [fingerprint(row.error) for row in chunk]}
        bind.execute(sa.text(FILL), values)


def _views() -> dict[str, str]:
    """The views on runs with one more column, which CREATE OR REPLACE wants to be the last."""
    before = _before()
    ledger = f"SELECT {', '.join((*before.RUN_COLUMNS, 'error_fingerprint'))} FROM runs"
    details = before.VIEWS["run_details"][1].replace(
        "r.source_url\n", "r.source_url,\n            r.error_fingerprint\n"
    )
    return {
        "ledger_runs": ledger,
        **{name: before.BLOCKS[name][1].format(runs="ledger_runs") for name in ("settled_runs", "health_runs")},
        "run_details": details,
    }


def _before():
    return context.script.get_revision("0016").module
