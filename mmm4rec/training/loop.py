"""One training loop for every system and both stages: epochs, early stopping, state that survives a kill."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mmm4rec.config import StageSettings
from mmm4rec.errors import UserError
from mmm4rec.io import atomic
from mmm4rec.models.base import Batches, Rows, System, Tables
from mmm4rec.training.data import Events, send
from mmm4rec.training.distributed import average_gradients, divide_rows, is_main, ranks, require_same_epoch

log = logging.getLogger(__name__)

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "nadam": torch.optim.NAdam,  # which torch has no fused form of
}
SAVE_SECONDS = 60.0  # training state is written at most this often, and at the very end

#: positions of rows of one step that are encoded together: few alone leave a GPU waiting for the next kernel, and many
#: fill a processor's memory
POSITIONS_AT_ONCE = {"cpu": 2**12, "cuda": 2**16}

#: of (system, tables, rows, batches): the sum over the rows of a group of the loss, each divided by its batch's size
Loss = Callable[[System, Tables, Rows, Batches], Tensor]


def finetune_loss(system: System, tables: Tables, rows: Rows, batches: Batches) -> Tensor:
    """The loss on a target."""
    return system.finetune_loss(tables, rows) / batches.size


def pretrain_loss(system: System, tables: Tables, rows: Rows, batches: Batches) -> Tensor:
    """The loss of pre-training, and of a first stage on the target."""
    if len(batches.counts) == 1:
        return system.pretrain_loss(tables, rows)
    return system.in_batch_losses(tables, rows, batches)


@dataclass
class History:
    """What happened so far: a row an epoch, and where the best one is."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = float("-inf")
    below_best: int = 0
    finished: bool = False

    def record(self, row: dict[str, float], score: float | None, patience: int | None, *, settled: bool = True) -> bool:
        """Add an epoch; return whether it is the best so far.

        A tie is a best epoch too, so the latest of equals counts, and it resets the patience. Without a score the last
        epoch is the best. An epoch that is not ``settled`` costs no patience.
        """
        self.epochs.append(row)
        best = score is None or score >= self.best_score
        if best:
            self.best_epoch, self.below_best = len(self.epochs), 0
            self.best_score = self.best_score if score is None else score
        else:
            self.below_best += settled
            self.finished = patience is not None and self.below_best >= patience
        return best


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision where asked for; otherwise the precision of the weights."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16-mixed" else nullcontext()


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for every epoch, so that a resumed run draws what an uninterrupted one draws."""
    return (seed * 1_000_003 + epoch) % 2**63


def train(
    system: System,
    events: Events,
    targets: Tensor,
    stage: StageSettings,
    loss: Loss,
    *,
    seed: int,
    time_aware: bool,
    whole_catalogue: bool,
    precision: str = "32-true",
    validate: Callable[[], dict[str, float]] | None = None,
    state_dir: Path | None = None,
    made_for: Sequence[object] = (),
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    save_seconds: float = SAVE_SECONDS,
) -> History:
    """Train in place; afterwards the system holds the weights of the best epoch (of the last one without validation).

    Gradients of ``stage.accumulate`` batches are summed before a step. The item tables are computed once a step: the
    batches' gradients with respect to them are collected and go back through the item encoder once.

    Processes that are connected (``mmm4rec.training.distributed``) train together; rank 0 alone writes.

    Args:
        system: on the device of ``events``.
        events: what rows are cut from.
        targets: [R] int64 event indices in the host's memory, the training rows.
        stage: optimiser, batches, epochs, early stopping.
        loss: of the stage, ``finetune_loss`` or ``pretrain_loss``.
        seed: of shuffling and dropout.
        time_aware: give rows their times.
        whole_catalogue: item tables of all items (fine-tuning) or of a step's items only (pre-training).
        precision: ``32-true`` or ``bf16-mixed``.
        validate: metrics of the system as it is; None: no early stopping.
        state_dir: folder that keeps the state of an unfinished training.
        made_for: what else must be the same for that state to be gone on from (versions, say), as plain values.
        on_epoch: called with every finished epoch's number and row.
        save_seconds: write the state at most this often, and at the end; within epochs if there is but one process.

    Raises:
        UserError: the loss is not finite, or processes that train together would not go on from the same state.
    """
    if not len(targets):
        raise UserError("no training row: every ranked user needs at least four events to train on one")
    torch.set_float32_matmul_precision("high")  # TF32 products on GPUs, of what starts an epoch too
    device = events.items.device
    optimizer = make_optimizer(system, stage)
    history, best_weights = History(), _weights(system)
    within: dict[str, Any] | None = None  # how far an unfinished epoch is
    saved = state_dir / "state.pt" if state_dir else None
    # what a state must have been made with to be gone on from; more epochs may be asked for than before
    made_with = {
        "stage": stage.model_dump(exclude={"epochs"}),
        "settings": system.settings.model_dump(exclude_unset=True),  # a setting that came later changes none of these
        "run": [seed, precision, *made_for],
        "start": _fingerprint(*system.parameters(), *system.buffers()),
        "data": _fingerprint(targets, events.items, *([] if events.times is None else [events.times])),
    }
    if saved and saved.exists():
        state = torch.load(saved, weights_only=True, map_location="cpu")
        if len(state["history"]["epochs"]) > stage.epochs:
            log.warning("%s is of more than %d epochs: starting anew", saved, stage.epochs)
        elif state["made_with"] == made_with:
            system.load_state_dict(state["weights"])
            optimizer.load_state_dict(state["optimizer"])
            _keep_scalars_at_hand(optimizer)
            history, best_weights, within = History(**state["history"]), state["best_weights"], state.get("within")
            further = f" and {within['steps']} steps" if within else ""
            log.info("resumed after epoch %d%s from %s", len(history.epochs), further, saved)
        else:
            log.warning("%s is of a training with other settings or data: starting anew", saved)
    require_same_epoch(len(history.epochs))
    last_save = time.monotonic()

    def save(within: dict[str, Any] | None) -> None:
        nonlocal last_save
        assert saved is not None
        progressed = {"weights": system.state_dict(), "optimizer": optimizer.state_dict(), "within": within}
        progressed |= {"history": asdict(history), "best_weights": best_weights, "made_with": made_with}
        with atomic(saved) as part:
            torch.save(progressed, part)
        last_save = time.monotonic()

    def due() -> bool:
        return saved is not None and is_main() and time.monotonic() - last_save >= save_seconds

    steps = -(-len(targets) // (stage.batch_size * stage.accumulate))
    with _progress() as progress:
        completed = len(history.epochs) * steps + (within["steps"] if within else 0)
        task = progress.add_task("", total=stage.epochs * steps, completed=completed, loss=float("nan"))
        while len(history.epochs) < stage.epochs and not history.finished:
            epoch = len(history.epochs) + 1
            system.train()
            started = time.perf_counter()
            if within:
                _set_random_state(within["random"], device)
                started -= within["seconds"]
            else:
                torch.manual_seed(epoch_seed(seed, epoch))
                system.start_epoch(epoch)
                within = {"steps": 0, "loss": 0.0}
            divide_rows(system, epoch_seed(seed, epoch))
            total = torch.tensor(within["loss"], device=device, dtype=torch.float64)
            for step, batches in enumerate(_steps(targets, stage, seed, epoch), start=1):
                if step <= within["steps"]:
                    continue
                total += train_step(
                    system,
                    events,
                    batches,
                    optimizer,
                    loss,
                    max_grad_norm=stage.max_grad_norm,
                    time_aware=time_aware,
                    whole_catalogue=whole_catalogue,
                    precision=precision,
                )
                progress.update(task, advance=1)
                if ranks() == 1 and step < steps and due():
                    seconds = time.perf_counter() - started
                    random = _random_state(device)
                    save({"steps": step, "loss": float(total), "seconds": seconds, "random": random})
            within = None
            mean_loss = float(total) / len(targets)
            if mean_loss != mean_loss or mean_loss in (float("inf"), float("-inf")):
                raise UserError(
                    f"the loss of {type(system).__name__} is {mean_loss} in epoch {epoch}: lower its learning rate"
                )
            row = {"epoch": epoch, "loss": mean_loss, "seconds": time.perf_counter() - started}
            score = None
            if validate:
                started = time.perf_counter()
                metrics = validate()
                score = metrics[stage.stop_metric]
                row |= {f"valid_{k}": v for k, v in metrics.items()}
                row["valid_seconds"] = time.perf_counter() - started
            if history.record(row, score, stage.patience, settled=epoch > system.settling_epochs()):
                best_weights = _weights(system)
            progress.update(task, loss=mean_loss)
            log.info("epoch %d: %s", epoch, ", ".join(f"{k} {v:.5g}" for k, v in row.items() if k != "epoch"))
            if on_epoch:
                on_epoch(epoch, row)
            over = history.finished or epoch == stage.epochs  # a stage behind this one may be killed too
            if due() or (over and saved and is_main()):
                save(None)
    require_same_epoch(len(history.epochs))  # nobody goes on before rank 0 has written the state
    system.load_state_dict(best_weights)
    return history


def make_optimizer(system: System, stage: StageSettings) -> torch.optim.Optimizer:
    """The stage's optimiser of all that trains."""
    trained = [p for p in system.parameters() if p.requires_grad]
    return OPTIMIZERS[stage.optimizer](trained, lr=stage.learning_rate, weight_decay=stage.weight_decay)


def _keep_scalars_at_hand(optimizer: torch.optim.Optimizer) -> None:
    """Loading a state moves NAdam's product of momenta to the weights' device, where each step would wait for it."""
    for state in optimizer.state.values():
        if "mu_product" in state:
            state["mu_product"] = state["mu_product"].cpu()


def _random_state(device: torch.device) -> list[Tensor]:
    """Where the generators that training draws from are: the CPU's, and the device's."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1].cpu(), device)


def _fingerprint(*tensors: Tensor) -> list[float]:
    """Sums that tell whether tensors are those of an earlier run."""
    detached = [t.detach() for t in tensors]
    return [float(t.sum(dtype=torch.float64) + t.flatten()[::97].sum(dtype=torch.float64)) for t in detached]


def _steps(targets: Tensor, stage: StageSettings, seed: int, epoch: int) -> Iterator[tuple[Tensor, ...]]:
    """The epoch's rows in random order: batches, those of one optimiser step together. Short rests are kept."""
    generator = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    shuffled = targets[torch.randperm(len(targets), generator=generator)]
    for step in shuffled.split(stage.batch_size * stage.accumulate):
        yield step.split(stage.batch_size)


def train_step(
    system: System,
    events: Events,
    batches: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    *,
    max_grad_norm: float | None,
    time_aware: bool,
    whole_catalogue: bool,
    precision: str,
) -> Tensor:
    """One optimiser step over [B] event indices a batch, see ``train``; returns the loss summed over the rows.

    Indices are in the host's memory. Nothing here waits for the device; a system's loss may.
    """
    device, length = events.items.device, system.max_length
    ids = None if whole_catalogue else send(events.items_at_hand(torch.cat(tuple(batches)), length), device)
    with autocast(device, precision):
        tables = system.item_tables(ids)
    wanted = 1 + (system.n_items if ids is None else len(ids))
    assert [len(t) for t in tables] == [wanted] * len(tables), (
        f"{type(system).__name__}.item_tables: expected tables of {wanted} rows, the first for the padding, found "
        f"{[list(t.shape) for t in tables]}"
    )
    leaves = tuple(_leaf(t) for t in tables)
    total = torch.zeros((), device=device, dtype=torch.float64)
    most = POSITIONS_AT_ONCE[device.type] if system.encodes_together else 0
    for targets, group in _groups(events, batches, length, most):
        rows = events.batch(targets, length, time=time_aware, target_time=system.target_time_in_row)
        group = replace(group, places=send(group.places, device), targets=events.items[send(group.targets, device)])
        if ids is not None:
            rows, group = _renumber(rows, ids), replace(group, targets=_number(group.targets, ids))
        with autocast(device, precision):
            value = loss(system, leaves, rows, group)
        value.backward()
        total += value.detach() * group.size
    reached = [(t, leaf.grad) for t, leaf in zip(tables, leaves, strict=True) if leaf.grad is not None]
    if reached:
        torch.autograd.backward([t for t, _ in reached], [g.to(t.dtype) for t, g in reached])
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    average_gradients(trained)
    if max_grad_norm is not None:
        torch.nn.utils.clip_grad_norm_(trained, max_grad_norm * len(batches))  # that of their mean
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _groups(events: Events, batches: Sequence[Tensor], max_length: int, most: int) -> Iterator[tuple[Tensor, Batches]]:
    """Rows of a step that are encoded together: event indices [R], and of which batches they are.

    Rows of similar length go together, about ``most`` positions of them, whatever their batch: there is little to pad
    then, and little to start. There are as many groups as batches at most; 0: every batch is one. The short rest of an
    epoch, a batch of another size, goes by itself. Event indices stand for the batches' targets.
    """
    for size in dict.fromkeys(map(len, batches)):
        some = [batch for batch in batches if len(batch) == size]
        if not most or len(some) == 1:
            yield from ((batch, Batches(size, [size], torch.arange(size), batch)) for batch in some)
            continue
        rows = torch.cat(some)
        lengths = events.lengths(rows, max_length)
        shortest_first = lengths.argsort(stable=True)
        position = lengths[shortest_first].cumsum(0) - 1  # of each row's last one, among all
        n_positions = int(position[-1]) + 1
        n = min(-(-n_positions // most), len(some))
        group = torch.empty_like(lengths)
        group[shortest_first] = position * n // n_positions
        for k in group.unique().tolist():  # a row may be longer than a group
            index = (group == k).nonzero()[:, 0]  # batch by batch: those of a group are of any length
            counts = (index // size).bincount(minlength=len(some)).tolist()
            yield rows[index], Batches(size, counts, index % size, rows)


def _leaf(table: Tensor) -> Tensor:
    """A table that gradients of all batches are summed in: in float32 at least, whatever it was computed in."""
    leaf = table.detach()
    if leaf.is_floating_point():
        leaf = leaf.to(torch.promote_types(leaf.dtype, torch.float32))
    return leaf.requires_grad_(table.requires_grad)


def _renumber(rows: Rows, ids: Tensor) -> Rows:
    """The same rows with items as rows of tables made for ``ids`` (sorted)."""
    items = torch.where(rows.items > 0, torch.searchsorted(ids, rows.items) + 1, 0)
    return replace(rows, items=items, targets=_number(rows.targets, ids))


def _number(items: Tensor, ids: Tensor) -> Tensor:
    """Rows of tables made for ``ids`` (sorted), of items that are among them."""
    return torch.searchsorted(ids, items) + 1


def _weights(system: System) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in system.state_dict().items()}


def _progress() -> Progress:
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.4f}"), TimeRemainingColumn())
    return Progress(*columns, disable=not (sys.stderr.isatty() and is_main()), transient=True)
