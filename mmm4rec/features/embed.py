"""Text and pictures of a domain through the frozen encoder, resumably.

The accelerator encodes one batch while threads decode the next ones. Shapes: N items, B batch, F encoder width.
"""

import hashlib
import io
import logging
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor

from mmm4rec.data.images import check_complete, list_shards, read_shard
from mmm4rec.device import resolve_device
from mmm4rec.errors import UserError
from mmm4rec.features.encoder import SIDE, Encoder, load_encoder
from mmm4rec.features.store import check_missing, read_table, write_features
from mmm4rec.io import atomic, read_json, write_json

logger = logging.getLogger(__name__)

PART = 1000  # texts in a file of the state, as many as pictures in a shard
AHEAD = 3  # batches being decoded
WHITE = (200, 200)  # size of the picture that stands in for a missing one


class Part(NamedTuple):
    """What is encoded, and kept, at a time."""

    name: str
    ids: np.ndarray  # item ids
    read: Callable[[], Sequence[Any]]  # what is to be encoded, an entry an id


def embed(
    settings: dict[str, Any],
    domain: Path,
    images: Path,
    encoder: Path,
    out: Path,
    *,
    state: Path | None,
    device: str,
    batch_size: int,
) -> None:
    """Write the feature file ``out`` (docs/architecture.md): float16, L2-normalised.

    Args:
        settings: what ``mmm4rec.config.embed_settings`` gives. With ``missing_image: white`` items without a picture
            get the vector of a plain white one; their ``has_image`` stays False.
        domain: folder of the prepared domain.
        images: folder of its pictures.
        encoder: folder of the encoder.
        out: the feature file.
        state: folder of finished parts, removed at the end; a killed run goes on from it. None: none is kept.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch_size: texts or pictures encoded at once.

    Raises:
        UserError: an input is missing, the encoder is no SigLIP, or features are missing and ``missing_features`` is
            ``error``.
    """
    items = read_table(Path(domain) / "items.parquet", ["item_id", "item", "text"])
    check_complete(images)
    _check_numbers(Path(images), items)
    model = load_encoder(encoder, resolve_device(device), settings["precision"])
    inputs = [Path(domain) / "items.parquet", Path(images) / "manifest.parquet", Path(encoder) / "encoder.json"]
    key = {"settings": settings, "inputs": [hashlib.sha256(path.read_bytes()).hexdigest() for path in inputs]}
    with tempfile.TemporaryDirectory() if state is None else nullcontext(state) as folder:
        _same_work(Path(folder), key)
        text, has_text = encode_texts(model, items["text"], Path(folder), batch_size)
        image, has_image = encode_images(model, Path(images), len(items), Path(folder), batch_size)
    has = {"text": has_text} | ({"image": has_image} if has_image.any() else {})
    check_missing(settings["missing_features"], has, items["item"], str(domain))
    if settings["missing_image"] == "white":
        white = model.images([Image.new("RGB", WHITE, "white")]).cpu().numpy().astype(np.float16)
        image = np.where(has_image[:, None], white if image is None else image, white)
    metadata = {
        "encoder": settings["encoder"],
        "precision": model.precision,
        "text_fields": settings["text_fields"],
        "missing_image": settings["missing_image"],
    }
    write_features(
        out, items["item_id"].to_numpy(), items["item"].combine_chunks(), text, has_text, image, has_image, metadata
    )
    if state is not None:
        shutil.rmtree(state)


def _check_numbers(images: Path, items: pa.Table) -> None:
    """Raise a ``UserError`` where the pictures are those of another numbering of the items."""
    pictures = read_table(images / "manifest.parquet", ["item_id", "item"])
    number = pictures["item_id"].to_numpy() - 1
    if number.max(initial=-1) >= len(items) or items["item"].take(number).to_pylist() != pictures["item"].to_pylist():
        raise UserError(f"{images}: pictures of other items than the domain has now; run `mmm4rec images` again")


def _same_work(state: Path, key: dict[str, Any]) -> None:
    """Empty the state unless it belongs to the same settings and inputs."""
    path = state / "key.json"
    if not path.exists() or read_json(path) != key:
        shutil.rmtree(state, ignore_errors=True)
        write_json(path, key)


def encode_texts(
    model: Encoder, texts: pa.ChunkedArray, state: Path, batch_size: int
) -> tuple[np.ndarray | None, np.ndarray]:
    """Vectors [N, F] of the texts, and which items have one."""
    length = pc.utf8_length(pc.utf8_trim_whitespace(texts))
    rows = np.flatnonzero(pc.fill_null(pc.greater(length, 0), False).to_numpy())
    parts = [
        Part(f"text_{k:05d}", ids + 1, partial(lambda at: texts.take(at).to_pylist(), ids))
        for k, ids in enumerate(np.split(rows, range(PART, len(rows), PART)))
    ]
    # One thread: the tokenizer cannot be shared, and spreads a batch over all cores itself.
    with ThreadPoolExecutor(1) as pool:
        start = lambda batch: pool.submit(model.tokenize, batch).result  # noqa: E731
        return _encode("texts", model.texts, start, parts, len(texts), state, batch_size)


def encode_images(
    model: Encoder, folder: Path, n_items: int, state: Path, batch_size: int
) -> tuple[np.ndarray | None, np.ndarray]:
    """Vectors [N, F] of the pictures, and which items have one."""
    parts = [
        Part(path.stem, np.array(read_shard(path, "item_id"), np.int64), partial(read_shard, path, "image"))
        for path in list_shards(folder)
    ]
    on_gpu = model.device.type == "cuda"

    def decode(data: bytes, slot: Tensor) -> None:
        with Image.open(io.BytesIO(data)) as image:
            slot.copy_(model.preprocess(image))

    def start(batch: Sequence[bytes]) -> Callable[[], Tensor]:
        slots = torch.empty(len(batch), 3, SIDE, SIDE, pin_memory=on_gpu)
        decoded = pool.map(decode, batch, slots)

        def ready() -> Tensor:
            list(decoded)
            return slots

        return ready

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return _encode("pictures", model.images, start, parts, n_items, state, batch_size)


def _encode(
    what: str,
    encode: Callable[[Tensor], Tensor],
    start: Callable[[Sequence[Any]], Callable[[], Tensor]],
    parts: list[Part],
    n_items: int,
    state: Path,
    batch_size: int,
) -> tuple[np.ndarray | None, np.ndarray]:
    """Encode parts and keep each of them in the state.

    Args:
        what: is encoded, for the log.
        encode: a batch to vectors [B, F].
        start: begins to bring a batch into the form ``encode`` takes, and gives a function that waits for it.
        parts: names, item ids and inputs.
        n_items: N.
        state: where finished parts are kept.
        batch_size: B.

    Returns:
        Vectors [N, F] float16, zero where missing, or None if all are; [N] bool, what is there.
    """
    todo = [part for part in parts if not (state / f"{part.name}.npy").exists()]
    n_all, n_todo = (sum(len(part.ids) for part in some) for some in (parts, todo))
    began = time.perf_counter()

    def batches() -> Iterator[tuple[str, Sequence[Any]]]:
        for part in todo:
            inputs = part.read()
            yield from ((part.name, inputs[at : at + batch_size]) for at in range(0, len(inputs), batch_size))

    with Progress(disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task(what, total=n_all, completed=n_all - n_todo)
        for name, group in groupby(_ahead(start, batches()), key=lambda pair: pair[0]):
            part_vectors = np.concatenate([encode(batch).cpu().numpy().astype(np.float16) for _, batch in group])
            with atomic(state / f"{name}.npy") as part, part.open("wb") as file:
                np.save(file, part_vectors)
            progress.advance(task, len(part_vectors))
    seconds = time.perf_counter() - began
    logger.info("%d %s, %d of them now in %.1f s (%.0f a second)", n_all, what, n_todo, seconds, n_todo / seconds)

    has = np.zeros(n_items, bool)
    if not n_all:
        return None, has
    found = [np.load(state / f"{part.name}.npy") for part in parts if len(part.ids)]
    values = np.zeros((n_items, found[0].shape[1]), np.float16)
    ids = np.concatenate([part.ids for part in parts])
    has[ids - 1], values[ids - 1] = True, np.concatenate(found)
    return values, has


def _ahead(
    start: Callable[[Any], Callable[[], Tensor]], batches: Iterable[tuple[str, Any]]
) -> Iterator[tuple[str, Tensor]]:
    """Batches in their order, each begun while those before it are being encoded."""
    begun: deque[tuple[str, Callable[[], Tensor]]] = deque()
    for name, batch in batches:
        begun.append((name, start(batch)))
        if len(begun) > AHEAD:
            name, ready = begun.popleft()
            yield name, ready()
    yield from ((name, ready()) for name, ready in begun)
