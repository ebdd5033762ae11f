"""Serves the site on $PORT. Names that begin with a dot, and the Staticfile, are not part of it."""

import http.server
import os
import posixpath
import signal
import sys
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / Path(__file__).with_name("root").read_text().strip()


class Site(http.server.SimpleHTTPRequestHandler):
    server_version = "staticfile"
    protocol_version = "HTTP/1.1"

    def __init__(self, *args):
        super().__init__(*args, directory=str(ROOT))

    def send_head(self):
        path = posixpath.normpath(urllib.parse.unquote(urllib.parse.urlsplit(self.path).path))
        parts = [part for part in path.split("/") if part]
        if any(part.startswith(".") for part in parts) or parts == ["Staticfile"]:
            self.send_error(404)
            return None
        return super().send_head()


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Site)
    print(f"serving {ROOT.name} on port {server.server_port}", flush=True)
    server.serve_forever()


main()
