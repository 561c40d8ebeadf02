"""Serving the sandbox on 127.0.0.1: until a signal comes, or from a thread of a test or a benchmark."""

import contextlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

HOST = "127.0.0.1"


def bind(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1; port 0 takes any free one. Raises OSError if the port is in use."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(1024)
    except OSError:
        listener.close()
        raise
    return listener


def base_url(listener: socket.socket) -> str:
    """The address under which a bound socket is reached."""
    return f"http://{HOST}:{listener.getsockname()[1]}"


def serve(app: ASGIApp, listener: socket.socket, *, access_log: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, then exit the process with 0. Call it from the main thread."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # The server raises the signal again once it has shut down; then this handler ends the process.
        signal.signal(number, _leave)
    _server(app, access_log=access_log).run(sockets=[listener])


@contextlib.contextmanager
def serve_in_thread(app: ASGIApp) -> Iterator[str]:
    """Serve `app` on a free port of 127.0.0.1 in a thread, and yield its base URL, without a slash at the end."""
    listener = bind(0)
    server = _server(app, access_log=False)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the sandbox did not start")
            time.sleep(0.002)
        yield base_url(listener)
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()


def _server(app: ASGIApp, *, access_log: bool) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_level="info" if access_log else "error",
        access_log=access_log,
        # The app sends its own Date.
        date_header=False,
        server_header=False,
        # A request that is slow on purpose must not hold up the end. Typed int, but it only goes to asyncio.wait_for;
        # 0 would cut quick requests too, 1 would end later than people expect of Ctrl-C.
        timeout_graceful_shutdown=0.3,  # type: ignore[arg-type]
    )
    return uvicorn.Server(config)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
