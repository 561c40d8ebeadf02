"""A deleted rule is kept until whoever was notified of its open episodes has been notified of their end."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

COMMENT = "Since when the rule is deleted; it goes as soon as its receivers have been notified"


def upgrade() -> None:
    op.add_column("alert_rules", sa.Column("deleted_at", sa.TIMESTAMP(timezone=True), comment=COMMENT))


def downgrade() -> None:
    op.execute("DELETE FROM alert_rules WHERE deleted_at IS NOT NULL")
    op.drop_column("alert_rules", "deleted_at")
