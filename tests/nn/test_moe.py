import pytest
import torch

from mmm4rec.nn.moe import MoEAdaptor


@pytest.fixture
def adaptor():
    torch.manual_seed(0)
    adaptor = MoEAdaptor(features=5, width=4, experts=3, dropout=0.2)
    for parameter in adaptor.parameters():
        parameter.data.normal_()
    return adaptor


def test_equals_the_equations(adaptor):
    v = torch.randn(6, 5)
    adaptor.eval()
    weights = adaptor.experts.weight.view(3, 4, 5)
    for got, x in zip(adaptor(v), v, strict=True):
        shares = (x @ adaptor.gate).softmax(0)
        expected = sum(shares[k] * weights[k] @ (x - adaptor.shift[k]) for k in range(3))
        torch.testing.assert_close(got, expected)


def test_starts_with_equal_experts_and_noise_of_0_703():
    """W_k v is the k-th unit vector here, so that the result is the experts' shares."""
    torch.manual_seed(0)
    adaptor = MoEAdaptor(features=1, width=3, experts=3, dropout=0.0)
    adaptor.experts.weight.data = torch.eye(3).reshape(9, 1)
    v = torch.ones(20_000, 1)
    torch.testing.assert_close(adaptor.eval()(v), torch.full((20_000, 3), 1 / 3))
    shares = adaptor.train()(v).log()
    between = (shares[:, 0] - shares[:, 1]).std()
    assert between.item() == pytest.approx(0.7031 * 2**0.5, rel=0.03)


def test_dropout_is_on_the_features_and_each_expert_draws_its_own():
    torch.manual_seed(0)
    adaptor = MoEAdaptor(features=1, width=2, experts=2, dropout=0.2)
    adaptor.experts.weight.data = torch.eye(2).reshape(4, 1)
    adaptor.gate.data.fill_(0.0)
    adaptor.noise.data.fill_(-100.0)  # next to no noise: shares are halves
    kept = adaptor.train()(torch.ones(20_000, 1)) > 0
    assert kept.float().mean(0).tolist() == pytest.approx([0.8, 0.8], abs=0.02)
    assert kept.all(1).float().mean().item() == pytest.approx(0.64, abs=0.02)


def test_every_parameter_trains():
    torch.manual_seed(0)
    adaptor = MoEAdaptor(features=5, width=4, experts=3, dropout=0.2)
    (adaptor(torch.randn(6, 5)) * torch.randn(6, 4)).sum().backward()
    assert [n for n, p in adaptor.named_parameters() if not p.grad.any()] == []
