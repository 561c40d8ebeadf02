"""Two more channels: apprise, and the inbox in CHM's home."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

NAME = "ck_alert_rules_channel_known"
BEFORE = ("slack", "email", "webhook"), "slack, email or webhook"
AFTER = (*BEFORE[0], "apprise", "inbox"), "slack, email, webhook, apprise or inbox"


def upgrade() -> None:
    _set(*AFTER)


def downgrade() -> None:
    op.execute("DELETE FROM alert_rules WHERE channel IN ('apprise', 'inbox')")
    _set(*BEFORE)


def _set(channels: tuple[str, ...], comment: str) -> None:
    op.drop_constraint(op.f(NAME), "alert_rules", type_="check")
    words = ", ".join(f"'{channel}'" for channel in channels)
    op.create_check_constraint(op.f(NAME), "alert_rules", f"channel IN ({words})")
    op.alter_column("alert_rules", "channel", existing_type=sa.Text(), comment=comment)
