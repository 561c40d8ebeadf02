"""Whether a port on this machine is free, and who has it if not."""

import contextlib
import errno
import socket
from collections.abc import Callable, Mapping

import psutil

from chm_dagster.errors import ConfigError

HOST = "127.0.0.1"


def port_free(port: int) -> bool:
    """True if a server could listen on this port of the loopback address now. Raises PermissionError below 1024."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Without this, connections that a stopped server left in TIME_WAIT would count as a server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return not port_answers(port)()


def require_free_port(port: int, setting_name: str) -> None:
    """Raise ConfigError if the port is taken; it names the setting to change and, where permitted, the holder."""
    try:
        if port_free(port):
            return
    except OSError as error:
        raise ConfigError(f"port {port} cannot be used ({error.strerror}); set {setting_name} to another one") from None
    holder = _holder(port)
    raise ConfigError(f"port {port} is in use{f' by {holder}' if holder else ''}; set {setting_name} to a free one")


def require_free_ports(ports: Mapping[str, int]) -> None:
    """The same for the ports of several settings, none of which may be another's: both would look served by either."""
    holders: dict[int, str] = {}
    for setting_name, port in ports.items():
        if port in holders:
            raise ConfigError(f"{holders[port]} and {setting_name} are both {port}; set one of them to another port")
        holders[port] = setting_name
    for setting_name, port in ports.items():
        require_free_port(port, setting_name)


def port_answers(port: int, host: str = HOST) -> Callable[[], bool]:
    """A readiness test for `Child`: does something take connections on this port?"""

    def answers() -> bool:
        try:
            with socket.create_connection((host, port), timeout=1):
                return True
        except OSError:
            return False

    return answers


def _holder(port: int) -> str | None:
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            listening = connection.status == psutil.CONN_LISTEN and list(connection.laddr)[1:2] == [port]
            if listening and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return None
