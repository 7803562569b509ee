import torch

from mmm4rec.nn.dropout import Dropout


def test_share_scale_and_evaluation() -> None:
    torch.manual_seed(0)
    drop, x = Dropout(0.4), torch.ones(300, 1001)
    y = drop(x)
    assert set(y.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.6))}
    assert abs(float((y == 0).float().mean()) - 0.4) < 0.005
    assert abs(float(y.mean()) - 1) < 0.01
    assert drop.eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_edges_and_every_element_can_go() -> None:
    torch.manual_seed(0)
    dropped = sum((Dropout(0.5)(torch.ones(7)) == 0).int() for _ in range(200))
    assert ((dropped > 60) & (dropped < 140)).all()
    assert (Dropout(1.0)(torch.ones(9)) == 0).all()


def test_gradient_follows_the_mask_and_the_seed_decides_it() -> None:
    x = torch.ones(50, requires_grad=True)
    drop = Dropout(0.3)
    torch.manual_seed(1)
    y = drop(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, y.detach())
    torch.manual_seed(1)
    assert torch.equal(drop(x), y)
