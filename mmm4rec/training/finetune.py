"""Train one system on one target with one seed, and rank every user's test item with it."""

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from mmm4rec.config import StageSettings
from mmm4rec.device import resolve_device
from mmm4rec.errors import UserError
from mmm4rec.evaluation.metrics import summarise
from mmm4rec.evaluation.ranking import rank_targets
from mmm4rec.io import write_parquet
from mmm4rec.models.base import System, build
from mmm4rec.training.data import items_digest, load_catalogue, load_events, raw_item_ids
from mmm4rec.training.distributed import require_one
from mmm4rec.training.loop import History, Loss, finetune_loss, pretrain_loss, train
from mmm4rec.training.run import (
    check_features,
    describe,
    load_pretrained,
    read_pretraining,
    remove_state,
    run_environment,
    write_run,
)
from mmm4rec.training.scalars import scalars

log = logging.getLogger(__name__)


def finetune(
    settings: dict[str, Any],
    domain: Path,
    features: Path | None,
    pretrained: Path | None,
    out: Path,
    *,
    state: Path | None = None,
    device: str = "auto",
    tensorboard: Path | None = None,
) -> None:
    """Fine-tune (or train from scratch, without ``pretrained``), rank validation and test items, write the run folder.

    A system with an in-domain stage is first trained on the training rows with its pre-training objective.

    Args:
        settings: see ``mmm4rec.config.finetune_settings``.
        domain: the prepared target.
        features: its features, for systems that read them.
        pretrained: run folder of the pre-training.
        out: the run folder.
        state: folder for the state of an unfinished training; a killed run goes on from it.
        device: ``auto``, ``cpu`` or ``cuda``.
        tensorboard: folder for TensorBoard events.

    Raises:
        UserError: files, settings or features do not fit the system, or ``torchrun`` started several processes.
    """
    require_one("mmm4rec finetune")
    where = resolve_device(device)
    torch.manual_seed(settings["seed"])
    made_with = run_environment(settings, where)
    events = load_events([domain])
    # weights know numbers alone, which may stand for other items when they are read again
    made_with["items_sha256"] = items_digest(raw_item_ids(domain))
    reads = settings["reads"]
    catalogue = load_catalogue(events, [domain], [features] if features else [], reads, settings["missing_image"])
    described = describe(catalogue, [features]) if features else None
    system = build(settings["model"], settings["settings"], catalogue)
    if pretrained:
        if described:
            check_features(described, pretrained)
        load_pretrained(system, pretrained)
    # asked before the training, for the folder may be another's afterwards
    inputs: dict[str, Any] = {"pretraining": read_pretraining(pretrained) if pretrained else None}
    if "attributes" in reads:
        inputs["attributes"] = 0 if catalogue.attributes is None else int(catalogue.attributes.max())
    system.to(where)
    events = events.to(where)
    time_aware = "time" in reads
    ranking = {"time": time_aware, "mask_seen": settings["mask_seen"]}
    if time_aware and not system.timed:
        log.info("time: off; the domain has no timestamps, or the settings leave them out")
    valid_rows, test_rows = events.valid_rows(), events.test_rows()
    if not len(test_rows):
        raise UserError(f"{domain}: no user has three events or more, so there is nobody to rank; take another domain")

    def validate() -> dict[str, float]:
        return summarise(rank_targets(system, events, valid_rows, **ranking).cpu())

    def stage(how: dict[str, Any], loss: Loss, folder: str = "", **options: Any) -> History:
        with scalars(tensorboard and tensorboard / folder) as write:
            return train(
                system,
                events,
                events.train_rows(),
                StageSettings(**how),
                loss,
                seed=settings["seed"],
                time_aware=time_aware,
                whole_catalogue=True,
                precision=settings["precision"],
                state_dir=state and state / folder,
                made_for=[settings["version"], settings["mask_seen"]],
                on_epoch=write,
                **options,
            )

    indomain = stage(settings["indomain"], pretrain_loss, "indomain") if settings.get("indomain") else None
    if pretrained or indomain:
        freeze(system)
    how = settings["stage"]
    history = stage(how, finetune_loss, validate=validate) if how and how["epochs"] else History()
    ranks = rank_targets(system, events, test_rows, **ranking).cpu()
    test = summarise(ranks)
    metrics = {"test": test, "valid": validate(), "users": len(ranks), "interactions": len(events.items)}
    metrics["time"] = system.timed
    users = events.users[events.ranked].cpu()
    write_parquet(
        out / "ranks.parquet",
        pa.table({"user_id": pa.array(users.numpy(), pa.int32()), "rank": pa.array(ranks.numpy(), pa.int32())}),
    )
    inputs |= {
        "time": "on" if system.timed else "off",
        "domain_path": str(domain),
        "features_path": str(features) if features else None,
        "features": described,
    }
    write_run(out, settings | inputs, system, history, metrics, made_with, indomain)
    remove_state(state)
    log.info("test: %s", ", ".join(f"{k} {v:.4f}" for k, v in test.items()))


def freeze(system: System) -> None:
    """Stop training of what the system keeps as pre-trained."""
    prefixes = tuple(system.frozen())
    for name, parameter in system.named_parameters():
        if prefixes and name.startswith(prefixes):
            parameter.requires_grad_(False)
