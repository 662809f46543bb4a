"""Reports of runs that go on, served on this machine alone. Imports no torch."""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from muse_core.errors import MuseError, RecipeError
from muse_core.report.charts import all_charts
from muse_core.report.drawing import script
from muse_core.report.page import page
from muse_core.report.reading import read_runs

LOOPBACK = "127.0.0.1"
FOLLOWED = ("metrics.jsonl", "events.jsonl", "summary.json", "report.json")


class Reports:
    """The page of some runs, made anew when their files have changed."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = tuple(paths)
        self._lock = threading.Lock()
        self._made: tuple[str, bytes] | None = None

    def state(self) -> str:
        """Sizes and times of the files that are followed: another text for another content."""
        told = []
        for path in self.paths:
            for name in FOLLOWED:
                try:
                    about = (path / name).stat()
                except FileNotFoundError:
                    told.append("-")
                else:
                    told.append(f"{about.st_size}.{about.st_mtime_ns}")
        return " ".join(told)

    def page(self) -> bytes:
        """Raises as ``read_runs``."""
        with self._lock:
            state = self.state()
            if self._made is None or self._made[0] != state:
                runs = read_runs(self.paths)
                self._made = state, page(runs, all_charts(runs), script(), live=True).encode()
            return self._made[1]


def server_of(reports: Reports, port: int) -> ThreadingHTTPServer:
    """A server on loopback that answers GET and HEAD of ``/`` and ``/state`` and nothing else; port 0 takes a free one.

    Requests under another host name are refused, so that no page of the web can read it through a name of its own.
    Raises RecipeError when the port cannot be had.
    """

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "muse", ""

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            own = self.server.server_address[1]
            if self.headers.get("Host") not in (f"{LOOPBACK}:{own}", f"localhost:{own}"):
                self._send(HTTPStatus.FORBIDDEN, "text/plain", b"unknown host\n", body)
                return
            try:
                if self.path == "/":
                    self._send(HTTPStatus.OK, "text/html", reports.page(), body)
                elif self.path == "/state":
                    self._send(HTTPStatus.OK, "text/plain", reports.state().encode(), body)
                else:
                    self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is only /\n", body)
            except (MuseError, OSError) as error:
                self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"{error}\n".encode(), body)

        def _send(self, status: HTTPStatus, kind: str, content: bytes, body: bool) -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Requests are not printed."""

    try:
        return _Server((LOOPBACK, port), Handler)
    except OverflowError:
        raise RecipeError(f"--port {port}: must be 0 to 65535") from None
    except OSError as error:
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
        raise RecipeError(f"--port {port}: {why} - choose another, or --port 0 for a free one") from None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that goes away in the middle of an answer is no fault; anything else is reported as usual."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)
