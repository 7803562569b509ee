"""An optimiser step as training takes it, and the least that it could cost."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch.nn.functional as F
from torch import Tensor

from benchmarks.roofline import Work, count_operations
from mmm4rec.models import base
from mmm4rec.planning.measure import Subject
from mmm4rec.training.loop import make_optimizer, train_step

OPTIMIZER_PASSES = 7  # weights, gradient and two moments are read; weights and moments written


class Step:
    """A step of some batches of a system, over and over the same rows."""

    def __init__(self, subject: Subject, batches: int | None = None) -> None:
        assert subject.how is not None, "nothing is trained"
        self.subject, self.how, self.loss = subject, subject.how, subject.loss
        self.rows = subject.rows[: self.how.batch_size * (batches or self.how.accumulate)]
        self.optimizer = make_optimizer(subject.system, self.how)
        subject.system.train()
        subject.system.start_epoch(1)

    def __call__(self) -> Tensor:
        """Take one."""
        return train_step(
            self.subject.system,
            self.subject.events,
            self.rows.split(self.how.batch_size),
            self.optimizer,
            self.loss,
            max_grad_norm=self.how.max_grad_norm,
            time_aware=self.subject.time_aware,
            whole_catalogue=self.subject.stage != "pretrain",
            precision="32-true",
        )

    def work(self) -> Work:
        """The least of a step: operations as counted without padding, weights and features touched once.

        Weights are read forward and back, their gradients written, and the optimiser passes over them; features of the
        whole catalogue are read forward and, for their adapters' gradient, back.
        """
        system = self.subject.system
        trained = {p for group in self.optimizer.param_groups for p in group["params"]}
        weights = sum(_bytes(p) * (3 + OPTIMIZER_PASSES if p in trained else 2) for p in system.parameters())
        features = 0 if self.subject.stage == "pretrain" else sum(map(_bytes, system.buffers()))
        with without_padding():
            operations = count_operations(self)
        return Work(operations, weights + 2 * features)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@contextmanager
def without_padding() -> Iterator[None]:
    """Rows go through a system in chunks of one length each; no loss or kernel hides operations from the counter."""
    with mock.patch.dict(base.CHUNK_COST, cpu=0, cuda=0), mock.patch("mmm4rec.nn.ssd._kernels", return_value=None):
        if not hasattr(F, "linear_cross_entropy"):
            yield
            return
        plain = F.linear_cross_entropy

        def in_one(*args: Any, options: Any = None, **kwargs: Any) -> Tensor:
            return plain(*args, **kwargs)

        with mock.patch.object(F, "linear_cross_entropy", in_one):
            yield
