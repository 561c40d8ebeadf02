"""A reverse proxy that records which requests a sync really makes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

_OF_THE_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "date", "server"}


class Proxy:
    """`base_url` responds like the server behind it; `requests` lists the requests since `reset` as `METHOD path`.

    Paths that contain `broken` get a 500.
    """

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self.requests: list[str] = []
        self.broken: str | None = None

    @property
    def lists_of_runs(self) -> list[str]:
        """The requests to Airflow for a page of runs."""
        return [request for request in self.requests if "/dagRuns?" in request]

    @property
    def requests_for_runs(self) -> list[str]:
        """All requests to Airflow but those for pages of its DAGs, which only some syncs send."""
        return [request for request in self.requests if "/dags?" not in request]

    def reset(self) -> None:
        self.requests.clear()


@contextmanager
def counting_proxy(target: str) -> Iterator[Proxy]:
    """Serve a proxy in threads of this process."""
    with httpx.Client(base_url=target, trust_env=False, timeout=60) as client:

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: a second one would wait for the client

            def _forward(self) -> None:
                proxy.requests.append(f"{self.command} {self.path}")
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {k: v for k, v in self.headers.items() if k.lower() not in _OF_THE_HOP}
                if proxy.broken is not None and proxy.broken in self.path:
                    self.send_response_only(500)
                    self.send_header("content-length", "0")
                    self.end_headers()
                    return
                with client.stream(self.command, self.path, content=body, headers=headers) as answer:
                    data = b"".join(answer.iter_raw())
                self.send_response_only(answer.status_code)
                for name, value in answer.headers.items():
                    if name not in _OF_THE_HOP - {"date"}:
                        self.send_header(name, value)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_DELETE = _forward

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            try:
                yield proxy
            finally:
                server.shutdown()
