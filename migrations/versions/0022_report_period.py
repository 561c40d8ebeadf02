"""Of which periods a client gets reports: each week, each month, or both."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    comment = "Of which periods it gets reports: week, month or both"
    op.add_column(
        "clients", sa.Column("report_period", sa.Text(), server_default="week", nullable=False, comment=comment)
    )
    op.create_check_constraint(
        op.f("ck_clients_report_period_known"), "clients", "report_period IN ('week', 'month', 'both')"
    )


def downgrade() -> None:
    op.drop_column("clients", "report_period")
