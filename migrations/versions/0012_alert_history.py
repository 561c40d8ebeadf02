"""The history of each alert rule: its episodes that are over, within bounds."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

COMMENT = "Episodes that are over, the latest first: the last 200, for 90 days"


def upgrade() -> None:
    column = sa.Column("history", pg.JSONB(), server_default=sa.text("'[]'::jsonb"), nullable=False, comment=COMMENT)
    op.add_column("alert_rules", column)
    op.create_check_constraint(
        op.f("ck_alert_rules_history_are_a_list"), "alert_rules", "jsonb_typeof(history) = 'array'"
    )


def downgrade() -> None:
    op.drop_column("alert_rules", "history")
