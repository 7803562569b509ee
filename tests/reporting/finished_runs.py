"""Run folders as training leaves them, small and with known values."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmm4rec.evaluation.metrics import summarise
from mmm4rec.io import write_json, write_parquet

COST = {
    "epochs": 3,
    "best_epoch": 2,
    "seconds": 9.0,
    "seconds_per_epoch": 3.0,
    "seconds_to_best": 8.0,
    "parameters": 10,
    "peak_memory_mib": 100.0,
    "users": 8442,
    "time": False,
}


def write_run(root: Path, system: str, seed: int, value: float, dataset="scientific", **config) -> Path:
    path = root / dataset / system / str(seed)
    settings = {"domain": dataset, "system": system, "seed": seed, "reads": ["ids"], "pretrained": False}
    settings |= {"mask_seen": False, "settings": {}, "stage": None}
    write_json(path / "config.json", settings | config)
    metrics = dict.fromkeys(("recall@10", "recall@50", "ndcg@10", "ndcg@50"), value)
    write_json(path / "metrics.json", {"test": metrics, **COST})
    write_json(path / "environment.json", {"device": "an abacus"})
    hits = np.arange(100) < round(100 * value)
    write_parquet(path / "ranks.parquet", pa.table({"user_id": np.arange(100), "rank": np.where(hits, 1, 99)}))
    return path


def write_ranks(path: Path, users: Sequence[int], ranks: Sequence[int]) -> Path:
    """Give a run other ranks, and the metrics that follow from them."""
    write_parquet(path / "ranks.parquet", pa.table({"user_id": users, "rank": ranks}))
    write_json(path / "metrics.json", {"test": summarise(ranks), **COST, "users": len(users)})
    return path
