import functools
import gzip
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mmm4rec.data import download as module
from mmm4rec.data.download import download, verify_raw
from mmm4rec.data.registry import Source, raw_path
from mmm4rec.errors import UserError

CONTENT = bytes(range(256)) * 40  # 10,240 bytes
ARGS = ("Toys", 2018, "ratings")


class Handler(BaseHTTPRequestHandler):
    """Serves ``server.files``; breaks a connection after ``server.breaks.pop()`` bytes while there are any."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.seen.append((self.path, self.headers.get("Range")))
        body = server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        start, etag = 0, server.etag
        if self.headers.get("Range") and self.headers.get("If-Range") == etag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.send_header("Content-Type", server.content_type)
        self.send_header("ETag", etag)
        self.end_headers()
        sent = body[start:]
        if server.breaks:
            sent, self.close_connection = sent[: server.breaks.pop(0)], True
        self.wfile.write(sent)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.seen, server.breaks, server.etag = {"/toys.csv": CONTENT}, [], [], '"v1"'
    server.content_type = "application/octet-stream"
    server.base = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(module, "BACKOFF", 0)
    server.use = functools.partial(_use, monkeypatch)
    server.use(f"{server.base}/toys.csv")
    yield server
    server.shutdown()
    server.server_close()


def _use(monkeypatch, *urls, sha256=None):
    monkeypatch.setattr(module, "source", lambda *_: Source(urls, "none stated", None, sha256))


def test_fetches_once_and_records(server, tmp_path):
    path = download(*ARGS, tmp_path, offline=False)
    assert path == tmp_path / "Toys.csv"
    assert path.read_bytes() == CONTENT
    record = json.loads((tmp_path / "Toys.csv.json").read_text())
    assert record["url"] == f"{server.base}/toys.csv"
    assert record["bytes"] == len(CONTENT)
    assert record["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    download(*ARGS, tmp_path, offline=False)
    assert len(server.seen) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["Toys.csv", "Toys.csv.json"]


def test_broken_connections_are_resumed(server, tmp_path):
    server.breaks = [4000, 0, 3000]
    assert download(*ARGS, tmp_path, offline=False).read_bytes() == CONTENT
    assert [asked for _, asked in server.seen] == [None, "bytes=4000-", "bytes=4000-", "bytes=7000-"]


def test_a_killed_download_is_resumed(server, tmp_path):
    (tmp_path / "Toys.csv.part").write_bytes(CONTENT[:5000])
    (tmp_path / "Toys.csv.part.validator").write_text('"v1"')
    assert download(*ARGS, tmp_path, offline=False).read_bytes() == CONTENT
    assert server.seen == [("/toys.csv", "bytes=5000-")]


def test_a_part_of_another_version_starts_again(server, tmp_path):
    (tmp_path / "Toys.csv.part").write_bytes(b"x" * 5000)
    (tmp_path / "Toys.csv.part.validator").write_text('"v0"')
    assert download(*ARGS, tmp_path, offline=False).read_bytes() == CONTENT


def test_a_part_of_unknown_origin_starts_again(server, tmp_path):
    (tmp_path / "Toys.csv.part").write_bytes(b"x" * 5000)
    assert download(*ARGS, tmp_path, offline=False).read_bytes() == CONTENT
    assert server.seen == [("/toys.csv", None)]


@pytest.mark.parametrize("extra", [0, 10])
def test_a_part_that_is_whole_or_too_long(server, tmp_path, extra):
    (tmp_path / "Toys.csv.part").write_bytes(CONTENT + b"x" * extra)
    (tmp_path / "Toys.csv.part.validator").write_text('"v1"')
    assert download(*ARGS, tmp_path, offline=False).read_bytes() == CONTENT


def test_mirrors_in_order(server, tmp_path):
    dead = "http://127.0.0.1:9/toys.csv"
    server.use(dead, f"{server.base}/gone.csv", f"{server.base}/toys.csv")
    assert download(*ARGS, tmp_path, offline=False).read_bytes() == CONTENT
    assert [path for path, _ in server.seen] == ["/gone.csv", "/toys.csv"]


def test_all_mirrors_fail(server, tmp_path):
    server.use("http://127.0.0.1:9/toys.csv", f"{server.base}/gone.csv")
    with pytest.raises(UserError, match=r"HTTP 404.*fetch one of .*gone\.csv by hand and save it as .*Toys\.csv"):
        download(*ARGS, tmp_path, offline=False)
    assert not (tmp_path / "Toys.csv").exists()


def test_a_connection_that_never_delivers(server, tmp_path):
    server.breaks = [0] * 10
    with pytest.raises(UserError, match="connection broken"):
        download(*ARGS, tmp_path, offline=False)
    assert len(server.seen) == module.STALLS


def test_a_web_page_is_no_file(server, tmp_path):
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(UserError, match="web page"):
        download(*ARGS, tmp_path, offline=False)


def test_offline(server, tmp_path):
    with pytest.raises(UserError, match=r"offline.*toys\.csv by hand and save it as .*Toys\.csv"):
        download(*ARGS, tmp_path, offline=True)
    (tmp_path / "Toys.csv").write_bytes(b"brought by hand")
    assert download(*ARGS, tmp_path, offline=True).read_bytes() == b"brought by hand"
    assert json.loads((tmp_path / "Toys.csv.json").read_text())["url"] is None
    assert server.seen == []


def test_a_changed_file_is_noticed(server, tmp_path):
    path = download(*ARGS, tmp_path, offline=False)
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(UserError, match=r"sha256 is .*Toys\.csv\.json says"):
        download(*ARGS, tmp_path, offline=False)


def test_a_file_brought_by_hand_is_recorded_and_verified(tmp_path):
    path = raw_path(tmp_path, *ARGS)
    with pytest.raises(UserError, match="no such file; fetch it with `mmm4rec download`"):
        verify_raw(path, *ARGS)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(CONTENT)
    verify_raw(path, *ARGS)
    path.write_bytes(CONTENT[:-1])  # cut
    with pytest.raises(UserError, match=r"bytes is .*\.json says"):
        verify_raw(path, *ARGS)


def test_the_registry_knows_the_sum(server, tmp_path):
    server.use(f"{server.base}/toys.csv", sha256="0" * 64)
    with pytest.raises(UserError, match=r"registry\.yaml says 000"):
        download(*ARGS, tmp_path, offline=False)


def test_a_mirror_without_compression(server, tmp_path):
    path = download("Toys", 2023, "ratings", tmp_path, offline=False)
    assert path == tmp_path / "2023" / "Toys.csv.gz"
    assert gzip.decompress(path.read_bytes()) == CONTENT
    assert sorted(file.name for file in path.parent.iterdir()) == ["Toys.csv.gz", "Toys.csv.gz.json"]
