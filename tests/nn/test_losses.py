import math

import pytest
import torch

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
