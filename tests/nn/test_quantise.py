import pytest
import torch

from mmm4rec.nn import quantise
from mmm4rec.nn.quantise import ProductQuantiser


@pytest.fixture
def vectors():
    """Points of a plane that lies askew in eight dimensions, far from the origin."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(300, 2, generator=draw) @ torch.randn(2, 8, generator=draw) + 20


def error(vectors, quantiser):
    return float((vectors - quantiser.decode(quantiser.codes(vectors))).square().sum(1).mean())


def fit(vectors, *args, **options):
    torch.manual_seed(1)
    return ProductQuantiser(vectors, *args, **options)


def test_codes_are_the_nearest_decoded_vectors(vectors):
    quantiser = fit(vectors, 2, 3)
    every = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    best = torch.cdist(vectors.double(), quantiser.decode(every).double()).argmin(1)
    assert (quantiser.codes(vectors) == every[best]).float().mean() > 0.99  # but for rounding


def test_the_rotation_is_one_and_saves_error(vectors):
    quantiser = fit(vectors, 4, 16)
    torch.testing.assert_close(quantiser.rotation @ quantiser.rotation.T, torch.eye(8), atol=1e-5, rtol=0)
    assert error(vectors, quantiser) < 0.5 * error(vectors, fit(vectors, 4, 16, rotations=0, passes=30))


def test_more_values_save_error(vectors):
    errors = [error(vectors, fit(vectors, 4, values)) for values in (1, 4, 16)]
    assert errors == sorted(errors, reverse=True)
    torch.testing.assert_close(errors[0], float(vectors.var(0, correction=0).sum()), rtol=1e-3, atol=0)


def test_a_value_a_vector_has_no_error(vectors):
    assert error(vectors[:20], fit(vectors[:20], 4, 20)) < 1e-4


def test_a_width_that_the_digits_do_not_divide(vectors):
    quantiser = fit(vectors, 3, 16)
    codes = quantiser.codes(vectors)
    assert codes.shape == (300, 3)
    assert quantiser.decode(codes).shape == (300, 8)
    assert error(vectors, quantiser) < 0.1 * float(vectors.var(0).sum())


def test_the_same_draw_gives_the_same_codes(vectors):
    first = fit(vectors, 4, 16).codes(vectors)
    assert torch.equal(first, fit(vectors, 4, 16).codes(vectors))
    assert not torch.equal(first, ProductQuantiser(vectors, 4, 16).codes(vectors))


def test_it_is_fitted_on_a_sample_of_many(vectors, monkeypatch):
    monkeypatch.setattr(quantise, "MOST_FITTED", 50)
    quantiser = fit(vectors, 4, 16)
    assert not torch.equal(quantiser.centre, vectors.mean(0))
    assert error(vectors, quantiser) < 0.2 * float(vectors.var(0).sum())
