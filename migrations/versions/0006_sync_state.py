"""Whether a pipeline can be read, since when not, and why: what back-off and health are derived from."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

COLUMNS = (
    ("sync_attempted_at", sa.TIMESTAMP(timezone=True), "When CHM last tried to read the pipeline, by CHM's clock"),
    ("sync_failing_since", sa.TIMESTAMP(timezone=True), "First failed attempt since the last success; null: readable"),
    ("sync_error", sa.Text(), "Why it cannot be read, or a warning about its clock; secrets masked"),
    ("sync_error_code", sa.Text(), "The kind of sync_error"),
)
CODES = (
    "credentials_refused",
    "unreachable",
    "rate_limited",
    "not_at_partner",
    "bad_response",
    "configuration",
    "clock_skew",
    "deadline",
)
OBSERVED = "When the last complete sync of the pipeline started, by CHM's clock"
OBSERVED_BEFORE = "When the sweep that set synced_through started, by our clock"
READABLE = "{0} >= '0001-01-02 00:00:00+00' AND {0} < '9999-12-31 00:00:00+00'"
CHECKS = {
    "sync_attempted_at_readable": READABLE.format("sync_attempted_at"),
    "sync_failing_since_readable": READABLE.format("sync_failing_since"),
    "sync_error_length": "length(sync_error) BETWEEN 1 AND 1000",
    "sync_error_code_known": f"sync_error_code IN ({', '.join(map(repr, CODES))})",
    "sync_error_has_code": "(sync_error IS NULL) = (sync_error_code IS NULL)",
    "sync_failing_has_error": "sync_failing_since IS NULL OR sync_error IS NOT NULL",
}


def upgrade() -> None:
    for name, type_, comment in COLUMNS:
        op.add_column("pipelines", sa.Column(name, type_, nullable=True, comment=comment))
    for name, expression in CHECKS.items():
        op.create_check_constraint(op.f(f"ck_pipelines_{name}"), "pipelines", expression)
    op.alter_column("pipelines", "observed_through", comment=OBSERVED, existing_comment=OBSERVED_BEFORE)


def downgrade() -> None:
    op.alter_column("pipelines", "observed_through", comment=OBSERVED_BEFORE, existing_comment=OBSERVED)
    for name, _, _ in reversed(COLUMNS):
        op.drop_column("pipelines", name)
