import pytest
import torch
from small_systems import catalogue, rows, small

from mmm4rec.config import read_system
from mmm4rec.errors import UserError
from mmm4rec.models.base import build


def encoded(encoder, x):
    """The Transformer's last position of one row [L, D], from its blocks."""
    x = x[None]
    for attention, feed_forward in zip(encoder.attention, encoder.feed_forward, strict=True):
        x = feed_forward(attention(x, x, None, causal=True))
    return x[0, -1]


def test_equals_the_equations():
    system = small("fdsa", perturbed=0.3).eval()
    text = catalogue().text
    row = [3, 4, 12]  # 12 has no text
    states = []
    for encoder, vectors in (
        (system.encoder, system.item.weight),
        (system.feature_encoder, torch.relu(text @ system.feature.weight.T + system.feature.bias)),
    ):
        x = torch.stack([system.norm(vectors[i] + system.position.weight[p]) for p, i in enumerate(row)])
        states.append(encoded(encoder, x))
    user = system.norm(system.join.weight @ torch.cat(states) + system.join.bias)
    tables = system.item_tables()
    users = system.users(tables, rows([row]))
    torch.testing.assert_close(users[0], user)
    torch.testing.assert_close(system.scores(tables, users)[0], system.item.weight[1:] @ user)  # ids alone


def test_noise_features_are_an_option_that_a_saved_run_keeps():
    system = small("fdsa", defects=["noise_features"])
    text = system.feature.text
    assert text.shape == catalogue().text.shape
    assert text.std().item() == pytest.approx(0.02, rel=0.2)
    torch.manual_seed(5)
    again = build("fdsa", system.settings.model_dump(), catalogue())
    assert not torch.equal(again.feature.text, text)
    again.load_state_dict(system.state_dict())
    assert torch.equal(again.feature.text, text)
    assert "feature.text" not in small("fdsa").state_dict()


def test_an_unknown_defect_is_one_sentence():
    with pytest.raises(UserError, match=r"defects.0: expected 'noise_features', found 'noise'"):
        small("fdsa", defects=["noise"])


def test_its_settings_file_builds():
    system = build("fdsa", read_system("fdsa").settings, catalogue())
    assert system.join.weight.shape == (300, 600)
