"""Fetch raw files once: resumable, from mirrors in order, with a record of size and sum that is verified ever after."""

import datetime
import gzip
import hashlib
import logging
import shutil
import time
from pathlib import Path

import requests
import urllib3
from requests.adapters import HTTPAdapter
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from mmm4rec.data.registry import Edition, Kind, Source, raw_path, source
from mmm4rec.errors import UserError
from mmm4rec.io import atomic, read_json, write_json

logger = logging.getLogger(__name__)

BACKOFF = 1.0  # seconds, doubled at each try
STALLS = 3  # connections broken in a row without a byte gained before a mirror is given up
TIMEOUT = (10, 60)  # seconds to connect, and between two bytes
CHUNK = 1 << 20


class _MirrorError(Exception):
    """A mirror that does not deliver: the next one is tried."""


def download(category: str, edition: Edition, kind: Kind, raw: Path, *, offline: bool) -> Path:
    """Bring one raw file of Amazon Reviews below ``raw`` and verify it; a file that is there causes no request.

    Size and sha256 are recorded in ``<file>.json`` at first sight, also for a file brought by hand.

    Returns:
        The path of the file.

    Raises:
        UserError: no mirror delivers (or ``offline``), or the file is not the one that was recorded.
    """
    path = raw_path(raw, category, edition, kind)
    origin = source(category, edition, kind)
    url = None
    if not path.exists():
        if offline:
            raise UserError(_by_hand(path, origin.urls, "`offline: true` and the file is not there"))
        url = _from_mirrors(origin.urls, path)
        logger.info("%s: fetched from %s (licence: %s)", path, url, origin.licence)
    _verify(path, url, origin)
    return path


def verify_raw(path: Path, category: str, edition: Edition, kind: Kind) -> None:
    """Compare a raw file with the record made of it, or make the record: for files brought by hand as for fetched ones.

    Raises:
        UserError: the file is not there, or not the one that was recorded.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; fetch it with `mmm4rec download`")
    _verify(path, None, source(category, edition, kind))


def _by_hand(path: Path, urls: tuple[str, ...], reason: str) -> str:
    return f"{path}: cannot be downloaded ({reason}); fetch one of {' , '.join(urls)} by hand and save it as {path}"


def _verify(path: Path, url: str | None, origin: Source) -> None:
    """Compare a file with the record made of it earlier and with the registry; make the record if there is none."""
    record_path = path.with_name(f"{path.name}.json")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    found = {"bytes": path.stat().st_size, "sha256": sha256}
    recorded = read_json(record_path) if record_path.exists() else None
    registered = {"bytes": origin.bytes, "sha256": origin.sha256}
    for place, expected in ((record_path, recorded or {}), ("registry.yaml", registered)):
        for key, value in found.items():
            if expected.get(key) not in (None, value):
                raise UserError(
                    f"{path}: {key} is {value}, but {place} says {expected[key]}; the file is damaged or another "
                    f"version: remove it to fetch it again, or correct {place} to accept it"
                )
    if recorded is None:
        fetched = datetime.datetime.now(datetime.UTC).date().isoformat()
        try:
            write_json(record_path, {"url": url, **found, "fetched": fetched})
        except PermissionError:
            logger.warning("%s: no record of size and sum, for nothing may be written beside it", path)


def _from_mirrors(urls: tuple[str, ...], path: Path) -> str:
    """Fetch ``path`` from the first mirror that delivers and return that mirror's URL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    validator = path.with_name(f"{path.name}.part.validator")  # ETag or date of what .part holds the beginning of
    reasons = []
    with requests.Session() as session:
        retry = urllib3.Retry(
            total=3, backoff_factor=BACKOFF, status_forcelist=(429, 500, 502, 503, 504), raise_on_status=False
        )
        session.mount("http://", HTTPAdapter(max_retries=retry))
        session.mount("https://", HTTPAdapter(max_retries=retry))
        # The file as it lies there: a server may otherwise decode .gz on the way, which breaks sizes and resuming.
        session.headers.update({"Accept-Encoding": "identity", "User-Agent": "mmm4rec"})
        for url in urls:
            try:
                _fetch(session, url, part, validator)
            except _MirrorError as error:
                logger.warning("%s: %s", url, error)
                reasons.append(f"{url}: {error}")
                continue
            if path.suffix == ".gz" and not url.endswith(".gz"):
                with (
                    atomic(path) as final,
                    part.open("rb") as plain,
                    final.open("wb") as target,
                    gzip.GzipFile("", "wb", fileobj=target, mtime=0) as packed,
                ):
                    shutil.copyfileobj(plain, packed, CHUNK)
                part.unlink()
            else:
                part.replace(path)
            validator.unlink(missing_ok=True)
            return url
    raise UserError(_by_hand(path, urls, "; ".join(reasons)))


def _fetch(session: requests.Session, url: str, part: Path, validator: Path) -> None:
    """Fetch ``url`` into ``part``, going on after broken connections as long as bytes are gained now and then."""
    stalls = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _request(session, url, part, validator)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            stalls = 0 if part.exists() and part.stat().st_size > before else stalls + 1
            if stalls == STALLS:
                raise _MirrorError(f"connection broken ({type(error).__name__})") from None
            time.sleep(BACKOFF)


def _request(session: requests.Session, url: str, part: Path, validator: Path) -> None:
    """One request: the rest of ``part`` if the server's file is still the same, else the whole file."""
    start = part.stat().st_size if part.exists() and validator.exists() else 0
    headers = {"Range": f"bytes={start}-", "If-Range": validator.read_text("utf-8")} if start else {}
    try:
        response = session.get(url, headers=headers, stream=True, timeout=TIMEOUT)
    except requests.RequestException as error:  # after the session's own tries
        raise _MirrorError(f"no answer ({type(error).__name__})") from None
    with response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            if response.headers.get("Content-Range") == f"bytes */{start}":
                return  # everything was there already
            part.unlink()
            raise requests.ConnectionError("the part file did not fit: start again")
        if not response.ok:
            raise _MirrorError(f"HTTP {response.status_code}")
        if "text/html" in response.headers.get("Content-Type", ""):
            raise _MirrorError("a web page instead of the file")
        if response.status_code != requests.codes.partial_content:
            start = 0
        tag = response.headers.get("ETag", "")
        mark = response.headers.get("Last-Modified", "") if tag.startswith("W/") or not tag else tag
        if mark:
            validator.write_text(mark, encoding="utf-8")
        else:
            validator.unlink(missing_ok=True)  # no way to know that the rest belongs to the beginning
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with part.open("ab" if start else "wb") as file, Progress(*columns, TimeRemainingColumn()) as progress:
            task = progress.add_task(part.name.removesuffix(".part"), total=total, completed=start)
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                file.write(chunk)
                progress.advance(task, len(chunk))
        if total is not None and part.stat().st_size != total:
            raise requests.ConnectionError(f"{part.stat().st_size} of {total} bytes")
