"""A local HTTP server of one file that can break off, ignore ranges or change the file."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

CONTENT = np.random.default_rng(0).bytes(300_000)


@dataclass
class Server:
    """The server's behaviour, and the requests it received."""

    url: str = ""
    content: bytes = CONTENT
    version: str | None = '"one"'
    ranges: bool = True
    honours_if_range: bool = True
    says_length: bool = True
    cut: list[int] = field(default_factory=list)
    """numbers of body bytes after which the next answers break off"""
    status: int | None = None
    asked: list[str | None] = field(default_factory=list)
    """the Range header of each request"""


@contextmanager
def serving() -> Iterator[Server]:
    """Run the server."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            span = self.headers.get("Range")
            state.asked.append(span)
            if state.status is not None:
                self.send_error(state.status)
                return
            start, total = 0, len(state.content)
            same = self.headers.get("If-Range") == state.version or not state.honours_if_range
            if span and state.ranges and same:
                start = int(span.removeprefix("bytes=").rstrip("-"))
            if start >= total:
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            if state.says_length:
                self.send_header("Content-Length", str(total - start))
            if state.version:
                self.send_header("ETag", state.version)
            self.end_headers()
            body = state.content[start:]
            self.wfile.write(body[: state.cut.pop(0)] if state.cut else body)

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{web.server_port}/set.hdf5"
    yield state
    web.shutdown()
    web.server_close()
