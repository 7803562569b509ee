from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmm4rec.config import StageSettings
from mmm4rec.errors import UserError
from mmm4rec.models.base import Catalogue, build, length_chunks
from mmm4rec.nn.losses import full_cross_entropy
from mmm4rec.training import loop
from mmm4rec.training.data import load_events
from mmm4rec.training.loop import History, finetune_loss, pretrain_loss, train

SASREC = {"hidden_size": 8, "inner_size": 16, "layers": 1, "heads": 2, "dropout": 0.2, "max_length": 6}


@pytest.fixture
def events(make_domain):
    generator = torch.Generator().manual_seed(1)
    starts = torch.randint(0, 12, (40,), generator=generator).tolist()
    return load_events([make_domain([[(s + k) % 12 + 1 for k in range(3 + s % 5)] for s in starts])])


def stage(**changes):
    return StageSettings(**{"optimizer": "adam", "learning_rate": 0.01, "batch_size": 16, "epochs": 4} | changes)


def fresh(events, **changes):
    torch.manual_seed(3)
    return build("sasrec", SASREC | changes, Catalogue(events.n_items))


def run(system, events, how, **options):
    options = {"seed": 5, "time_aware": False, "whole_catalogue": True} | options
    return train(system, events, events.train_rows(), how, finetune_loss, **options)


def test_training_lowers_the_loss(events):
    history = run(fresh(events), events, stage(epochs=8))
    losses = [row["loss"] for row in history.epochs]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("max_grad_norm", [None, 1e-8])
def test_a_step_equals_plain_autograd_over_summed_batches(events, max_grad_norm):
    """A limit to the gradient's norm is one to that of their mean; so low a one is seen beside Adam's epsilon."""
    changes = {"optimizer": "adamw", "learning_rate": 0.1, "max_grad_norm": max_grad_norm}
    how = stage(epochs=1, batch_size=4, accumulate=100, **changes)
    system, plain = fresh(events, dropout=0.0), fresh(events, dropout=0.0)
    run(system, events, how)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.0)
    generator = torch.Generator().manual_seed(5 * 1_000_003 + 1)
    rows = events.train_rows()
    batches = rows[torch.randperm(len(rows), generator=generator)].split(4)
    for batch in batches:
        cut = events.batch(batch, 6)
        tables = plain.item_tables()
        full_cross_entropy(plain.encode(tables, cut), tables[0][1:], cut.targets - 1).backward()
    if max_grad_norm:
        torch.nn.utils.clip_grad_norm_(plain.parameters(), max_grad_norm * len(batches))
    optimizer.step()
    for (name, got), want in zip(system.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got, want, msg=lambda m, name=name: f"{name}: {m}")


def test_a_steps_items_only_equal_the_whole_catalogue(events):
    results = []
    for whole in (True, False):
        system = fresh(events, dropout=0.0)
        train(
            system,
            events,
            events.all_rows(),
            stage(epochs=2),
            pretrain_loss,
            seed=5,
            time_aware=False,
            whole_catalogue=whole,
        )
        results.append(system.state_dict())
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, msg=lambda m, name=name: f"{name}: {m}")


def test_the_same_seed_gives_the_same_weights_and_another_does_not(events):
    one, two, other = (fresh(events) for _ in range(3))
    run(one, events, stage())
    run(two, events, stage())
    run(other, events, stage(), seed=6)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.item.weight, other.item.weight)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_killed_run_resumes_bit_for_bit(events, tmp_path: Path, stop_after):
    def killed_at(epoch, row):
        if epoch == stop_after + 1:
            raise KeyboardInterrupt

    whole = fresh(events)
    expected = run(whole, events, stage(optimizer="nadam"), validate=lambda: {"ndcg@10": 0.0})
    with pytest.raises(KeyboardInterrupt):
        run(
            fresh(events), events, stage(optimizer="nadam"), validate=lambda: {"ndcg@10": 0.0},
            state_dir=tmp_path, save_seconds=0.0, on_epoch=killed_at,
        )  # fmt: skip
    torch.manual_seed(99)
    resumed = fresh(events)
    history = run(
        resumed,
        events,
        stage(optimizer="nadam"),
        validate=lambda: {"ndcg@10": 0.0},
        state_dir=tmp_path,
        save_seconds=0.0,
    )
    assert [row["loss"] for row in history.epochs] == [row["loss"] for row in expected.epochs]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("steps_taken", [1, 9, 13])
def test_a_run_killed_within_an_epoch_goes_on_from_its_last_step(events, tmp_path: Path, monkeypatch, steps_taken):
    how = stage(batch_size=8)
    assert -(-len(events.train_rows()) // 8) == 10
    whole = fresh(events)
    expected = run(whole, events, how)
    begun = []
    monkeypatch.setattr(type(whole), "start_epoch", lambda system, epoch: begun.append(epoch))
    taken = 0

    def killed(system, tables, rows, batches):
        nonlocal taken
        if taken == steps_taken:
            raise KeyboardInterrupt
        taken += 1
        return finetune_loss(system, tables, rows, batches)

    options = {"seed": 5, "time_aware": False, "whole_catalogue": True, "state_dir": tmp_path, "save_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        train(fresh(events), events, events.train_rows(), how, killed, **options)
    torch.manual_seed(99)
    resumed = fresh(events)
    calls = []

    def counted(*args):
        calls.append(args)
        return finetune_loss(*args)

    history = train(resumed, events, events.train_rows(), how, counted, **options)
    assert len(calls) == 4 * 10 - steps_taken
    assert begun == [1, 2, 3, 4]
    assert [row["loss"] for row in history.epochs] == [row["loss"] for row in expected.epochs]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_state_of_more_epochs_is_not_gone_on_from(events, tmp_path: Path, caplog):
    """Its best weights may be of an epoch that is not wanted now."""
    plain, again = fresh(events), fresh(events)
    run(plain, events, stage(epochs=2))
    run(fresh(events), events, stage(epochs=4), state_dir=tmp_path, save_seconds=0.0)
    assert len(run(again, events, stage(epochs=2), state_dir=tmp_path).epochs) == 2
    assert "more than 2 epochs: starting anew" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), again.parameters(), strict=True))


def test_state_of_another_version_is_not_gone_on_from(events, tmp_path: Path, caplog):
    for version in (1, 2):
        run(fresh(events), events, stage(epochs=1), state_dir=tmp_path, save_seconds=0.0, made_for=[version])
    assert "starting anew" in caplog.text


def test_what_an_epoch_begins_with_is_part_of_its_time(events, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock[0], monotonic=lambda: 0.0))
    monkeypatch.setattr(type(fresh(events)), "start_epoch", lambda system, epoch: clock.__setitem__(0, 100.0))
    assert run(fresh(events), events, stage(epochs=1)).epochs[0]["seconds"] == 100.0


def test_gradients_of_all_batches_are_summed_in_float32(events):
    """In mixed precision a table may be of half precision, whose sums lose the small ones."""
    seen = []

    def loss(system, tables, rows, batches):
        seen.extend(table.dtype for table in tables)
        return finetune_loss(system, tables, rows, batches)

    system = fresh(events)
    halves = system.item_tables
    system.item_tables = lambda ids=None: tuple(table.bfloat16() for table in halves(ids))
    train(system, events, events.train_rows(), stage(epochs=1), loss, seed=5, time_aware=False, whole_catalogue=True)
    assert set(seen) == {torch.float32}
    assert not torch.equal(system.item.weight, fresh(events).item.weight)


def test_state_of_other_settings_is_not_gone_on_from(events, tmp_path: Path):
    run(fresh(events), events, stage(epochs=1), state_dir=tmp_path, save_seconds=0.0)
    again = run(fresh(events), events, stage(epochs=2, learning_rate=0.5), state_dir=tmp_path)
    expected = run(fresh(events), events, stage(epochs=2, learning_rate=0.5))
    assert [row["loss"] for row in again.epochs] == [row["loss"] for row in expected.epochs]


def test_early_stopping_counts_epochs_below_the_best_and_ties_reset(events):
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.2, 0.1, 0.9])
    history = run(fresh(events), events, stage(epochs=7, patience=2), validate=lambda: {"ndcg@10": next(scores)})
    assert len(history.epochs) == 6
    assert history.best_epoch == 4


def test_epochs_that_only_prepare_cost_no_patience(events, monkeypatch):
    """VQRec's permutation is learned first; without this its vectors would never get a turn."""
    system = fresh(events)
    monkeypatch.setattr(system, "settling_epochs", lambda: 3)
    scores = iter([0.3, 0.2, 0.1, 0.1, 0.1, 0.9])
    history = run(system, events, stage(epochs=6, patience=2), validate=lambda: {"ndcg@10": next(scores)})
    assert len(history.epochs) == 5
    assert history.best_epoch == 1


def test_the_best_epochs_weights_are_kept(events):
    seen = []
    system = fresh(events)

    def validate():
        seen.append(system.item.weight.detach().clone())
        return {"ndcg@10": [0.1, 0.5, 0.2][len(seen) - 1]}

    run(system, events, stage(epochs=3), validate=validate)
    assert torch.equal(system.item.weight, seen[1])


def test_without_validation_the_last_epoch_counts():
    history = History()
    assert all(history.record({"epoch": k}, None, None) for k in (1, 2, 3))
    assert history.best_epoch == 3


def test_a_diverging_loss_is_one_sentence(events):
    system = fresh(events)
    with torch.no_grad():
        system.item.weight[1] = float("nan")
    with pytest.raises(UserError, match="the loss of SASRec is nan in epoch 1: lower its learning rate"):
        run(system, events, stage())


def test_chunks_of_similar_length_change_no_user_vector(events, monkeypatch):
    system = fresh(events).eval()
    rows = events.batch(events.all_rows(), 6)
    tables = system.item_tables()
    expected = system.encode(tables, rows)
    for cost in (0, 10, 10**9):
        monkeypatch.setitem(__import__("mmm4rec.models.base").models.base.CHUNK_COST, "cpu", cost)
        torch.testing.assert_close(system.users(tables, rows), expected)


def test_chunks_are_the_cheapest():
    # exact lengths cost nothing but the chunks: 3 chunks; dear chunks: one
    assert length_chunks([0, 5, 5, 0, 2], 1) == [(5, 1), (10, 2), (12, 4)]
    assert length_chunks([0, 5, 5, 0, 2], 1000) == [(12, 4)]
    # merging lengths 1 and 2 pads 5 positions, a chunk costs 6
    assert length_chunks([0, 5, 5, 0, 2], 6) == [(10, 2), (12, 4)] or length_chunks([0, 5, 5, 0, 2], 6) == [
        (5, 1),
        (12, 4),
    ]
