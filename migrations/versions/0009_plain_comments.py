"""Comments of tables and columns in plain English."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

TABLES = {
    "clients": ("Customers whose pipelines are watched", "Customers whose pipelines are monitored"),
    "pipelines": ("Clients' recurring jobs, on whatever platform they run", "Clients' recurring jobs on any platform"),
    "runs": (
        "Executions of pipelines, one row each however often a partner tells of them",
        "Executions of pipelines, one row each, however often they are reported",
    ),
    "alert_rules": ("When to tell whom that something is wrong", "Who is notified about what"),
}
COLUMNS = {
    ("pipelines", "connection"): (
        "Which partner instance tells of it; null: the platform's default",
        "The connection that reports its runs; null: the platform's default",
    ),
    ("runs", "lineage"): (
        "What the run's OpenLineage events say together; null where none came",
        "Combined state of the run's OpenLineage events; null if there are none",
    ),
    ("runs", "ingested_at"): ("When CHM last wrote what a partner said", "When CHM last wrote a report of the run"),
    ("runs", "error_message"): (
        "Why it failed, as the partner puts it, secrets masked",
        "Why it failed, in the partner's words, with secrets masked",
    ),
    ("runs", "observed_at"): (
        "When the request that told us started, by our clock",
        "When the request that returned the run started, by CHM's clock",
    ),
    ("alert_rules", "window_minutes"): ("Over how long, in minutes", "Length of the window, in minutes"),
}
"""The comment before -> the comment from here on."""


def upgrade() -> None:
    for table, (before, after) in TABLES.items():
        op.create_table_comment(table, after, existing_comment=before)
    for (table, column), (before, after) in COLUMNS.items():
        op.alter_column(table, column, comment=after, existing_comment=before, existing_type=sa.Text())


def downgrade() -> None:
    for table, (before, after) in TABLES.items():
        op.create_table_comment(table, before, existing_comment=after)
    for (table, column), (before, after) in COLUMNS.items():
        op.alter_column(table, column, comment=before, existing_comment=after, existing_type=sa.Text())
