"""An optimiser step: batches encoded together, and nothing that waits for the device."""

from contextlib import nullcontext
from unittest.mock import Mock

import pytest
import torch
from small_systems import LEARNING, catalogue, small

from mmm4rec.config import read_system
from mmm4rec.models import base
from mmm4rec.nn import mamba
from mmm4rec.planning.measure import stages
from mmm4rec.training import loop
from mmm4rec.training.data import load_events
from mmm4rec.training.loop import finetune_loss, pretrain_loss, train_step

TRAINED = [(key, stage) for key in LEARNING for stage in stages(read_system(key)) if stage != "scratch"]
#: these ask how many tokens, dropped or masked items there are
WAITING = {
    ("mmsrec", "pretrain"),
    ("mmsrec", "finetune"),
    ("missrec", "pretrain"),
    ("unisrec", "pretrain"),
    ("s3rec", "indomain"),
}


@pytest.fixture
def events(make_domain):
    """40 users with 3 to 7 events, at times of their own."""
    generator = torch.Generator().manual_seed(1)
    starts = torch.randint(0, 12, (40,), generator=generator).tolist()
    rows = [[(s + k) % 12 + 1 for k in range(3 + s % 5)] for s in starts]
    return load_events([make_domain(rows, [[1_500_000_000 + 86_400 * k * k for k in range(len(r))] for r in rows])])


def step(system, events, stage, batches, precision="32-true"):
    """Loss and gradients of one."""
    optimizer = Mock(param_groups=[{"params": list(system.parameters())}])
    loss = finetune_loss if stage == "finetune" else pretrain_loss
    how = {"max_grad_norm": None, "time_aware": True, "whole_catalogue": stage != "pretrain", "precision": precision}
    total = train_step(system, events, batches, optimizer, loss, **how)
    return total, {name: p.grad for name, p in system.named_parameters()}


@pytest.mark.parametrize(("key", "stage"), TRAINED)
def test_batches_encoded_together_have_the_losses_and_gradients_of_each_alone(events, monkeypatch, key, stage):
    batches = events.all_rows()[torch.randperm(len(events.all_rows()))].split(16)
    assert len(batches) > 3
    assert len(batches[-1]) < 16
    dropouts = {name: 0.0 for name in read_system(key).settings if name.endswith("dropout")}
    results = []
    for positions in (0, 120, 10**6):
        monkeypatch.setitem(loop.POSITIONS_AT_ONCE, "cpu", positions)
        system = small(key, catalogue(events.n_items), pretraining=stage == "pretrain", perturbed=0.1, **dropouts)
        system.train()
        system.start_epoch(1)
        torch.manual_seed(0)
        results.append(step(system, events, stage, batches))
    for total, gradients in results[1:]:
        # the losses are of single precision, their sum is of double
        torch.testing.assert_close(total.float(), results[0][0].float())
        torch.testing.assert_close(gradients, results[0][1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_groups_in_mixed_precision(events, monkeypatch, stage):
    batches = events.all_rows()[torch.randperm(len(events.all_rows()))].split(16)
    totals = []
    for positions in (0, 120):
        monkeypatch.setitem(loop.POSITIONS_AT_ONCE, "cpu", positions)
        system = small(
            "mmm4rec", catalogue(events.n_items), pretraining=stage == "pretrain", perturbed=0.1, dropout=0.0
        )
        totals.append(step(system.train(), events, stage, batches, "bf16-mixed")[0])
    torch.testing.assert_close(totals[1], totals[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("key", ["unisrec", "missrec"])
def test_vectors_that_a_loss_makes_itself_get_their_gradients(events, key):
    """Of texts with words left out, beside the tables, whose gradients are gathered and go back apart."""
    known, share = catalogue(events.n_items, fewer_words=True), {"word_drop_batches": 1.0, "word_drop_ratio": 1.0}
    system = small(key, known, pretraining=True, perturbed=0.1, **share).eval()
    system.start_epoch(1)
    batch = events.all_rows()[::5]
    total, gradients = step(system, events, "pretrain", [batch])
    gathered = {name: g.clone() for name, g in gradients.items() if g is not None}
    system.zero_grad()
    loss = system.pretrain_loss(system.item_tables(), events.batch(batch, 6))
    loss.backward()
    torch.testing.assert_close(total.float(), loss.detach() * len(batch))
    direct = {name: p.grad for name, p in system.named_parameters() if p.grad is not None}
    torch.testing.assert_close(gathered, direct, rtol=1e-4, atol=1e-5)


def test_rows_of_similar_length_go_together_whatever_their_batch(events):
    rows = events.all_rows()[torch.randperm(15)]
    batches = [rows[:4], rows[4:8], rows[8:12], rows[12:]]
    lengths = events.lengths(rows[:12], 6)
    for most, n in ((int(lengths.sum()), 1), (int(lengths.sum()) - 1, 2), (1, 3)):
        *groups, (rest, alone) = loop._groups(events, batches, 6, most)
        assert len(groups) == n
        assert torch.equal(rest, rows[12:])
        assert (alone.size, alone.counts, alone.places.tolist()) == (3, [3], [0, 1, 2])
        assert sorted(torch.cat([some for some, _ in groups]).tolist()) == sorted(rows[:12].tolist())
        longest = [events.lengths(some, 6).max() for some, _ in groups]
        assert all(low <= events.lengths(some, 6).min() for low, (some, _) in zip(longest, groups[1:], strict=False))
        for some, group in groups:
            assert group.size == 4
            assert torch.equal(group.targets, rows[:12])
            number = torch.arange(3).repeat_interleave(torch.tensor(group.counts))
            assert torch.equal(rows[number * 4 + group.places], some)


def test_a_row_longer_than_a_group_leaves_none_empty(make_domain):
    events = load_events([make_domain([[k % 12 + 1 for k in range(51)], *[[1, 2]] * 5])])
    rows = torch.cat([events.all_rows()[49:50], events.all_rows()[50:]])
    assert events.lengths(rows, 50).tolist() == [50, 1, 1, 1, 1, 1]
    groups = list(loop._groups(events, rows.split(2), 50, 10))
    assert [len(some) for some, _ in groups] == [5, 1]


def test_without_a_limit_every_batch_goes_by_itself(events):
    batches = events.all_rows()[:15].split(4)
    for (some, group), batch in zip(loop._groups(events, batches, 6, 0), batches, strict=True):
        assert torch.equal(some, batch)
        assert torch.equal(group.targets, batch)
        assert group.counts == [len(batch)]


@pytest.mark.parametrize(("key", "stage"), [case for case in TRAINED if case not in WAITING])
def test_a_step_asks_the_device_for_nothing(events, monkeypatch, key, stage):
    """On the device `meta` tensors have a shape and no numbers: what would wait for one fails."""
    for costs in (loop.POSITIONS_AT_ONCE, base.CHUNK_COST, base.CHUNK_POSITIONS, mamba.BLOCK):
        monkeypatch.setitem(costs, "meta", costs["cuda"])
    # which knows no such device
    monkeypatch.setattr(torch, "autocast", lambda device_type, enabled: nullcontext())
    system = small(key, catalogue(events.n_items), pretraining=stage == "pretrain")
    system.train()
    system.start_epoch(1)
    device = torch.device("meta")
    total, gradients = step(system.to(device), events.to(device), stage, events.train_rows().split(16))
    assert total.device == device
    assert any(g is not None for g in gradients.values())
