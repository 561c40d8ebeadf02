"""The command `chm`.

Exit codes: 0 all is well; 1 it ran, but something is wrong (a pipeline could not be read, a gate is closed); 2 it could
not run (a setting or an argument is wrong, the database does not answer).
"""

import sys

import typer

from chm_dagster.cli import db, ingest, partner, status, up
from chm_dagster.cli.output import errors
from chm_dagster.errors import ChmError

app = typer.Typer(
    name="chm",
    help="Client Health Monitor: whose data pipelines are healthy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up")(up.up)
app.command("migrate")(db.migrate)
app.command("ingest")(ingest.ingest)
app.command("status")(status.status)
app.add_typer(db.app, name="db")
app.add_typer(partner.app, name="partner")


def main() -> None:
    """Run a command. CHM's own errors become one message without a traceback."""
    try:
        app()
    except ChmError as error:
        for line in str(error).splitlines():
            errors.print(f"chm: {line}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
