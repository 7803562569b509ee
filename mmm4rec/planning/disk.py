"""Disk that the jobs of a configuration take: bytes that are there, and bytes to come."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from mmm4rec.config import Config, raw_files
from mmm4rec.data.registry import Source, source
from mmm4rec.planning.jobs import Job
from mmm4rec.planning.rates import ENCODER
from mmm4rec.planning.sizes import Size

#: width of an encoder's vectors, float16
WIDTHS = {ENCODER: 768, "tiny": 128}
ROW_BYTES = 42  # a rating of the 2018 edition: two ids of 10 and 14 characters, a number, a time
PICTURE_BYTES = 50_000  # a JPEG of up to 512 pixels a side, as photographs are; assumed until some are there
#: of a prepared domain: an event, a user's raw id, an item's texts, as Magazine Subscriptions of 2018 take them
EVENT_BYTES, USER_BYTES, ITEM_BYTES = 6, 14, 500
ENCODER_BYTES = {ENCODER: 4 * 203_155_970}  # its parameters, in float32
RANK_BYTES = 8  # a user of ranks.parquet, before it is compressed


@dataclass
class Disk:
    """Bytes of one kind of file: there already, and still to come (None: unknown, and ``note`` says why)."""

    what: str
    there: int
    to_come: int | None
    note: str = ""


def disk_space(
    config: Config, jobs: list[Job], sizes: dict[str, Size | None], weights_of: Callable[[Job], int | None]
) -> list[Disk]:
    """Every kind of file of a configuration.

    Args:
        config: the configuration.
        jobs: all of its jobs.
        sizes: of the domains, None where unknown.
        weights_of: bytes of the weights that a job writes, None where unknown.
    """
    left = [job for job in jobs if job.state != "done"]
    trained = [job for job in left if job.stage]
    weights = [weights_of(job) for job in trained]
    tested = [sizes[job.domain] for job in left if job.stage == "finetune"]
    ranked = [size.users * RANK_BYTES if size else None for size in tested]
    folders = [config.results / name for name in ("runs", "pretrained", "truncation")]
    models = sum(_bytes(folder, "model.safetensors") for folder in folders)
    return [
        _raw_disk(config, jobs, left),
        _domains_disk(config, left, sizes),
        _images_disk(config, left, sizes),
        _encoder_disk(config, jobs),
        _features_disk(config, left, sizes),
        Disk("weights", models, _total(weights), _lacking(weights, "weights of this size not measured")),
        Disk(
            "runs, without weights",
            sum(_bytes(folder) for folder in folders) - models,
            _total(ranked),
            _lacking(ranked, "size of the domain unknown") or ("ranks, at most" if ranked else ""),
        ),
        Disk(
            "logs, TensorBoard, state",
            sum(_bytes(config.results / name) for name in ("logs", "benchmarks", "tensorboard", "state")),
            None,
            "some kB a job; a training that runs keeps four times its weights in state, and removes them at its end",
        ),
    ]


def _raw_disk(config: Config, jobs: list[Job], left: list[Job]) -> Disk:
    about = {str(path): key for path, key in raw_files(config).items()}
    missing = [_raw_bytes(source(*about[str(job.outputs[0])])) for job in left if job.rule == "download"]
    there = {path for job in jobs if job.rule in ("download", "demo") for path in job.outputs if path.exists()}
    notes = ["ratings by their number, about" if _total(missing) else "", _lacking(missing, "no size is stated")]
    return Disk("raw files", sum(path.stat().st_size for path in there), _total(missing), _joined(*notes))


def _raw_bytes(file: Source) -> int | None:
    return file.bytes or (file.rows and file.rows * ROW_BYTES)


def _domains_disk(config: Config, left: list[Job], sizes: dict[str, Size | None]) -> Disk:
    about = [sizes[job.domain] for job in left if job.rule in ("prepare", "with_image")]
    to_come = [
        EVENT_BYTES * (size.all_rows + size.users) + USER_BYTES * size.users + ITEM_BYTES * size.items if size else None
        for size in about
    ]
    note = "about" if _total(to_come) else ""
    lacking = _lacking(to_come, "size of the domain unknown")
    return Disk("prepared domains", _bytes(config.results / "domains"), _total(to_come), _joined(note, lacking))


def _encoder_disk(config: Config, jobs: list[Job]) -> Disk:
    fetched = [job for job in jobs if job.rule == "encoder"]
    folder = config.encoder.folder / config.encoder.name
    if all(job.state == "done" for job in fetched):
        return Disk("encoder", _bytes(folder), 0)
    size = ENCODER_BYTES.get(config.encoder.source)
    return Disk("encoder", _bytes(folder), size, "" if size else "size of the encoder unknown")


def _images_disk(config: Config, left: list[Job], sizes: dict[str, Size | None]) -> Disk:
    folder = config.results / "images"
    manifests = sorted(folder.glob("*/manifest.parquet"))
    pictures = [size for path in manifests for size in _picture_sizes(path)]
    domains = [sizes[job.domain] for job in left if job.rule == "images"]
    if not domains:
        return Disk("images", _bytes(folder), 0)
    mean = statistics.fmean(pictures) if pictures else PICTURE_BYTES
    to_come = [round(size.images * mean) if size else None for size in domains]
    assumed = "" if pictures else f"{PICTURE_BYTES // 1000} kB a picture, assumed: none is there yet"
    notes = [assumed, _lacking(to_come, "size of the domain unknown")]
    return Disk("images", _bytes(folder), _total(to_come), _joined(*notes))


def _picture_sizes(manifest: Path) -> list[int]:
    return [n for n in pq.read_table(manifest, columns=["bytes"])["bytes"].to_pylist() if n]


def _features_disk(config: Config, left: list[Job], sizes: dict[str, Size | None]) -> Disk:
    width = WIDTHS.get(config.encoder.source)
    to_come: list[int | None] = []
    for job in left:
        size = sizes.get(job.domain)
        if job.rule == "embed":
            to_come.append(2 * width * (size.items + size.images) if width and size else None)
        elif job.rule == "import_features":  # about what the user's own files take
            own = config.domains[job.domain].features
            assert own is not None
            files = [own] if isinstance(own, Path) else [path for path in (own.text, own.image) if path]
            to_come.append(sum(path.stat().st_size for path in files) if all(p.exists() for p in files) else None)
    note = _lacking(to_come, "size of the domain or width of the encoder unknown")
    return Disk("features", _bytes(config.results / "features"), _total(to_come), note)


def _bytes(folder: Path, name: str = "*") -> int:
    return sum(path.stat().st_size for path in folder.rglob(name) if path.is_file())


def _total(values: Sequence[int | None]) -> int | None:
    """Sum of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known or not values else None


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


def _lacking(values: Sequence[int | None], why: str) -> str:
    lacking = sum(value is None for value in values)
    return f"without {lacking} of {len(values)} ({why})" if lacking else ""
