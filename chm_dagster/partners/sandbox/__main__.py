"""`python -m chm_dagster.partners.sandbox`: the sandbox partner as a separate process, on 127.0.0.1 only."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from chm_dagster.errors import ConfigError, InputError
from chm_dagster.partners.sandbox.misbehaviour import Kind, Misbehaviour, Misbehaviours
from chm_dagster.partners.sandbox.server import SERVER_OPTIONS, create_app
from chm_dagster.partners.sandbox.world import World
from chm_dagster.serving import LOOPBACK, base_url, bind, serve

MAX_PIPELINES = 100_000


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal. Returns 2, after one line on stderr, if it cannot start."""
    options = _parser().parse_args(argv)
    environ = os.environ  # noqa: TID251 - an entry point, and the option names the variable
    token = environ.get(options.token_env, "").strip() if options.token_env else None
    if token == "":
        return _fail(f"{options.token_env} is not set; it must hold the token that clients send")
    if not 1 <= options.pipelines <= MAX_PIPELINES:
        return _fail(f"--pipelines must be from 1 to {MAX_PIPELINES}")
    if not 0 <= options.port <= 65535:
        return _fail("--port must be from 0 (any free port) to 65535")
    world = World(options.seed, options.pipelines)
    misbehaviours = Misbehaviours()
    try:
        for text in options.misbehave:
            misbehaviours.add(Misbehaviour.from_text(text, {p.external_id for p in world.pipelines()}))
    except InputError as error:
        return _fail(f"--misbehave: {error}")
    try:
        listener = bind(LOOPBACK, options.port)
    except ConfigError as error:
        return _fail(str(error))
    started = f"sandbox partner: {base_url(listener)} ({options.pipelines} pipelines, seed {options.seed})"
    print(started, flush=True)  # noqa: T201 - for the person at the terminal
    logging.basicConfig(level=logging.INFO if options.access_log else logging.ERROR, format="%(message)s")
    app = create_app(world, token, misbehaviours=misbehaviours)
    stack = environ.get("CHM_STACK_ID")
    serve(app, listener, stack=stack, access_log=options.access_log, **SERVER_OPTIONS)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chm_dagster.partners.sandbox",
        description="A fictional partner whose runs happen by themselves. Listens on 127.0.0.1 only.",
    )
    parser.add_argument("--port", type=int, default=8900, help="0: any free port (default: 8900)")
    parser.add_argument(
        "--token-env",
        metavar="NAME",
        help="environment variable that holds the required token (default: none required)",
    )
    parser.add_argument("--seed", type=int, default=7, help="selects the world (default: 7)")
    parser.add_argument("--pipelines", type=int, default=24, help="number of pipelines (default: 24)")
    parser.add_argument("--access-log", action="store_true", help="log every request")
    parser.add_argument(
        "--misbehave",
        action="append",
        default=[],
        metavar="KIND[@EXTERNAL_ID][*TIMES]",
        help=f"misbehave from the start; repeatable. Kinds: {', '.join(Kind)}",
    )
    return parser


def _fail(line: str) -> int:
    print(f"sandbox partner: {line}", file=sys.stderr)  # noqa: T201 - a command-line program's error message
    return 2


if __name__ == "__main__":
    sys.exit(main())
