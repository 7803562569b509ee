"""A run folder: what pre-training and fine-tuning write, and what is read back from it."""

import csv
import hashlib
import io
import logging
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmm4rec.config import PRETRAINING
from mmm4rec.errors import UserError
from mmm4rec.io import atomic, read_json, write_json, write_text
from mmm4rec.models.base import Catalogue, System
from mmm4rec.provenance import environment
from mmm4rec.training.loop import History

log = logging.getLogger(__name__)


def run_environment(settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """What a training is made with; to be asked when it starts, for the checkout may change meanwhile."""
    modules = ["mmm4rec.training", "mmm4rec.evaluation", "mmm4rec.nn", f"mmm4rec.models.{settings['model']}"]
    return environment(modules, device.type) | {"seed": settings["seed"]}


def write_run(
    out: Path,
    settings: dict[str, Any],
    system: System,
    history: History,
    metrics: dict[str, Any],
    made_with: dict[str, Any],
    indomain: History | None = None,
) -> None:
    """Write config, weights, histories, metrics and environment of a finished training."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", settings)
    with atomic(out / "model.safetensors") as part:
        save_file({k: v.contiguous().cpu() for k, v in system.state_dict().items()}, part)
    write_history(out / "history.csv", history)
    if indomain:
        write_history(out / "history_indomain.csv", indomain)
    write_json(out / "environment.json", made_with)
    write_json(out / "metrics.json", metrics | cost(system, history, indomain))


def write_history(path: Path, history: History) -> None:
    """Write an epoch a row."""
    text = io.StringIO()
    fields = list(history.epochs[0]) if history.epochs else ["epoch", "loss", "seconds"]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history.epochs)
    write_text(path, text.getvalue())


def cost(system: System, history: History, indomain: History | None = None) -> dict[str, Any]:
    """What the training took: parameters, epochs, seconds (of training and validation), peak memory in MiB.

    ``seconds`` and ``seconds_to_best`` include an in-domain stage, epochs do not; it has an entry of its own.
    """
    before = sum(row["seconds"] for row in indomain.epochs) if indomain else 0.0
    seconds = [row["seconds"] for row in history.epochs]
    to_best = history.epochs[: history.best_epoch]
    on_gpu = next(iter(system.parameters()), torch.empty(0)).is_cuda
    return {
        "parameters": sum(p.numel() for p in system.parameters()),
        "trained_parameters": sum(p.numel() for p in system.parameters() if p.requires_grad),
        "epochs": len(seconds),
        "best_epoch": history.best_epoch,
        "seconds": before + sum(seconds) + sum(row.get("valid_seconds", 0.0) for row in history.epochs),
        "seconds_per_epoch": sum(seconds) / len(seconds) if seconds else 0.0,
        "seconds_to_best": before + sum(row["seconds"] + row.get("valid_seconds", 0.0) for row in to_best),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "peak_gpu_memory_mib": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None,
        **({"indomain": {"epochs": len(indomain.epochs), "seconds": before}} if indomain else {}),
    }


def describe(catalogue: Catalogue, files: Sequence[Path]) -> dict[str, Any]:
    """What a run keeps in mind of its features: whose they are, which share of the items has each, and their widths.

    Where ``text_dropped`` was read, also the share of items whose vector there is not that of the whole text.
    """
    encoders = {(pq.read_schema(path).metadata or {}).get(b"encoder", b"").decode() for path in files}
    shares = {"text": catalogue.has_text, "image": catalogue.has_image}
    values = {"text": catalogue.text, "image": catalogue.image}
    text, dropped = catalogue.text, catalogue.text_dropped
    other = None if text is None or dropped is None else (text != dropped).any(1)
    return {
        "encoder": ", ".join(sorted(encoders)) or None,
        **{name: 0.0 if has is None else round(has[1:].float().mean().item(), 4) for name, has in shares.items()},
        "widths": {name: None if v is None else v.shape[1] for name, v in values.items()},
        **({} if other is None else {"text_dropped": round(other[1:].float().mean().item(), 4)}),
    }


def check_features(here: dict[str, Any], pretrained: Path) -> None:
    """Hold a target's features, as `describe` has them, against those of the pre-training.

    Raises:
        UserError: they have other widths, so that what was learned of them could not be carried over.
    """
    before = read_json(pretrained / "config.json").get("features")
    if before is None:
        return
    for name, width in here["widths"].items():
        known = before["widths"][name]
        if None not in (width, known) and width != known:
            raise UserError(
                f"{pretrained}: pre-trained on {name} features of width {known}, the target's have {width}; transfer "
                "needs features of one encoder: bring such, or name no `sources`"
            )
    if before["encoder"] != here["encoder"]:
        log.warning(
            "features were made by %s for the pre-training, by %s here: transfer needs features of one encoder",
            before["encoder"],
            here["encoder"],
        )


def load_pretrained(system: System, folder: Path) -> None:
    """Carry pre-trained weights over: those the system's paper carries over, where names and shapes agree.

    Raises:
        UserError: most of it does not fit: the system would be a fresh one under a pre-trained one's name.
    """
    weights = read_weights(folder)
    own: dict[str, Tensor] = system.state_dict()
    wanted = {name: w for name, w in weights.items() if system.carried_over(name) and name in own}
    fitting = {name: w for name, w in wanted.items() if w.shape == own[name].shape}
    if 2 * _size(fitting) < _size(wanted) or not fitting:
        raise UserError(
            f"{folder}: most of the pre-trained weights do not fit this system; pre-train it with the same settings, "
            "on features of the same encoder"
        )
    for name in wanted.keys() - fitting.keys():
        log.warning(
            "not carried over, another shape: %s %s here, %s pre-trained",
            name,
            tuple(own[name].shape),
            tuple(wanted[name].shape),
        )
    fresh = [name for name in own if name not in fitting]
    log.info("carried over %d of %d tensors; fresh: %s", len(fitting), len(own), ", ".join(fresh) or "none")
    system.load_state_dict(fitting, strict=False)


def read_pretraining(folder: Path) -> dict[str, Any]:
    """What a run keeps in mind of its pre-training: on which sources, how, and the digest of the weights it gave."""
    config = read_json(folder / "config.json")
    with (folder / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {key: config[key] for key in PRETRAINING} | {"sha256": digest}


def _size(weights: dict[str, Tensor]) -> int:
    return sum(w.numel() for w in weights.values())


def read_weights(folder: Path) -> dict[str, Tensor]:
    """A run's weights.

    Raises:
        UserError: there are none.
    """
    path = folder / "model.safetensors"
    if not path.exists():
        raise UserError(f"{path}: no such file; has this run finished?")
    return load_file(path)


def remove_state(state: Path | None) -> None:
    """Remove the state of a training that is finished and written."""
    if state:
        shutil.rmtree(state, ignore_errors=True)
