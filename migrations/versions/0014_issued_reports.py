"""What is kept of the reports that were issued to a client."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

COMMENT = "The last issues of the client's reports by period: revision, figures, and what was sent"


def upgrade() -> None:
    column = sa.Column("reports", pg.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False, comment=COMMENT)
    op.add_column("clients", column)
    op.create_check_constraint(op.f("ck_clients_reports_by_period"), "clients", "jsonb_typeof(reports) = 'object'")


def downgrade() -> None:
    op.drop_column("clients", "reports")
