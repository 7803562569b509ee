"""Pre-train one system on the merged source domains."""

import logging
from pathlib import Path
from typing import Any

import torch

from mmm4rec.config import StageSettings
from mmm4rec.device import resolve_device
from mmm4rec.models.base import build, model_class
from mmm4rec.training.data import load_catalogue, load_events
from mmm4rec.training.distributed import is_main, process_group, ranks
from mmm4rec.training.loop import pretrain_loss, train
from mmm4rec.training.run import describe, remove_state, run_environment, write_run
from mmm4rec.training.scalars import scalars

log = logging.getLogger(__name__)


def pretrain(
    settings: dict[str, Any],
    domains: list[Path],
    features: list[Path],
    out: Path,
    *,
    state: Path | None = None,
    device: str = "auto",
    tensorboard: Path | None = None,
) -> None:
    """Train on every prefix of every user of the sources, nothing held out, with the system's own objective.

    Under ``torchrun`` its processes train together, each on a device of its own: with the result of one device up to
    rounding and dropout's masks (``mmm4rec.training.distributed``).

    Args:
        settings: see ``mmm4rec.config.pretrain_settings``.
        domains: the prepared sources; users never cross them.
        features: their features, in the same order, for systems that read them.
        out: the run folder; its weights are those of the last epoch.
        state: folder for the state of an unfinished training; a killed run goes on from it.
        device: ``auto``, ``cpu`` or ``cuda``.
        tensorboard: folder for TensorBoard events.

    Raises:
        UserError: files, settings or features do not fit the system, or its processes cannot train together.
    """
    with process_group(resolve_device(device), settings["system"]) as where:
        torch.manual_seed(settings["seed"])
        made_with = run_environment(settings, where) | {"processes": ranks()}
        events = load_events(domains)
        catalogue = load_catalogue(
            events,
            domains,
            features,
            settings["reads"],
            settings["missing_image"],
            text_dropped=model_class(settings["model"]).reads_text_dropped,
        )
        system = build(settings["model"], settings["settings"], catalogue, pretraining=True).to(where)
        events = events.to(where)
        with scalars(tensorboard if is_main() else None) as write:
            history = train(
                system,
                events,
                events.all_rows(),
                StageSettings(**settings["stage"]),
                pretrain_loss,
                seed=settings["seed"],
                time_aware="time" in settings["reads"],
                whole_catalogue=False,
                precision=settings["precision"],
                state_dir=state,
                made_for=settings["version"],
                on_epoch=write,
            )
        metrics = {"rows": len(events.all_rows()), "users": len(events.users)}
        if is_main():
            inputs = {"features": describe(catalogue, features)} if features else {}
            write_run(out, settings | inputs, system, history, metrics, made_with)
            remove_state(state)
