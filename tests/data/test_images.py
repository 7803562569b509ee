"""Fetching pictures from a local server."""

import collections
import http.server
import io
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import urllib3
from PIL import Image

from mmm4rec.data import images
from mmm4rec.data.images import fetch_images, read_images, to_jpeg
from mmm4rec.errors import UserError

SETTINGS = {"concurrency": 2, "timeout": 0.5, "tries": 2, "max_side": 64, "offline": False}


def encoded(image, form="JPEG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def jpeg(colour="red", size=(32, 16)):
    return encoded(Image.new("RGB", size, colour))


def opened(data):
    return Image.open(io.BytesIO(data))


class Server(http.server.ThreadingHTTPServer):
    """Counts requests by path; ``answers`` maps a path to bytes, a status, or a list of them, one a request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests = {}, collections.Counter()
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        answer = server.answers.get(self.path, 404)
        if isinstance(answer, list):
            answer = answer[min(server.requests[self.path], len(answer) - 1)]
        server.requests[self.path] += 1
        if answer == "wait":
            server.released.wait(10)
            answer = 500
        body, status = (answer, 200) if isinstance(answer, bytes) else (b"", answer)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def write_items(path, entries):
    """items.parquet; ``entries`` maps raw ids, in the order of item_id, to image entries."""
    table = {"item_id": pa.array(range(1, len(entries) + 1), pa.int32()), "item": list(entries)}
    pq.write_table(pa.table({**table, "image": pa.array(entries.values(), pa.string())}), path)
    return path


def manifest(folder):
    return {row["item"]: row for row in pq.read_table(folder / "manifest.parquet").to_pylist()}


def statuses(folder):
    return {item: row["status"] for item, row in manifest(folder).items()}


def test_every_outcome(server, tmp_path, caplog):
    caplog.set_level("INFO")
    server.answers = {
        "/ok": jpeg("red"),
        "/later": [500, jpeg("green")],
        "/page": b"<html>not here</html>",
        "/cut": jpeg(size=(64, 64))[:-300],
        "/slow": "wait",
        "/broken": 503,
    }
    (tmp_path / "own.png").write_bytes(encoded(Image.new("RGB", (10, 10), "blue"), "PNG"))
    paths = ["ok", "later", "page", "cut", "slow", "broken", "gone"]
    entries = {path: f"{server.url}/{path}" for path in paths}
    entries |= {"file": (tmp_path / "own.png").as_uri(), "path": str(tmp_path / "own.png"), "none": None, "empty": " "}
    entries |= {"lost": "no/such.jpg", "refused": "http://127.0.0.1:9/x.jpg", "bad": "http://[x/y.jpg"}
    items = write_items(tmp_path / "items.parquet", entries)
    fetch_images(items, tmp_path / "out", **SETTINGS)

    assert statuses(tmp_path / "out") == {
        "ok": "ok",
        "later": "ok",
        "page": "not an image",
        "cut": "not an image",
        "slow": "timeout",
        "broken": "http 503",
        "gone": "http 404",
        "file": "ok",
        "path": "ok",
        "lost": "no such file",
        "refused": "unreachable",
        "bad": "bad address",
    }
    rows = manifest(tmp_path / "out")
    assert server.requests == {"/ok": 1, "/later": 2, "/page": 1, "/cut": 1, "/slow": 2, "/broken": 2, "/gone": 1}
    assert {item: rows[item]["tries"] for item in ("ok", "later", "slow", "broken", "gone")} == {
        "ok": 1, "later": 2, "slow": 2, "broken": 2, "gone": 1,
    }  # fmt: skip
    pictures = dict(read_images(tmp_path / "out"))
    assert list(pictures) == [1, 2, 8, 9]
    assert pictures[1] == jpeg("red")
    assert [opened(p).getpixel((5, 5)) for p in list(pictures.values())[1:]] == [(0, 128, 1), (0, 0, 254), (0, 0, 254)]
    assert rows["ok"]["bytes"] == len(jpeg("red"))
    assert rows["gone"]["bytes"] is rows["gone"]["shard"] is rows["gone"]["row"] is None
    shard = pq.read_table(tmp_path / "out" / f"shard_{rows['later']['shard']:05d}.parquet")
    assert shard["item_id"][rows["later"]["row"]].as_py() == 2
    assert "4 of 14 items have a picture (28.57 %); 2 have no address; ok: 4," in caplog.records[-1].getMessage()


def test_a_second_run_retries_what_may_go_better(server, tmp_path):
    server.answers = {"/a": jpeg(), "/b": b"junk", "/c": 503}
    items = write_items(tmp_path / "items.parquet", {name: f"{server.url}/{name}" for name in "abcd"})
    fetch_images(items, tmp_path / "out", **SETTINGS)
    assert statuses(tmp_path / "out") == {"a": "ok", "b": "not an image", "c": "http 503", "d": "http 404"}
    server.answers["/c"] = server.answers["/d"] = jpeg("blue")
    server.requests.clear()
    fetch_images(items, tmp_path / "out", **SETTINGS)
    assert server.requests == {"/c": 1}
    assert statuses(tmp_path / "out") == {"a": "ok", "b": "not an image", "c": "ok", "d": "http 404"}
    assert [item_id for item_id, _ in read_images(tmp_path / "out")] == [1, 3]


def test_a_killed_run_goes_on_from_its_shards(server, tmp_path):
    names = [f"{k:02d}" for k in range(12)]
    server.answers = {f"/{name}": jpeg() for name in names}
    server.answers |= {"/01": 404, "/09": "wait"}
    items = write_items(tmp_path / "items.parquet", {name: f"{server.url}/{name}" for name in names})
    out = tmp_path / "out"
    arguments = {**SETTINGS, "concurrency": 1, "timeout": 30.0}
    code = f"""
from pathlib import Path
from mmm4rec.data import images
images.SHARD = 4
images.fetch_images(Path({str(items)!r}), Path({str(out)!r}), **{arguments!r})
"""
    with subprocess.Popen([sys.executable, "-c", code]) as run:
        deadline = time.monotonic() + 60
        while not server.requests["/09"] and time.monotonic() < deadline:
            time.sleep(0.02)
        run.kill()
    assert sorted(path.name for path in out.glob("*.parquet")) == ["shard_00000.parquet", "shard_00001.parquet"]
    with pytest.raises(UserError, match=r"no manifest\.parquet"):
        next(read_images(out))
    finished = {name for path in out.glob("shard_*") for name in pq.read_table(path)["item"].to_pylist()}
    assert len(finished) == 8

    server.answers["/09"] = jpeg()
    server.requests.clear()
    fetch_images(items, out, **SETTINGS)
    assert server.requests == {f"/{name}": 1 for name in names if name not in finished}
    assert [item_id for item_id, _ in read_images(out)] == [1, *range(3, 13)]
    assert statuses(out)["01"] == "http 404"


def test_pictures_stay_when_items_are_numbered_anew(server, tmp_path):
    server.answers = {
        f"/{name}": jpeg(colour) for name, colour in zip("abcd", ("red", "green", "blue", "white"), strict=True)
    }
    fetch_images(
        write_items(tmp_path / "1.parquet", {n: f"{server.url}/{n}" for n in "abc"}), tmp_path / "out", **SETTINGS
    )
    server.requests.clear()
    fetch_images(
        write_items(tmp_path / "2.parquet", {n: f"{server.url}/{n}" for n in "bcd"}), tmp_path / "out", **SETTINGS
    )
    assert server.requests == {"/d": 1}
    assert dict(read_images(tmp_path / "out")) == {1: jpeg("green"), 2: jpeg("blue"), 3: jpeg("white")}
    assert list(manifest(tmp_path / "out")) == ["b", "c", "d"]


def test_another_size_fetches_again(server, tmp_path):
    server.answers = {"/a": jpeg(size=(400, 100))}
    items = write_items(tmp_path / "items.parquet", {"a": f"{server.url}/a"})
    fetch_images(items, tmp_path / "out", **SETTINGS)
    assert [opened(data).size for _, data in read_images(tmp_path / "out")] == [(64, 16)]
    fetch_images(items, tmp_path / "out", **{**SETTINGS, "max_side": 128})
    assert [opened(data).size for _, data in read_images(tmp_path / "out")] == [(128, 32)]
    assert server.requests == {"/a": 2}


def test_offline_reads_files_and_requests_nothing(server, tmp_path):
    server.answers = {"/a": jpeg()}
    (tmp_path / "b.jpg").write_bytes(jpeg("blue"))
    items = write_items(tmp_path / "items.parquet", {"a": f"{server.url}/a", "b": str(tmp_path / "b.jpg")})
    fetch_images(items, tmp_path / "out", **{**SETTINGS, "offline": True})
    assert statuses(tmp_path / "out") == {"a": "offline", "b": "ok"}
    assert not server.requests
    fetch_images(items, tmp_path / "out", **SETTINGS)
    assert statuses(tmp_path / "out") == {"a": "ok", "b": "ok"}


def test_a_file_on_disk_is_read_again(tmp_path):
    picture = tmp_path / "b.jpg"
    items = write_items(tmp_path / "items.parquet", {"b": str(picture)})
    for colour in ("blue", "red"):
        picture.write_bytes(jpeg(colour))
        fetch_images(items, tmp_path / "out", **SETTINGS)
        assert [data for _, data in read_images(tmp_path / "out")] == [picture.read_bytes()]


def test_files_that_are_not_there_are_a_warning_that_says_where_paths_start(tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.jpg").write_bytes(jpeg())
    entries = {"a": "http://127.0.0.1:9/a", "b": "b.jpg", "c": "pics/c.jpg", "d": "www.shop.example/d.jpg"}
    items = write_items(tmp_path / "items.parquet", entries)
    fetch_images(items, tmp_path / "out", **{**SETTINGS, "offline": True})
    assert caplog.messages == [
        f"{tmp_path / 'out'}: pictures whose file is not there: 2, the first pics/c.jpg; relative paths start in the "
        f"folder where the command runs ({tmp_path}), URLs with https://"
    ]
    caplog.clear()
    fetch_images(write_items(items, {"b": "b.jpg", "none": None}), tmp_path / "out", **SETTINGS)
    assert not caplog.records


def test_a_network_that_is_down_is_no_result(tmp_path):
    items = write_items(tmp_path / "items.parquet", {"a": "http://127.0.0.1:9/a", "b": "http://127.0.0.1:9/b"})
    with pytest.raises(UserError, match="no answer to any of 2 requests; is there a network"):
        fetch_images(items, tmp_path / "out", **SETTINGS)
    assert not (tmp_path / "out" / "manifest.parquet").exists()
    fetch_images(items, tmp_path / "out", **{**SETTINGS, "offline": True})
    assert statuses(tmp_path / "out") == {"a": "offline", "b": "offline"}


def test_no_item_has_an_image(tmp_path):
    fetch_images(write_items(tmp_path / "items.parquet", {"a": None}), tmp_path / "out", **SETTINGS)
    table = pq.read_table(tmp_path / "out" / "manifest.parquet")
    assert table.num_rows == 0
    assert table.column_names == ["item_id", "item", "url", "status", "tries", "bytes", "sha256", "shard", "row"]
    assert list(read_images(tmp_path / "out")) == []


def test_more_than_a_shard(server, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "SHARD", 3)
    server.answers = {f"/{k}": jpeg() for k in range(8)}
    items = write_items(tmp_path / "items.parquet", {str(k): f"{server.url}/{k}" for k in range(8)})
    fetch_images(items, tmp_path / "out", **SETTINGS)
    assert [pq.read_metadata(path).num_rows for path in images.list_shards(tmp_path / "out")] == [3, 3, 2]
    assert sorted(item_id for item_id, _ in read_images(tmp_path / "out")) == list(range(1, 9))


def test_no_items_file(tmp_path):
    with pytest.raises(UserError, match=r"items\.parquet: not the items of a prepared domain"):
        fetch_images(tmp_path / "items.parquet", tmp_path / "out", **SETTINGS)


def test_a_server_may_ask_for_a_pause_within_bounds():
    waits = {"7": 7, "99999": images.MAX_WAIT, None: None}
    for header, seconds in waits.items():
        response = urllib3.HTTPResponse(headers={"Retry-After": header} if header else {})
        assert images._Retry().get_retry_after(response) == seconds


def test_a_small_jpeg_keeps_its_bytes():
    assert to_jpeg(jpeg(size=(64, 64)), 64) == jpeg(size=(64, 64))


def rgba(colour, size=(40, 20)):
    return Image.new("RGBA", size, colour)


@pytest.mark.parametrize(
    ("data", "size", "colour"),
    [
        (jpeg("red", (200, 100)), (64, 32), (254, 0, 0)),
        (encoded(rgba((255, 0, 0, 0)), "PNG"), (40, 20), (255, 255, 255)),  # all transparent: white, not red
        (encoded(rgba((0, 0, 0, 128)), "PNG"), (40, 20), (127, 127, 127)),
        (encoded(Image.new("RGB", (40, 20), "blue").quantize(4), "GIF"), (40, 20), (0, 0, 254)),
        (encoded(Image.new("L", (40, 20), 100)), (40, 20), (100, 100, 100)),
        (encoded(Image.new("CMYK", (40, 20), (0, 255, 255, 0))), (40, 20), (254, 0, 0)),
        (encoded(Image.new("RGB", (40, 20), "white"), "WEBP"), (40, 20), (255, 255, 255)),
        (encoded(Image.fromarray(np.full((20, 40), 100 << 8, np.uint16)), "PNG"), (40, 20), (100, 100, 100)),
        (encoded(Image.fromarray(np.full((20, 40), 100 << 8, np.int32)), "TIFF"), (40, 20), (100, 100, 100)),
    ],
    ids=["large", "transparent", "half transparent", "palette", "grey", "cmyk", "webp", "16 bits", "32 bits"],
)
def test_anything_else_becomes_an_rgb_jpeg(data, size, colour):
    image = opened(to_jpeg(data, 64))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", size)
    assert image.getpixel((10, 10)) == pytest.approx(colour, abs=2)


def test_numbers_of_unknown_range_are_no_picture():
    with pytest.raises(images._NoPictureError, match="not an image"):
        to_jpeg(encoded(Image.fromarray(np.full((20, 40), 0.5, np.float32)), "TIFF"), 64)


def test_a_bomb_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 50)
    with pytest.raises(Exception, match="too large"):
        to_jpeg(jpeg(size=(10, 10)), 64)
