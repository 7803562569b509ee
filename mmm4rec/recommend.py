"""A trained run as a user uses it: recommendations in the user's own item ids."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from mmm4rec.data.parse import LATEST, read_interactions
from mmm4rec.errors import UserError
from mmm4rec.evaluation.ranking import ROWS_AT_ONCE, seen
from mmm4rec.io import read_json, write_parquet, write_text
from mmm4rec.models.base import System, build
from mmm4rec.training.data import Events, items_digest, load_catalogue, load_events, raw_item_ids
from mmm4rec.training.run import read_weights

log = logging.getLogger(__name__)

ENDINGS = (".parquet", ".csv", ".tsv")
SCORES_AT_ONCE = 2**24  # users times items: 64 MiB in float32


@dataclass(frozen=True)
class Trained:
    """A finished run, ready to be asked.

    Attributes:
        system: in evaluation mode.
        items: [N] the user's own ids, as strings.
        timed: whether rows have times: the system reads them and the domain has some.
    """

    system: System
    items: pl.Series
    timed: bool


def recommend(run: Path, history: list[str], k: int, times: list[int] | None = None) -> list[tuple[str, float]]:
    """The k best next items after a history, best first, with their scores; items of the history are left out.

    Args:
        run: a run folder of ``mmm4rec finetune``.
        history: the user's own item ids, oldest first.
        k: how many.
        times: unix seconds of the history; without them a time-aware system takes its without-time form.

    Raises:
        UserError: an item is unknown, times are not as many as items, not in their order or no unix seconds, the run is
            not finished or a pre-training, or its domain is gone or has other items by now.
    """
    trained = _load(run)
    if not history:
        raise UserError("the history is empty")
    if times is not None and len(times) != len(history):
        raise UserError(f"{len(times)} times for {len(history)} items of the history; give one for each")
    if times is not None and times != sorted(times):
        raise UserError("times of a history go from the oldest event to the newest; sort it by them")
    if times and not 0 <= times[0] <= times[-1] <= LATEST:
        raise UserError(
            f"times of a history are unix seconds since 1970, found {times[0]} to {times[-1]}; divide milliseconds by "
            "1000"
        )
    asked = pl.DataFrame({"item": history}, {"item": pl.String}).with_columns(
        user=0, timestamp=pl.Series(times, dtype=pl.Int64) if times else pl.lit(None, pl.Int64)
    )
    known = _numbered(trained, asked)
    if len(known) < len(asked):
        unknown = asked.filter(~pl.col("item").is_in(trained.items.implode()))["item"]
        raise UserError(
            f"unknown items in the history: {', '.join(map(repr, unknown))}; {run} knows those of "
            f"{_items_file(_settings(run))}; ids that are hard to write here can stand in a file, `--histories`"
        )
    best = _best(trained, known, k)
    return list(best.select("item_id", "score").iter_rows())


def recommend_all(run: Path, histories: Path, k: int) -> pl.DataFrame:
    """The k best next items after each user's history.

    Events of items that the run does not know are left out, and so are users without any other; the log says how many.

    Args:
        run: a run folder of ``mmm4rec finetune``.
        histories: events of any users, as own interactions (``mmm4rec.data.parse.read_interactions``).
        k: how many.

    Returns:
        ``user_id``, ``rank`` (1 is best), ``item_id`` (string), ``score``; users in the order of the file.

    Raises:
        UserError: the file is not as it should be, the run knows none of its items, the run is not finished or a
            pre-training, or its domain is gone or has other items by now.
    """
    trained = _load(run)
    events = read_interactions(histories).whole().with_columns(pl.col("item").cast(pl.String))
    if events.is_empty():
        raise UserError(f"{histories}: there is no event in it")
    order = "position" if "position" in events.columns else "timestamp"
    if order == "timestamp":  # as in preparation: what stands twice counts once
        events = events.unique(keep="first", maintain_order=True)
    if "timestamp" not in events.columns:
        events = events.with_columns(timestamp=pl.lit(None, pl.Int64))
    first = pl.col("row").first().over("user")
    events = events.with_row_index("row").sort(first, order, maintain_order=True)
    known = _numbered(trained, events)
    if known.is_empty():
        raise UserError(
            f"{histories}: {run} knows none of its items; are ids written alike? It has {events['item'][0]!r}, the run "
            f"{trained.items[0]!r}"
        )
    users, of = known["user"].n_unique(), events["user"].n_unique()
    log.log(
        logging.WARNING if 2 * len(known) < len(events) else logging.INFO,
        "%s: %d of %d events are of known items; %d of %d users have one",
        *(histories, len(known), len(events), users, of),
    )
    return _best(trained, known, k).rename({"user": "user_id"})


def write(path: Path, table: pl.DataFrame) -> None:
    """Write a table as its path's ending, one of ``ENDINGS``, says."""
    assert path.suffix in ENDINGS, path
    if path.suffix == ".parquet":
        write_parquet(path, table.to_arrow(compat_level=pl.CompatLevel.oldest()))
    else:
        write_text(path, table.write_csv(separator="," if path.suffix == ".csv" else "\t"))


def _settings(run: Path) -> dict[str, Any]:
    """Settings of a finished run."""
    if not (run / "config.json").exists():
        raise UserError(f"{run}: not a finished run (no config.json)")
    settings = read_json(run / "config.json")
    if "domain_path" not in settings:
        raise UserError(f"{run}: a pre-training knows no items of yours; take a run that was fine-tuned on your domain")
    return settings


def _items_file(settings: dict[str, Any]) -> Path:
    return Path(settings["domain_path"]) / "items.parquet"


def _load(run: Path) -> Trained:
    """Build a run's system with its weights."""
    settings, weights = _settings(run), read_weights(run)
    path, features = _items_file(settings), settings["features_path"]
    if not path.exists():
        raise UserError(f"{path}: no such file; run this from the folder that {run} was made in")
    items = raw_item_ids(path.parent)
    made_of = read_json(run / "environment.json").get("items_sha256")  # None: a run made before it was recorded
    if made_of not in (None, items_digest(items)):
        raise UserError(f"{run} was made of another state of {path.parent}, with other items; train it again")
    events = load_events([path.parent])
    catalogue = load_catalogue(
        events, [path.parent], [Path(features)] if features else [], settings["reads"], settings["missing_image"]
    )
    system = build(settings["model"], settings["settings"], catalogue).eval()
    try:
        system.load_state_dict(weights)
    except RuntimeError:  # names or shapes
        raise UserError(
            f"{run}: its weights do not fit {path.parent} and its features as they are now; train it again"
        ) from None
    names = pl.Series(items.tolist(), dtype=pl.String)
    return Trained(system, names, "time" in settings["reads"] and events.times is not None)


def _numbered(trained: Trained, events: pl.DataFrame) -> pl.DataFrame:
    """The events of items that the run knows, with ``number``, 1..N."""
    numbers = pl.DataFrame({"item": trained.items}).with_row_index("number", offset=1)
    return events.join(numbers, on="item", how="inner", maintain_order="left")


@torch.inference_mode()
def _best(trained: Trained, known: pl.DataFrame, k: int) -> pl.DataFrame:
    """The k best items after each user's history: ``user``, ``rank``, ``item_id``, ``score``.

    Args:
        trained: the run.
        known: ``user``, ``number`` and ``timestamp`` (null where unknown) of events, user after user, oldest first.
        k: how many.
    """
    system, n_items = trained.system, len(trained.items)
    names = known["user"].unique(maintain_order=True)
    events, targets = _with_place(trained, known)
    tables = system.item_tables()
    parts = []
    for some in targets.split(max(1, min(ROWS_AT_ONCE, SCORES_AT_ONCE // n_items))):
        rows = events.batch(some, system.max_length, time=trained.timed)
        scores = system.scores(tables, system.users(tables, rows))
        row, item = seen(events, some)
        scores[row, item - 1] = -torch.inf
        parts.append(scores.topk(min(k, n_items)))
    score, index = (torch.cat(part) for part in zip(*parts, strict=True))
    width = score.shape[1]
    frame = pl.DataFrame(
        {
            "user": names.gather(pl.Series(torch.arange(len(names)).repeat_interleave(width).numpy())),
            "rank": torch.arange(1, width + 1, dtype=torch.int32).repeat(len(names)).numpy(),
            "item_id": trained.items.gather(pl.Series(index.flatten().numpy())),
            "score": score.flatten().numpy(),
        }
    )
    return frame.filter(pl.col("score") > -torch.inf)  # who has had nearly all of the items gets fewer


def _with_place(trained: Trained, known: pl.DataFrame) -> tuple[Events, Tensor]:
    """Histories, and behind each the place of what comes next: the events, and where those places are [U]."""
    user = torch.from_numpy(known["user"].rle_id().to_numpy().astype("int64"))
    counts = torch.bincount(user)
    targets = (counts + 1).cumsum(0) - 1
    at = torch.arange(len(user)) + user
    items = torch.ones(len(user) + len(counts), dtype=torch.long)
    items[at] = torch.from_numpy(known["number"].to_numpy().astype("int64"))
    times = timed = None
    if trained.timed:
        times, timed = torch.zeros_like(items), torch.zeros_like(items, dtype=torch.bool)
        times[at] = torch.from_numpy(known["timestamp"].fill_null(0).to_numpy().astype("int64"))
        timed[at] = torch.from_numpy(known["timestamp"].is_not_null().to_numpy().copy())
    events = Events(
        items=items,
        times=times,
        timed=timed,
        first=(targets - counts).repeat_interleave(counts + 1),
        offsets=torch.cat([torch.zeros(1, dtype=torch.long), targets + 1]),
        users=torch.arange(len(counts)),
        n_items=len(trained.items),
    )
    return events, targets
