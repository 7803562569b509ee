from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small_systems import catalogue, rows, small

from mmm4rec.config import StageSettings
from mmm4rec.errors import UserError
from mmm4rec.models.base import Catalogue
from mmm4rec.models.vqrec import item_codes, one_to_one, sinkhorn
from mmm4rec.training.data import load_events
from mmm4rec.training.finetune import freeze
from mmm4rec.training.loop import History, finetune_loss, train
from mmm4rec.training.run import read_weights, write_run

BATCH = rows([[3, 4, 5, 6, 7, 8], [1, 2, 3, 9, 0, 0], [11, 12, 10, 0, 0, 0]], [9, 10, 9])


def transferred(known=None, **settings):
    """Fine-tuned from pre-trained weights, as `load_pretrained` and `freeze` leave it."""
    pretrained = small("vqrec", pretraining=True, perturbed=0.3).state_dict()
    system = small("vqrec", known, **settings)
    own = system.state_dict()
    carried = {name: w for name, w in pretrained.items() if name in own and system.carried_over(name)}
    system.load_state_dict(carried, strict=False)
    freeze(system)
    return system


def scores(system):
    training = system.training
    tables = system.eval().item_tables()
    result = system.scores(tables, system.users(tables, BATCH)).detach()
    system.train(training)
    return result


# -- codes


def test_codes_lie_in_their_digits_block_and_items_without_text_have_its_first():
    system = small("vqrec")
    assert torch.equal(system.codes // 5, torch.arange(8).expand(13, 8))
    values = system.codes % 5
    assert not values[[0, 12]].any()
    assert values[1:12].min() == 1
    assert values.max() == system.values_used == 2  # eleven items with text and training events


def test_few_items_share_few_values():
    assert item_codes(catalogue(40), 4, 256)[1] == 9
    assert item_codes(catalogue(40), 4, 8)[1] == 8
    codes, used = item_codes(catalogue(2), 4, 256)
    assert used == 1
    assert (codes[1] % 257).tolist() == [1, 1, 1, 1]


def test_items_that_nobody_trains_on_have_codes_and_no_say_in_them():
    def codes(of_item_3, events):
        known = catalogue()
        known.text[3] = of_item_3
        known.popularity[3] = events
        torch.manual_seed(0)
        return item_codes(known, 4, 4)[0]

    first, second = codes(torch.ones(10), 0), codes(-50 * torch.ones(10), 0)
    others = [i for i in range(13) if i != 3]
    assert torch.equal(first[others], second[others])
    assert (first[3] % 5 > 0).all()


def test_a_domain_nobody_trains_on_and_one_without_any_text_have_codes():
    known = catalogue()
    assert (item_codes(Catalogue(12, known.text, has_text=known.has_text), 4, 4)[0][1:12] % 5 > 0).all()
    known.popularity[:] = 0
    assert (item_codes(known, 4, 4)[0][1:12] % 5 > 0).all()
    known.has_text[:] = False
    assert not (item_codes(known, 4, 4)[0] % 5).any()


def test_codes_repeat_under_a_seed_and_are_kept():
    first, again = small("vqrec"), small("vqrec")
    assert torch.equal(first.codes, again.codes)
    assert "codes" in first.state_dict()
    assert not first.carried_over("codes")


def test_an_item_is_the_mean_of_its_codes_vectors_and_a_score_a_cosine():
    system = small("vqrec", perturbed=0.3).eval()
    tables = system.item_tables()
    for i in range(13):
        mean = sum(system.code.weight[c] for c in system.codes[i].tolist()) / 8
        torch.testing.assert_close(tables[0][i], mean)
    users = system.users(tables, BATCH)
    cosines = F.cosine_similarity(users[:, None], tables[0][None, 1:], dim=-1)
    torch.testing.assert_close(system.scores(tables, users), cosines / 0.07, rtol=1e-4, atol=1e-4)


# -- pre-training


def test_the_semi_synthetic_negative_keeps_a_quarter_of_the_digits():
    torch.manual_seed(0)
    system = small("vqrec", pretraining=True)
    codes = system.codes[1].repeat(4000, 1)
    fakes = system.fake_codes(codes)
    assert torch.equal(fakes // 5, codes // 5)  # every digit stays in its block
    assert set((fakes % 5).unique().tolist()) == {1, 2}  # of the values in use
    assert abs(float((fakes != codes).float().mean()) - 0.75 / 2) < 0.01  # half of those drawn are the same again


def test_every_row_has_a_semi_synthetic_negative_the_first_too():
    """Published code leaves the first row's empty."""
    torch.manual_seed(0)
    system = small("vqrec", pretraining=True, fake_share=1.0)
    own = system.codes[BATCH.targets]
    fakes = system.fake_codes(own)
    assert (fakes % 5 > 0).all()  # a digit's first row is that of no value
    assert (fakes != own).any(1).tolist() == [True] * 3


@pytest.mark.parametrize("duplicates", ["masked", "zero_logit", "kept"])
def test_pretraining_loss_is_that_of_a_loop(duplicates):
    """A row's own target again in the batch is no negative, one of logit 0 (the authors), or one like all others."""
    system = small("vqrec", pretraining=True, perturbed=0.3, duplicates=duplicates).eval()
    fakes = system.codes[[4, 6, 8]]
    system.fake_codes = lambda codes: fakes
    tables = system.item_tables()
    users = system.users(tables, BATCH)
    losses, batch = [], [9, 10, 9]
    for b, (target, user) in enumerate(zip(batch, users, strict=True)):
        fake = system.code.weight[fakes[b]].mean(0)
        others = [t for c, t in enumerate(batch) if c != b and (t != target or duplicates == "kept")]
        vectors = [tables[0][target], *(tables[0][t] for t in others), fake]
        logits = [F.cosine_similarity(user, v, dim=0) / 0.07 for v in vectors]
        if duplicates == "zero_logit":
            logits += [torch.zeros(())] * (batch.count(target) - 1)
        losses.append(-F.log_softmax(torch.stack(logits), 0)[0])
    torch.testing.assert_close(system.pretrain_loss(tables, BATCH), sum(losses) / 3)


# -- the permutation


def test_sinkhorn_tends_to_rows_and_columns_of_sum_one():
    matrices = sinkhorn(torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0)), 50)
    torch.testing.assert_close(matrices.sum(-1), torch.ones(3, 6))
    torch.testing.assert_close(matrices.sum(-2), torch.ones(3, 6))


def test_a_drawn_permutation_is_hard_and_has_the_soft_ones_gradient():
    system = transferred()
    weights = torch.randn(8, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    drawn = system.drawn_permutation()
    torch.testing.assert_close(drawn, drawn.round())
    torch.testing.assert_close(drawn.sum(-1), torch.ones(8, 4))
    (gradient,) = torch.autograd.grad((drawn * weights).sum(), system.permutation)
    torch.manual_seed(1)
    noise = -torch.empty(8, 4, 4).exponential_().log()
    soft = sinkhorn((system.permutation + noise) / 0.7, 3)
    assert torch.equal(one_to_one(soft), drawn.argmax(-1))
    torch.testing.assert_close(gradient, torch.autograd.grad((soft * weights).sum(), system.permutation)[0])
    assert gradient.any()


def test_certain_matrices_give_their_permutation_and_vectors_move_with_it():
    system = transferred()
    order = torch.stack([torch.randperm(4) for _ in range(8)])
    with torch.no_grad():
        system.permutation.copy_(100 * F.one_hot(order, 4))
    before = system.code.weight.detach().view(8, 5, -1).clone()
    system.start_epoch(1)
    drawn = system.train().code_vectors().view(8, 5, -1)
    ranked = system.eval().code_vectors().view(8, 5, -1)
    assert torch.equal(drawn, ranked)
    for digit in range(8):
        assert torch.equal(ranked[digit, 0], before[digit, 0])
        assert torch.equal(ranked[digit, 1:], before[digit, 1:][order[digit]])


# -- the stages of fine-tuning


def gradients(system):
    system.zero_grad(set_to_none=True)
    system.train().finetune_loss(system.item_tables(), BATCH).backward()
    return {name.split(".")[0] for name, p in system.named_parameters() if p.grad is not None and p.grad.any()}


def test_first_the_permutation_learns_then_the_vectors():
    system = transferred(permutation_epochs=2)
    assert system.settling_epochs() == 2
    for epoch, learning in [(1, {"permutation"}), (2, {"permutation"}), (3, {"code", "norm"}), (4, {"code", "norm"})]:
        system.start_epoch(epoch)
        assert gradients(system) == learning
        assert {n for n, p in system.named_parameters() if p.grad is not None} == {
            n for n, p in system.named_parameters() if n.split(".")[0] in learning
        }


def test_the_switch_changes_no_score():
    system = transferred(permutation_epochs=1)
    untouched = scores(system)
    system.start_epoch(1)
    before = scores(system)
    system.start_epoch(2)
    assert torch.equal(scores(system), before)
    assert not torch.allclose(before, untouched)


def test_from_scratch_everything_learns_and_nothing_is_permuted():
    system = small("vqrec", perturbed=0.3)
    before = scores(system)
    for epoch in (1, 6):
        system.start_epoch(epoch)
        assert torch.equal(scores(system), before)
        assert gradients(system) == {"code", "norm", "position", "encoder"}
    assert not system.permutation.requires_grad
    assert system.settling_epochs() == 0


def test_the_published_permutation_has_no_gradient():
    system = transferred(defects=["zero_gradient_permutation"])
    system.start_epoch(1)
    assert gradients(system) == set()
    assert system.permutation.grad is not None
    assert not torch.equal(scores(system), scores(transferred()))  # re-assigned all the same


def test_without_epochs_for_it_nothing_is_permuted():
    system = transferred(permutation_epochs=0)
    system.start_epoch(1)
    assert gradients(system) == {"code", "norm"}


@pytest.fixture
def events(make_domain):
    return load_events([make_domain([[(s + k) % 12 + 1 for k in range(3 + s % 5)] for s in range(20)])])


def run(system, events, epochs=4, validate=lambda: {"ndcg@10": 0.0}, **options):
    stage = StageSettings(optimizer="adam", learning_rate=0.01, batch_size=16, epochs=epochs)
    return train(
        system, events, events.train_rows(), stage, finetune_loss,
        seed=5, time_aware=False, whole_catalogue=True, validate=validate, **options,
    )  # fmt: skip


def test_what_no_loss_reaches_does_not_move(events):
    system = transferred(permutation_epochs=2)
    states = [{name: t.clone() for name, t in system.state_dict().items()}]
    run(system, events, on_epoch=lambda *_: states.append({n: t.clone() for n, t in system.state_dict().items()}))

    def moved(a, b):
        return {n.split(".")[0] for n in states[0] if not torch.equal(states[a][n], states[b][n])}

    assert moved(0, 1) == {"permutation", "permuting"}
    assert moved(1, 2) == {"permutation"}
    assert moved(2, 3) == {"code", "norm", "permuting"}
    assert moved(3, 4) == {"code", "norm"}


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_killed_run_resumes_bit_for_bit_across_the_stages(events, tmp_path, stop_after):
    def killed_at(epoch, row):
        if epoch == stop_after + 1:
            raise KeyboardInterrupt

    whole = transferred(permutation_epochs=2)
    expected = run(whole, events)
    with pytest.raises(KeyboardInterrupt):
        run(transferred(permutation_epochs=2), events, state_dir=tmp_path, save_seconds=0.0, on_epoch=killed_at)
    resumed = transferred(permutation_epochs=2)
    torch.manual_seed(99)
    history = run(resumed, events, state_dir=tmp_path)
    assert [row["loss"] for row in history.epochs] == [row["loss"] for row in expected.epochs]
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("best", [1, 3])
def test_the_best_epochs_weights_rank_as_they_did_whatever_its_stage(events, best, tmp_path):
    system = transferred(permutation_epochs=2)
    ranked = []

    def validate():
        ranked.append(scores(system))
        return {"ndcg@10": float(len(ranked) == best)}

    run(system, events, validate=validate)
    assert torch.equal(scores(system), ranked[best - 1])
    write_run(tmp_path / "run", {}, system, History(), {}, {})
    with torch.inference_mode():  # a saved run is read like this
        again = small("vqrec", permutation_epochs=2)
        again.load_state_dict(read_weights(tmp_path / "run"))
        assert (bool(again.transferred), bool(again.permuting)) == (True, best == 1)
        assert torch.equal(scores(again), ranked[best - 1])


def test_wrong_settings_are_one_sentence():
    with pytest.raises(UserError, match="not a multiple of heads 3"):
        small("vqrec", heads=3)
    with pytest.raises(UserError, match="zero_gradient_permutation"):
        small("vqrec", defects=["ceil"])


def test_one_to_one_takes_the_best_pair_again_and_again():
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.3, 0.2], [0.6, 0.5, 0.4]])
    assert one_to_one(scores).tolist() == [0, 2, 1]  # .9 first, then .5 of what is left, then .2
    assert one_to_one(torch.zeros(2, 3, 3)).tolist() == [[0, 1, 2]] * 2  # ties: the first


def test_no_code_is_lost_on_the_way():
    """With each row's largest entry a fifth of the pre-trained vectors would be dropped (`lost_codes`)."""
    torch.manual_seed(0)
    scores = torch.randn(4, 256, 256)
    assert all(sorted(row) == list(range(256)) for row in one_to_one(scores).tolist())
    for defects in ([], ["lost_codes"]):
        system = transferred(defects=defects)
        whole = [sorted(order) == [0, 1, 2, 3] for order in system.best_permutation().tolist()]
        drawn = system.drawn_permutation().detach().round()
        assert (drawn.sum(-1) == 1).all()
        assert all(whole) == bool((drawn.sum(-2) == 1).all()) == (not defects)


def test_the_published_codes_lost_codes_are_those_of_a_draw_with_noise():
    """The authors' code keeps 79 % of 257 vectors a digit (a third of all would be lost without the noise)."""
    known = replace(catalogue(2000), text=torch.randn(2001, 10), has_text=torch.arange(2001) > 0)
    system = small("vqrec", known, values=256, defects=["lost_codes"])
    system.permutation.data.normal_(std=0.02)
    kept = [len(set(order)) / 256 for order in system.last_permutation().tolist()]
    assert sum(kept) / len(kept) == pytest.approx(0.79, abs=0.03)
