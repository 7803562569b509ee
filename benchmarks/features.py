"""Pictures to vectors, against decoding alone and against the encoder alone.

The encoder is SigLIP's ViT-B/16 with random weights; in a quick run it is the demo's small one.
"""

import io
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path

import torch
from PIL import Image

from benchmarks.roofline import best, timed
from benchmarks.table import Row, apart, held
from mmm4rec.features.embed import encode_images
from mmm4rec.features.encoder import SIDE, Encoder, fetch_encoder, load_encoder
from mmm4rec.planning.measure_steps import invent_pictures, random_encoder

PICTURES = {"quick": {"cpu": 256, "cuda": 1024}, "full": {"cpu": 64, "cuda": 100_000}}
BATCH = {"cpu": 32, "cuda": 512}


def rows(size: str, device: str) -> Iterator[Row]:
    """All pictures once, against the slower of decoding and encoding alone."""
    n = PICTURES[size][device]
    ours, memory, decoding, encoding = apart(measure, size, device, n)
    remark = (
        f"{n / ours:.0f} pictures a second; decoding alone {n / decoding:.0f}, the encoder alone {n / encoding:.0f}"
    )
    slower = "decoding alone" if decoding > encoding else "the encoder alone"
    yield Row("pictures to vectors", n, "pictures", ours, slower, max(decoding, encoding), memory, remark)


def measure(size: str, device: str, n: int) -> tuple[float, float, float, float]:
    """Seconds and MiB of all of it, seconds of decoding alone and of the encoder alone."""
    where, batch = torch.device(device), BATCH[device]
    torch.set_num_threads(cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        encoder = small(Path(folder)) if size == "quick" else random_encoder(where)
        data = invent_pictures(Path(folder) / "images", n)

        def all_of_it() -> None:
            with tempfile.TemporaryDirectory() as state:
                encode_images(encoder, Path(folder) / "images", n, Path(state), batch)

        def decode() -> None:
            with ThreadPoolExecutor(cpu_count()) as pool:
                for _ in pool.map(lambda jpeg: encoder.preprocess(Image.open(io.BytesIO(jpeg))), data):
                    pass  # none is kept: 100,000 would not fit

        pictures = torch.randn(batch, 3, SIDE, SIDE, device=where)
        decoding = best(decode, where, 2)
        encoding = best(lambda: encoder.images(pictures), where, 2) * n / batch
        return *held(lambda: timed(all_of_it, where), device), decoding, encoding


def small(folder: Path) -> Encoder:
    """The demo's encoder."""
    fetch_encoder("tiny", folder / "tiny", offline=True)
    return load_encoder(folder / "tiny", "cpu", "fp32")
