"""An index to find the run that was recorded with an idempotency key.

Runs that partners tell of are not in it, so that ingestion pays next to nothing for it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_runs_idempotency_keys",
        "runs",
        [sa.literal_column("(payload -> 'chm_idempotency')")],
        unique=False,
        postgresql_using="gin",
        postgresql_where=sa.text("payload ? 'chm_idempotency'"),
    )


def downgrade() -> None:
    op.drop_index(
        "ix_runs_idempotency_keys",
        table_name="runs",
        postgresql_using="gin",
        postgresql_where=sa.text("payload ? 'chm_idempotency'"),
    )
