import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmm4rec.nn import blockwise, losses
from mmm4rec.nn.losses import full_cross_entropy, in_batch_cross_entropy


def test_full_by_hand():
    users, candidates = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]])
    # scores 0 and log 3: probabilities 1/4 and 3/4
    assert full_cross_entropy(users, candidates, torch.tensor([1])).item() == pytest.approx(math.log(4 / 3))


def test_in_batch_by_hand():
    users, candidates = torch.ones(3, 1), torch.tensor([[0.0], [math.log(2)], [0.0]])
    targets = torch.tensor([7, 8, 7])
    # kept: 7 sees 1, 2, 1 -> 1/4; 8 sees 2 of 4. masked: 7 sees 1 and 2 -> 1/3, 8 still sees both 7s
    kept = (2 * math.log(4) + math.log(2)) / 3
    masked = (2 * math.log(3) + math.log(2)) / 3
    assert in_batch_cross_entropy(users, candidates, targets, "kept").item() == pytest.approx(kept)
    assert in_batch_cross_entropy(users, candidates, targets, "masked").item() == pytest.approx(masked)


def test_duplicates_as_negatives_of_score_zero_by_hand():
    users, candidates = torch.ones(3, 1), torch.tensor([[math.log(3)], [math.log(2)], [math.log(3)]])
    # 7 sees 3, 2 and exp(0) = 1 -> 1/2; 8 sees 2 of 8
    loss = in_batch_cross_entropy(users, candidates, torch.tensor([7, 8, 7]), "zero_logit")
    assert loss.item() == pytest.approx((2 * math.log(2) + math.log(4)) / 3)


def test_masked_duplicates_get_no_gradient_from_each_other():
    users, candidates = torch.randn(2, 4), torch.randn(2, 4, requires_grad=True)
    in_batch_cross_entropy(users, candidates, torch.tensor([5, 5])).backward()
    assert torch.equal(candidates.grad, torch.zeros(2, 4))


@pytest.mark.parametrize("duplicates", ["masked", "kept", "zero_logit"])
def test_some_rows_of_a_batch_have_the_losses_that_they_have_among_all(duplicates):
    torch.manual_seed(0)
    users, candidates, targets = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([7, 8, 7, 9, 8])
    whole = in_batch_cross_entropy(users, candidates, targets, duplicates, reduction="sum")
    parts = [
        in_batch_cross_entropy(users[some], candidates, targets, duplicates, some, "sum")
        for some in (torch.tensor([3, 0]), torch.tensor([], dtype=torch.int64), torch.tensor([1, 2, 4]))
    ]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("duplicates", ["masked", "kept", "zero_logit"])
@pytest.mark.parametrize("scores", [1, 12, 2**19])  # a row at a time, two, all
@pytest.mark.parametrize("cached", [6, 2**18])  # passes of one row, of all
def test_in_batch_gradients_are_those_of_all_scores_at_once(monkeypatch, duplicates, scores, cached):
    torch.manual_seed(0)
    monkeypatch.setattr(blockwise, "CACHED", cached)
    monkeypatch.setitem(losses.IN_BATCH_AT_ONCE, "cpu", scores)
    vectors = [torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    targets, places = torch.tensor([7, 8, 7, 9, 8, 7]), torch.tensor([4, 0, 5])
    found = in_batch_cross_entropy(vectors[0][:3], vectors[1], targets, duplicates, places)
    logits = losses.without_duplicates(vectors[0][[1, 3, 4, 5, 0, 2]] @ vectors[1].T, targets, duplicates)
    wanted = F.cross_entropy(logits[places], places)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(loss, vectors) for loss in (found, wanted)))


@pytest.mark.parametrize("way", ["torch's", "own", "without torch's"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("rows", "items", "width"), [(1, 1, 3), (5, 7, 2), (130, 40, 8), (300, 9, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_at_a_time_equal_all_at_once(monkeypatch, way, reduction, rows, items, width, dtype):
    if way == "torch's" and not hasattr(F, "linear_cross_entropy"):
        pytest.skip("this torch has none")
    if way != "own":  # as on a GPU
        monkeypatch.setattr(losses, "OWN_WAY_ON", set())
    if way == "without torch's":
        monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    monkeypatch.setattr(losses, "SCORES_AT_ONCE", 4 * items + 1)  # four rows at once
    monkeypatch.setattr(blockwise, "CACHED", 2 * items)  # passes of two
    draw = torch.Generator().manual_seed(0)
    users, candidates = (torch.randn(n, width, generator=draw, dtype=dtype) for n in (rows, items))
    targets = torch.randint(items, (rows,), generator=draw)
    weight = torch.randn((), generator=draw, dtype=dtype)
    found = []
    for loss in (
        lambda u, c: full_cross_entropy(u, c, targets, reduction),
        lambda u, c: F.cross_entropy(u @ c.T, targets, reduction=reduction),
    ):
        u, c = users.clone().requires_grad_(), candidates.clone().requires_grad_()
        value = loss(u, c)
        (value * weight).backward()
        found.append((value.detach(), u.grad, c.grad))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4 if dtype == torch.float32 else 1e-9, atol=1e-5)


def test_large_scores_and_sure_ones_are_neither_nan_nor_lost():
    users = torch.tensor([[1e4], [1.0], [0.0]], requires_grad=True)
    candidates = torch.tensor([[2.0], [-2.0], [1e4]], requires_grad=True)
    targets = torch.tensor([2, 2, 0])  # by far the best, and a tie
    loss = full_cross_entropy(users, candidates, targets, "sum")
    assert loss.item() == pytest.approx(math.log(3))
    of_users, of_candidates = torch.autograd.grad(loss, (users, candidates))
    assert of_users[:2].tolist() == [[0], [0]]
    assert of_users[2].item() == pytest.approx(1e4 / 3 - 2)
    assert of_candidates.tolist() == [[0], [0], [0]]
    far = torch.tensor([1, 1, 0])
    assert full_cross_entropy(users, candidates, far, "sum").item() == pytest.approx(1e8 + 2e4 + 1e4 + 2 + math.log(3))


def test_a_loss_without_gradients_and_one_of_no_rows():
    users, candidates, targets = torch.randn(3, 2), torch.randn(4, 2), torch.tensor([0, 1, 3])
    with torch.inference_mode():
        loss = full_cross_entropy(users, candidates, targets)
    assert loss.item() == pytest.approx(F.cross_entropy(users @ candidates.T, targets).item())
    none = full_cross_entropy(users[:0].requires_grad_(), candidates, targets[:0], "sum")
    none.backward()
    assert none.item() == 0


def test_mixed_precision_leaves_the_scores_as_they_are():
    users, candidates, targets = torch.randn(5, 8), torch.randn(30, 8), torch.randint(30, (5,))
    expected = full_cross_entropy(users, candidates, targets)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(full_cross_entropy(users, candidates, targets), expected)
    halves = full_cross_entropy(users.bfloat16(), candidates.bfloat16(), targets)
    torch.testing.assert_close(
        halves, full_cross_entropy(users.bfloat16().float(), candidates.bfloat16().float(), targets)
    )


def test_rows_of_scores_begin_where_a_register_does_and_few_stand_at_once(monkeypatch):
    monkeypatch.setattr(losses, "SCORES_AT_ONCE", 200)
    product, made = torch.mm, []
    monkeypatch.setattr(torch, "mm", lambda *v, out: made.append((out.shape, out.stride())) or product(*v, out=out))
    full_cross_entropy(torch.randn(9, 8), torch.randn(40, 8), torch.randint(40, (9,)))
    assert made == [((5, 40), (48, 1)), ((4, 40), (48, 1))]
    assert [blockwise.aligned(n) for n in (1, 16, 17, 32)] == [16, 16, 32, 32]


def test_it_is_differentiated_once():
    users, candidates = torch.randn(3, 2, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    loss = full_cross_entropy(users, candidates, torch.tensor([0, 1, 3]))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        loss.backward()


@pytest.mark.parametrize("learns", [(True, False), (False, True)], ids=["users", "candidates"])
def test_what_takes_no_gradient_costs_no_product(learns):
    vectors = [torch.randn(n, 8, requires_grad=needed) for n, needed in zip((9, 40), learns, strict=True)]
    targets = torch.randint(40, (9,))
    with FlopCounterMode(display=False) as counter:
        loss = full_cross_entropy(*vectors, targets)
        (found,) = torch.autograd.grad(loss, [v for v in vectors if v.requires_grad])
    assert counter.get_total_flops() == 2 * 2 * 9 * 40 * 8
    plain = F.cross_entropy(vectors[0] @ vectors[1].T, targets)
    torch.testing.assert_close(found, *torch.autograd.grad(plain, [v for v in vectors if v.requires_grad]))


def test_own_way_takes_three_products(monkeypatch):
    monkeypatch.setattr(losses, "SCORES_AT_ONCE", 200)
    users, candidates = torch.randn(9, 8, requires_grad=True), torch.randn(40, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        full_cross_entropy(users, candidates, torch.randint(40, (9,))).backward()
    assert counter.get_total_flops() == 3 * 2 * 9 * 40 * 8
    with FlopCounterMode(display=False) as counter:
        full_cross_entropy(users.detach(), candidates.detach(), torch.randint(40, (9,)))
    assert counter.get_total_flops() == 2 * 9 * 40 * 8
