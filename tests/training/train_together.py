"""What `test_distributed.py` starts with torchrun: small trainings, whose results every rank writes."""

import sys
from pathlib import Path
from unittest.mock import patch

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
from small_systems import catalogue, small

from mmm4rec.config import StageSettings
from mmm4rec.errors import UserError
from mmm4rec.training.data import load_events
from mmm4rec.training.distributed import process_group, require_same_epoch
from mmm4rec.training.loop import OPTIMIZERS, POSITIONS_AT_ONCE, pretrain_loss, train

#: with random noise and augmented rows (UniSRec, MISSRec), clusters (MISSRec), random codes (VQRec), and without
SYSTEMS = ["mmm4rec", "unisrec", "missrec", "vqrec", "zesrec"]
WITHOUT_DROPOUT = {
    "unisrec": {"dropout": 0.0, "adaptor_dropout": 0.0},
    **{key: {"dropout": 0.0} for key in ("mmm4rec", "missrec", "vqrec", "zesrec")},
}
#: of which the augmented rows are, batch by batch, of one kind or the other
FEWER_WORDS = {"fewer_words": True, "word_drop_batches": 0.5, "word_drop_ratio": 0.5}


def trained(domain, key, state=None, *, epochs=2, batch_size=16, optimizer="adam", fewer_words=False, **settings):
    """Losses and weights of a small pre-training.

    SGD stands for Adam, which makes whole steps of mere rounding where a gradient should be 0 (biases of keys).
    """
    events = load_events([domain])
    torch.manual_seed(7)
    system = small(key, catalogue(events.n_items, fewer_words=fewer_words), pretraining=True, perturbed=0.1, **settings)
    stage = StageSettings(
        optimizer=optimizer, learning_rate=0.03, batch_size=batch_size, accumulate=2, epochs=epochs, max_grad_norm=2.5
    )
    options = {"seed": 3, "time_aware": True, "whole_catalogue": False, "state_dir": state, "save_seconds": 0.0}
    few = patch.dict(POSITIONS_AT_ONCE, cpu=40)  # a step's two batches make two groups
    with patch.dict(OPTIMIZERS, adam=torch.optim.SGD), few:
        history = train(system, events, events.all_rows(), stage, pretrain_loss, **options)
    return {"losses": [row["loss"] for row in history.epochs], "weights": system.state_dict()}


def main(folder: Path) -> None:
    domain = folder / "domain"
    with process_group(torch.device("cpu"), "mmm4rec"):
        rank = torch.distributed.get_rank()
        results = {key: trained(domain, key, **WITHOUT_DROPOUT[key]) for key in SYSTEMS}
        for key in ("unisrec", "missrec"):
            results[f"{key}, fewer words"] = trained(domain, key, **WITHOUT_DROPOUT[key], **FEWER_WORDS)
        results["lone row"] = trained(domain, "zesrec", batch_size=4, dropout=0.0)
        # dropout: drawn apart in the shares, though rows, noise and weights stay those of all
        results["dropout"] = trained(domain, "unisrec", epochs=3, optimizer="nadam")
        trained(domain, "unisrec", folder / "state", epochs=2, optimizer="nadam")
        results["resumed"] = trained(domain, "unisrec", folder / "state", epochs=3, optimizer="nadam")
        try:
            require_same_epoch(rank)
        except UserError as error:
            results["error"] = str(error)
        torch.save(results, folder / f"rank_{rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
