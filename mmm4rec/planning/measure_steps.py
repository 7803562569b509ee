"""Measure how fast raw files become a domain, and texts and pictures vectors, on invented ones.

A step's time goes with what it reads (ratings, texts, pictures), so that one size is enough.
"""

import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from mmm4rec.data.prepare import prepare
from mmm4rec.features.embed import encode_images, encode_texts
from mmm4rec.features.encoder import CONTEXT, Encoder, usable_precision

RATINGS = 500_000  # their metadata is read by the process itself, whose time is taken
#: texts and pictures
ENCODED = {"cpu": 64, "cuda": 16_384}
BATCH = {"cpu": 32, "cuda": 256}
THREADS = {"cpu": 1, "cuda": 4}  # that decode pictures; on a GPU as many as the workflow gives the step

EVENTS_A_USER, EVENTS_AN_ITEM = 2.25, 17.0  # as in Home and Kitchen before any filter
SKEW = 0.75  # exponent of the popularity over its rank
SETTINGS = {
    "domain": "invented",
    "amazon": "Invented",
    "edition": 2018,
    "k_core": 5,
    "text_fields": "title_category_brand",
}
WORDS = ("steel", "kitchen", "set", "with", "large", "cotton", "glass", "modern", "lamp", "white", "soft", "storage")
TOKENS = 32_000  # in SigLIP's vocabulary
STORED = (384, 384)  # pixels of a picture; fetched ones are kept with up to 512 a side
DISTINCT_PICTURES = 64  # they repeat beyond


# ------------------------------------------------------------------------------------------------ preparation


def prepare_ratings(clock: Callable[[], float]) -> tuple[int, float]:
    """Ratings prepared, and the seconds of ``clock`` that they and the metadata of their items took."""
    with tempfile.TemporaryDirectory() as folder:
        ratings, metadata = invent_raw(Path(folder), RATINGS)
        now = clock()
        prepare(SETTINGS, Path(folder) / "out", ratings=ratings, metadata=metadata)
        return RATINGS, clock() - now


def invent_raw(folder: Path, n: int) -> tuple[Path, Path]:
    """Write ``n`` ratings and the metadata of their items, in the formats of Amazon Reviews 2018; the paths of both.

    Few users and items have many events, many have few.
    """
    draw = np.random.default_rng(0)
    n_users, n_items = int(n / EVENTS_A_USER), int(n / EVENTS_AN_ITEM)
    users, items = (_skewed(count, n, draw) for count in (n_users, n_items))
    events = pl.DataFrame({"item": items, "user": users}).select(
        ("B" + pl.col("item").cast(pl.String).str.zfill(9)).alias("item"),
        ("A" + pl.col("user").cast(pl.String).str.zfill(13)).alias("user"),
        pl.Series("rating", draw.integers(1, 6, n).astype(np.float32)),
        pl.Series("timestamp", 1_300_000_000 + 86_400 * draw.integers(0, 2500, n)),
    )
    ratings, metadata = folder / "Invented.csv", folder / "meta_Invented.json.gz"
    events.write_csv(ratings, include_header=False)
    with gzip.open(metadata, "wt", compresslevel=1, encoding="utf-8") as file:
        for item in range(n_items):
            words = [WORDS[k] for k in draw.integers(0, len(WORDS), 80)]
            record = {
                "category": ["Home & Kitchen", " ".join(words[:2]), " ".join(words[2:4])],
                "description": [" ".join(words[10:])],
                "title": " ".join(words[:9]),
                "brand": words[9],
                "also_buy": [f"B{k:09d}" for k in range(item, item + 20)],
                "imageURLHighRes": [f"https://images.example.org/I/{item}.jpg"],
                "asin": f"B{item:09d}",
            }
            file.write(json.dumps(record) + "\n")
    return ratings, metadata


def _skewed(count: int, n: int, draw: np.random.Generator) -> np.ndarray:
    """``n`` draws out of 0..count - 1, the k-th as likely as (k + 10) ** -SKEW."""
    weights = (np.arange(count) + 10.0) ** -SKEW
    order = draw.permutation(count)
    return order[np.searchsorted(np.cumsum(weights) / weights.sum(), draw.random(n), side="right").clip(max=count - 1)]


# ------------------------------------------------------------------------------------------------ the encoder


def encode(what: str, device: torch.device, clock: Callable[[], float]) -> tuple[int, float]:
    """``texts`` or ``images`` encoded, and the seconds of ``clock`` that they took."""
    n, batch = ENCODED[device.type], BATCH[device.type]
    torch.set_num_threads(THREADS[device.type])
    encoder = random_encoder(device)
    with tempfile.TemporaryDirectory() as folder:
        texts = pa.chunked_array([["the text of an item"] * n])
        if what == "images":
            invent_pictures(Path(folder) / "images", n)
        for part in ("warm", "timed"):
            now = clock()
            if what == "texts":
                encode_texts(encoder, texts, Path(folder) / part, batch)
            else:
                encode_images(encoder, Path(folder) / "images", n, Path(folder) / part, batch)
            seconds = clock() - now
    return n, seconds


def random_encoder(device: torch.device) -> Encoder:
    """SigLIP's ViT-B/16 as it is used, but with random weights and tokens: its speed does not depend on them."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    model = open_clip.create_model("ViT-B-16-SigLIP", device=device, load_weights=False).eval()
    preprocess = image_transform_v2(PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)), is_train=False)
    tokens = lambda texts: torch.randint(TOKENS, (len(texts), CONTEXT))  # noqa: E731
    return Encoder(model, tokens, preprocess, device, usable_precision(device, "bf16"))


def invent_pictures(folder: Path, n: int) -> list[bytes]:
    """JPEGs of coloured noise at a few scales, written as fetched pictures are kept; their bytes."""
    draw, data = np.random.default_rng(0), []
    for _ in range(min(n, DISTINCT_PICTURES)):
        coarse = Image.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize(STORED, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        data.append(buffer.getvalue())
    data = [data[k % len(data)] for k in range(n)]
    folder.mkdir()
    for shard, start in enumerate(range(0, n, 1000)):
        jpegs = data[start : start + 1000]
        ids = pa.array(range(start + 1, start + 1 + len(jpegs)), pa.int32())
        table = pa.table(
            {"item_id": ids, "image": pa.array(jpegs, pa.binary()), "sha256": pa.array(["-"] * len(jpegs))}
        )
        pq.write_table(table, folder / f"shard_{shard:05d}.parquet")
    return data
