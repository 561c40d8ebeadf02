"""Serves an ASGI app on a socket, until a signal arrives or in a thread of a test, within limits, and says whose
process is at the other end. Ports: free, taken, by whom.
"""

import asyncio
import contextlib
import errno
import hashlib
import http.client
import ipaddress
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from chm_dagster.errors import ConfigError

LOOPBACK = "127.0.0.1"
GRACE_SECONDS = 5
"""How long open requests may take after the signal."""
MAX_CONNECTIONS = 512
"""Half of the files that a process may open, usually 1,024, are left for the database and the app."""
_OTHER_USER = "chm.other_user"
OTHER_USER = "sent by another user of this machine; set CHM_API_TOKEN to let others in with the token"
INSTANCE_HEADER = "x-chm-instance"
"""Every response carries it where an instance was named, so that `chm up` recognizes its own servers."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 uses any free port. Raises ConfigError if the port is not available."""
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


def instance_of(stack: str) -> str:
    """The value of `INSTANCE_HEADER` for the servers of a stack: recognizable without revealing the stack's id."""
    return hashlib.sha256(stack.encode()).hexdigest()[:32]


def serve(app: ASGIApp, listener: socket.socket, *, stack: str | None = None, **options: Any) -> None:
    """Serve until SIGTERM or SIGINT, then exit the process with 0. Call it from the main thread.

    `stack` is the id of the `chm up` that started this process. `options` are uvicorn's.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        # The server raises the signal again once it has shut down; then this handler ends the process.
        signal.signal(number, _leave)
    headers = [] if stack is None else [(INSTANCE_HEADER, instance_of(stack))]
    _server(app, headers=headers, **options).run(sockets=[listener])


@contextlib.contextmanager
def serve_in_thread(app: ASGIApp, **options: Any) -> Iterator[str]:
    """Serve `app` on a free port of 127.0.0.1 in a thread, and yield its base URL, without a slash at the end."""
    listener = bind(LOOPBACK, 0)
    server = _server(app, **options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
            time.sleep(0.002)
        yield base_url(listener)
    finally:
        server.should_exit = True
        thread.join(timeout=GRACE_SECONDS + 5)
        listener.close()


class BoundedProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type] # one of uvicorn's two
    """HTTP whose connections are bounded in number, and in the time that they may spend without a request.

    A connection waits until the head of a request is complete, and again once the response is sent. One that waits too
    long is closed; where there are too many connections, so is the one that has waited for the longest time. So is one
    whose caller does not read its response. Callers that only hold connections open cannot take them away from others.
    """

    head_seconds = 10.0
    idle_seconds = 30.0
    stalled_seconds = 30.0
    most = MAX_CONNECTIONS

    def connection_made(self, transport: Any) -> None:
        """Start to wait for the first request."""
        super().connection_made(transport)
        ends = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self.app_state: dict[str, Any] = {**self.app_state, _OTHER_USER: _is_other_user(*ends)}
        self._timer: asyncio.TimerHandle | None = None
        self._wait(self.head_seconds)
        if len(self.connections) > self.most:
            next(iter(self._waiting()))._drop()

    def data_received(self, data: bytes) -> None:
        """Stop waiting once the head of a request is complete."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._end_wait()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if self.cycle is None or self.cycle.response_complete:
            self._wait(self.idle_seconds)

    def pause_writing(self) -> None:
        """Wait for the caller to read on."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop waiting: the caller reads."""
        super().resume_writing()
        self._stalled.cancel()

    def handle_websocket_upgrade(self, *event: Any) -> None:
        """Hand over a connection that is HTTP no longer."""
        self._end_wait()
        super().handle_websocket_upgrade(*event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._end_wait()
        super().connection_lost(exc)

    def _waiting(self) -> "dict[BoundedProtocol, None]":
        """The connections of this server that wait, those that wait longest first."""
        found: dict[BoundedProtocol, None] = self.server_state.__dict__.setdefault("waiting_connections", {})
        return found

    def _wait(self, seconds: float) -> None:
        self._end_wait()
        self._waiting()[self] = None
        self._timer = self.loop.call_later(seconds, self._drop)

    def _drop(self) -> None:
        self._end_wait()
        # A response that nobody reads would keep the connection open.
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _end_wait(self) -> None:
        self._waiting().pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def is_by_other_user(scope: Scope) -> bool:
    """Whether the request comes from a process of another user of this machine.

    Root is none, nor is who started this process by sudo. False where the system has no `/proc/net/tcp` to read it
    from, and for a server that listens beyond loopback, which needs a token.
    """
    return bool(scope.get("state", {}).get(_OTHER_USER, False))


def _is_other_user(peer: tuple[Any, ...], own: tuple[Any, ...]) -> bool:
    table = Path("/proc/net/tcp6" if ":" in peer[0] else "/proc/net/tcp")
    # Whoever reaches a loopback address is on this machine, whatever address of it the connection comes from.
    if not table.exists() or not ipaddress.ip_address(own[0]).is_loopback:
        return False
    allowed, ends = _own_users(), [_in_table(peer), _in_table(own)]
    for line in table.read_text().splitlines():
        fields = line.split()
        if fields[1:3] == ends:
            # A socket that its process has closed has no inode any more; many kernels show it as root's.
            return fields[9] == "0" or fields[7] not in allowed
    return True


def _own_users(login: Path = Path("/proc/self/loginuid")) -> set[str]:
    """The ids of root, of this process's user, and, where that is root, of who logged in and became root by sudo."""
    own = {"0", str(os.geteuid())}
    return own | {login.read_text()} if os.geteuid() == 0 and login.exists() else own


def _in_table(end: tuple[Any, ...]) -> str:
    """An address as the kernel writes it: words of 32 bits, in the machine's own order of bytes."""
    packed = socket.inet_pton(socket.AF_INET6 if ":" in end[0] else socket.AF_INET, end[0])
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{end[1]:04X}"


def _server(app: ASGIApp, **options: Any) -> uvicorn.Server:
    defaults: dict[str, Any] = {
        "http": BoundedProtocol,
        "log_config": None,
        # The apps log requests themselves.
        "access_log": False,
        "server_header": False,
        # The caller's address is only logged; a header that anybody can send must not decide it.
        "proxy_headers": False,
        "timeout_graceful_shutdown": GRACE_SECONDS,
        "timeout_keep_alive": 30,
    }
    return uvicorn.Server(uvicorn.Config(app, **defaults | options))


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


HOST = "127.0.0.1"


def port_free(port: int, host: str = HOST) -> bool:
    """True if a server could listen on this port now. Raises PermissionError below 1024."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Without this, connections that a stopped server left in TIME_WAIT would count as a server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return not connects(port, reached(host))()


def require_free_ports(ports: Mapping[str, tuple[str, int]]) -> None:
    """Raise ConfigError unless all (host, port) pairs are free. It lists each setting to change, and each holder.

    No two settings may name the same port: the first server would be mistaken for both.
    """
    problems, users = [], dict[int, str]()
    for setting, (host, port) in ports.items():
        if port in users:
            problems.append(f"{users[port]} and {setting} are both {port}; set one of them to another port")
        elif problem := _problem(setting, host, port):
            problems.append(problem)
        users.setdefault(port, setting)
    if problems:
        raise ConfigError("\n".join(problems))


def connects(port: int, host: str = HOST) -> Callable[[], bool]:
    """A readiness test for `Child`: something accepts connections on this port."""

    def connected() -> bool:
        try:
            with socket.create_connection((host, port), timeout=1):
                return True
        except OSError:
            return False

    return connected


def answers_as(instance: str, port: int, path: str, host: str = HOST) -> Callable[[], bool]:
    """A readiness test for `Child`: a server of this instance responds to HTTP requests here.

    Raises ConfigError if another server does.
    """

    def answers() -> bool:
        connection = http.client.HTTPConnection(host, port, timeout=5)
        try:
            connection.request("GET", path)
            found = connection.getresponse().getheader(INSTANCE_HEADER)
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        if found != instance:
            holder = _holder(port)
            raise ConfigError(f"port {port} is answered by another program{f', {holder}' if holder else ''}")
        return True

    return answers


def reached(host: str) -> str:
    """The address under which this machine reaches a server that listens on `host`."""
    return {"0.0.0.0": HOST, "::": "::1"}.get(host, host)  # noqa: S104 - read here, not listened on


def _problem(setting: str, host: str, port: int) -> str | None:
    try:
        if port_free(port, host):
            return None
    except OSError as error:
        return f"port {port} cannot be used ({error.strerror}); set {setting} to another one"
    holder = _holder(port)
    return f"port {port} is in use{f' by {holder}' if holder else ''}; set {setting} to a free one"


def _holder(port: int) -> str | None:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            listening = connection.status == psutil.CONN_LISTEN and list(connection.laddr)[1:2] == [port]
            if listening and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return None
