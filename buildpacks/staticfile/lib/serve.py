"""Serves the site on $PORT. Files whose name begins with a dot, and the Staticfile, are not served.

A request for a directory gets its index.html; without one it gets 404, or a listing if the Staticfile has `directory:
visible`. A browser's copy is confirmed (304) only if it is exactly the current file: after a rollback the current file may
have an older date than the copy.
"""

import http.server
import os
import posixpath
import re
import signal
import sys
import urllib.parse
from pathlib import Path

APP = Path(__file__).resolve().parent.parent
ROOT = APP / Path(__file__).with_name("root").read_text().strip()


def directories_are_visible():
    staticfile = APP / "Staticfile"
    text = staticfile.read_text(errors="replace") if staticfile.is_file() else ""
    return re.search(r"^directory:\s*[\"']?visible\b", text, re.MULTILINE) is not None


def tag_of(info):
    return f'"{info.st_mtime_ns:x}-{info.st_size:x}"'


class Site(http.server.SimpleHTTPRequestHandler):
    server_version = "staticfile"
    protocol_version = "HTTP/1.1"
    visible = directories_are_visible()

    def __init__(self, *args):
        super().__init__(*args, directory=str(ROOT))

    def send_head(self):
        path = posixpath.normpath(urllib.parse.unquote(urllib.parse.urlsplit(self.path).path))
        parts = [part for part in path.split("/") if part]
        if any(part.startswith(".") for part in parts) or parts == ["Staticfile"]:
            self.send_error(404)
            return None
        info = self.status()
        if info is not None:
            kept = self.headers.get("If-None-Match")
            if kept is not None and tag_of(info) in [
                one.strip().removeprefix("W/") for one in kept.split(",")
            ]:
                self.send_response(304)
                self.send_header("ETag", tag_of(info))
                self.end_headers()
                return None
            if self.headers.get("If-Modified-Since") != self.date_time_string(info.st_mtime):
                del self.headers["If-Modified-Since"]  # http.server would confirm any copy that is not older
        return super().send_head()

    def status(self):
        """The stat result of the file that would be sent; None if there is none."""
        path = Path(self.translate_path(self.path))
        try:
            return (path / "index.html" if path.is_dir() else path).stat()
        except (OSError, ValueError):
            return None

    def send_header(self, keyword, value):
        super().send_header(keyword, value)
        info = self.status() if keyword == "Last-Modified" else None
        if info is not None:
            super().send_header("ETag", tag_of(info))

    def list_directory(self, path):
        if self.visible:
            return super().list_directory(path)
        self.send_error(404)
        return None


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Site)
    print(f"serving {ROOT.name} on port {server.server_port}", flush=True)
    server.serve_forever()


main()
