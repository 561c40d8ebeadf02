"""What reports and maintenance need: zone, address and windows of a client; windows, owner and tags of a pipeline."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def _text(name: str, comment: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=True, comment=comment)


def _windows(comment: str) -> sa.Column[object]:
    empty = sa.text("'[]'::jsonb")
    return sa.Column("maintenance", pg.JSONB(), server_default=empty, nullable=False, comment=comment)


TAGS = sa.Column(
    "tags",
    pg.ARRAY(sa.Text()),
    server_default=sa.text("'{}'::text[]"),
    nullable=False,
    comment="Words to group by, each once",
)
COLUMNS = (
    ("clients", _text("timezone", "IANA zone in which the weeks of its reports begin; null: UTC")),
    ("clients", _text("report_email", "Who receives its reports; null: nobody")),
    ("clients", _windows("Maintenance windows of all its pipelines, one-off and recurring")),
    ("pipelines", _text("owner", "Who looks after it: a person or a team")),
    ("pipelines", TAGS),
    ("pipelines", _windows("Its maintenance windows, one-off and recurring, beside those of its client")),
)
TRIMMED = "{0} = btrim({0}, E' \\t\\n\\r') AND length({0}) BETWEEN 1 AND {1}"
CHECKS = (
    ("clients", "timezone_trimmed", TRIMMED.format("timezone", 100)),
    ("clients", "report_email_trimmed", TRIMMED.format("report_email", 320)),
    ("clients", "maintenance_is_a_list", "jsonb_typeof(maintenance) = 'array'"),
    ("pipelines", "owner_trimmed", TRIMMED.format("owner", 200)),
    ("pipelines", "tags_within_limits", "cardinality(tags) <= 20 AND array_position(tags, NULL) IS NULL"),
    ("pipelines", "maintenance_is_a_list", "jsonb_typeof(maintenance) = 'array'"),
)


def upgrade() -> None:
    for table, column in COLUMNS:
        op.add_column(table, column.copy())
    for table, name, expression in CHECKS:
        op.create_check_constraint(op.f(f"ck_{table}_{name}"), table, expression)


def downgrade() -> None:
    for table, column in reversed(COLUMNS):
        op.drop_column(table, column.name)
