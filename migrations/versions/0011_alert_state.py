"""The open episodes and undelivered messages of each alert rule, and what delivering them needs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

COLUMNS = (
    ("episodes", "Open episodes: what the rule has found wrong and is not over"),
    ("outbox", "Messages that no receiver has accepted yet, with their keys and attempts"),
)


def upgrade() -> None:
    for name, comment in COLUMNS:
        column = sa.Column(name, pg.JSONB(), server_default=sa.text("'[]'::jsonb"), nullable=False, comment=comment)
        op.add_column("alert_rules", column)
        op.create_check_constraint(
            op.f(f"ck_alert_rules_{name}_are_a_list"), "alert_rules", f"jsonb_typeof({name}) = 'array'"
        )
    op.create_index("ix_alert_rules_outbox", "alert_rules", ["id"], postgresql_where=sa.text("outbox <> '[]'"))


def downgrade() -> None:
    op.drop_index("ix_alert_rules_outbox", table_name="alert_rules")
    for name, _ in reversed(COLUMNS):
        op.drop_column("alert_rules", name)
