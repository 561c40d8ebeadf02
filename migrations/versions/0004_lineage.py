"""Room for what OpenLineage events say of a run, and an index to find the pipelines that they are about."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "runs",
        sa.Column(
            "lineage",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=True,
            comment="What the run's OpenLineage events say together; null where none came",
        ),
    )
    op.create_index(
        "ix_pipelines_external_id",
        "pipelines",
        ["external_id"],
        unique=False,
        postgresql_where=sa.text("external_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index(
        "ix_pipelines_external_id", table_name="pipelines", postgresql_where=sa.text("external_id IS NOT NULL")
    )
    op.drop_column("runs", "lineage")
