"""A trained run as a user uses it: recommendations in the user's own item ids."""

from pathlib import Path

import pyarrow.parquet as pq
import torch

from mmm4rec.errors import UserError
from mmm4rec.io import read_json
from mmm4rec.models.base import Rows, build
from mmm4rec.training.data import load_catalogue, load_events
from mmm4rec.training.run import read_weights


@torch.inference_mode()
def recommend(run: Path, history: list[str], k: int, times: list[int] | None = None) -> list[tuple[str, float]]:
    """The k best next items after a history, best first, with their scores; items of the history are left out.

    Args:
        run: a run folder of ``mmm4rec finetune``.
        history: the user's own item ids, oldest first.
        k: how many.
        times: unix seconds of the history; without them a time-aware system takes its without-time form.

    Raises:
        UserError: an item is unknown, times are not as many as items or not in their order, the run is not finished or
            a pre-training, or its domain is gone.
    """
    if not (run / "config.json").exists():
        raise UserError(f"{run}: not a finished run (no config.json)")
    settings = read_json(run / "config.json")
    if "domain_path" not in settings:
        raise UserError(f"{run}: a pre-training knows no items of yours; take a run that was fine-tuned on your domain")
    domain, features = Path(settings["domain_path"]), settings["features_path"]
    if not (domain / "items.parquet").exists():
        raise UserError(f"{domain / 'items.parquet'}: no such file; run this from the folder that {run} was made in")
    items: list[str] = pq.read_table(domain / "items.parquet", columns=["item"])["item"].to_pylist()
    known = {item: index for index, item in enumerate(items, start=1)}
    unknown = [item for item in history if item not in known]
    if unknown or not history:
        which = f"unknown items in the history: {', '.join(unknown)}; {run} knows those of {domain / 'items.parquet'}"
        raise UserError(which if unknown else "the history is empty")
    if times is not None and len(times) != len(history):
        raise UserError(f"{len(times)} times for {len(history)} items of the history; give one for each")
    if times is not None and times != sorted(times):
        raise UserError("times of a history go from the oldest event to the newest; sort it by them")
    events = load_events([domain])
    catalogue = load_catalogue(
        events, [Path(features)] if features else [], settings["reads"], settings["missing_image"]
    )
    system = build(settings["model"], settings["settings"], catalogue).eval()
    system.load_state_dict(read_weights(run))
    seen = torch.tensor([[known[item] for item in history]])
    kept = seen[:, -system.max_length :]
    length = kept.shape[1]
    stamps = has_time = None
    if "time" in settings["reads"] and events.times is not None:
        stamps, has_time = torch.zeros(1, system.max_length, dtype=torch.long), torch.tensor([times is not None])
        if times is not None:
            stamps[0, :length] = torch.tensor(times[-length:])
    rows = Rows(kept, torch.tensor([length]), torch.ones(1, dtype=torch.long), stamps, has_time)
    tables = system.item_tables()
    scores = system.scores(tables, system.users(tables, rows))[0]
    scores[seen[0] - 1] = -torch.inf
    best = scores.topk(min(k, len(items) - len(set(history))))
    return [(items[index], score) for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
