"""`python -m chm_dagster.partners.sandbox`: the sandbox partner as a process of its own, on 127.0.0.1 only."""

import argparse
import os
import sys
from collections.abc import Sequence

from chm_dagster.errors import InputError
from chm_dagster.partners.sandbox.misbehaviour import Kind, Misbehaviour, Misbehaviours
from chm_dagster.partners.sandbox.server import create_app
from chm_dagster.partners.sandbox.serving import base_url, bind, serve
from chm_dagster.partners.sandbox.world import World

MAX_PIPELINES = 100_000


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes. Returns 2, after one line on stderr, if it cannot start."""
    options = _parser().parse_args(argv)
    environ = os.environ  # noqa: TID251 - an entry point, and the option names the variable
    token = environ.get(options.token_env, "").strip() if options.token_env else None
    if token == "":
        return _complain(f"{options.token_env} is not set; it must hold the token that callers need")
    if not 1 <= options.pipelines <= MAX_PIPELINES:
        return _complain(f"--pipelines must be from 1 to {MAX_PIPELINES}")
    if not 0 <= options.port <= 65535:
        return _complain("--port must be from 0 (any free one) to 65535")
    world = World(options.seed, options.pipelines)
    misbehaviours = Misbehaviours()
    try:
        for text in options.misbehave:
            misbehaviours.add(Misbehaviour.from_text(text, {p.external_id for p in world.pipelines()}))
    except InputError as error:
        return _complain(f"--misbehave: {error}")
    try:
        listener = bind(options.port)
    except OSError as error:
        return _complain(f"cannot listen on 127.0.0.1:{options.port}: {error.strerror}")
    started = f"sandbox partner: {base_url(listener)} ({options.pipelines} pipelines, seed {options.seed})"
    print(started, flush=True)  # noqa: T201 - what a person at the terminal needs to know
    serve(create_app(world, token, misbehaviours=misbehaviours), listener, access_log=options.access_log)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chm_dagster.partners.sandbox",
        description="A made-up partner whose runs happen by themselves. Listens on 127.0.0.1 only.",
    )
    parser.add_argument("--port", type=int, default=8900, help="0 takes any free one (default: 8900)")
    parser.add_argument(
        "--token-env", metavar="NAME", help="variable that holds the token callers need (default: none)"
    )
    parser.add_argument("--seed", type=int, default=7, help="which world (default: 7)")
    parser.add_argument("--pipelines", type=int, default=24, help="how many (default: 24)")
    parser.add_argument("--access-log", action="store_true", help="log every request")
    parser.add_argument(
        "--misbehave",
        action="append",
        default=[],
        metavar="KIND[@EXTERNAL_ID][*TIMES]",
        help=f"misbehave from the start; may be repeated. Kinds: {', '.join(Kind)}",
    )
    return parser


def _complain(line: str) -> int:
    print(f"sandbox partner: {line}", file=sys.stderr)  # noqa: T201 - a command-line program's own complaint
    return 2


if __name__ == "__main__":
    sys.exit(main())
