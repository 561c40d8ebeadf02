"""Serving the app on a socket: until a signal comes, or from a thread of a test."""

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

from chm_dagster.errors import ConfigError

GRACE_SECONDS = 5
"""How long requests that have begun may take to end after the signal."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any free one. Raises ConfigError if it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}: {error.strerror}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def base_url(listener: socket.socket) -> str:
    """The address under which a bound socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then exit the process with 0. Call it from the main thread."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # The server raises the signal again once it has shut down; then this handler ends the process.
        signal.signal(number, _leave)
    _server(app).run(sockets=[listener])


@contextlib.contextmanager
def serve_in_thread(app: ASGIApp) -> Iterator[str]:
    """Serve `app` on a free port of 127.0.0.1 in a thread, and yield its base URL, without a slash at the end."""
    listener = bind("127.0.0.1", 0)
    server = _server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the API did not start")
            time.sleep(0.002)
        yield base_url(listener)
    finally:
        server.should_exit = True
        thread.join(timeout=GRACE_SECONDS + 5)
        listener.close()


def _server(app: ASGIApp) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        log_config=None,
        # The app logs requests itself.
        access_log=False,
        server_header=False,
        # Who asked is only logged; a header that anybody can send must not decide it.
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=30,
    )
    return uvicorn.Server(config)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
