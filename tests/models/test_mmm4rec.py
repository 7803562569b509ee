from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from mmm4rec.config import parse_config, read_system, resolve_system
from mmm4rec.errors import UserError
from mmm4rec.models.base import Catalogue, Rows, build
from mmm4rec.models.mmm4rec import MMM4Rec, MMM4RecSettings

N, L = 30, 8
SMALL = {
    "max_length": L,
    "hidden_size": 16,
    "inner_size": 12,
    "state_size": 4,
    "head_size": 8,
    "dropout": 0.0,
}
RELEASED = read_system("mmm4rec").released
SYSTEMS = ["mmm4rec", "mmm4rec_noid", "mmm4rec_scratch", "mmm4rec_notime", "mmm4rec_noshare", "mmm4rec_2layers"]


def catalogue(**changes: object) -> Catalogue:
    torch.manual_seed(1)
    text, image = torch.randn(N + 1, 10), torch.randn(N + 1, 6)
    text[0] = image[0] = 0
    has = torch.arange(N + 1) > 0
    return replace(Catalogue(N, text, image, has, has, has_time=True, all_timed=True), **changes)


def model(*, perturbed: bool = True, domain: Catalogue | None = None, **settings: object) -> MMM4Rec:
    """A small model in float64; ``perturbed`` moves every parameter off its start: nothing is zero by chance."""
    torch.manual_seed(2)
    system = MMM4Rec(MMM4RecSettings(**SMALL | settings), domain or catalogue())
    if perturbed:
        for p in system.parameters():
            p.data += 0.3 * torch.randn_like(p)
    return system.double().eval()


def rows(lengths: list[int], *, seed: int = 3, target_time: bool = False) -> Rows:
    torch.manual_seed(seed)
    size = torch.tensor(lengths)
    real = torch.arange(L) < size[:, None]
    shown = torch.arange(L) <= size[:, None] if target_time else real
    times = 1_500_000_000 + torch.randint(0, 90_000, (len(lengths), L)).cumsum(1)
    items = torch.randint(1, N + 1, (len(lengths), L))
    targets = torch.randint(1, N + 1, (len(lengths),))
    known = torch.ones(len(lengths), dtype=torch.bool)
    return Rows((items * real)[:, : max(lengths)], size, targets, times * shown, known)


def users(system: MMM4Rec, batch: Rows) -> torch.Tensor:
    with torch.no_grad():
        return system.encode(system.item_tables(), batch)


MIXED = [3, 8, 1, 5, 2, 7]


# -- items and candidates


def test_adapters_read_normalised_features() -> None:
    domain = catalogue()
    system = model(domain=domain)
    text, image, candidates = system.item_tables()
    x = F.normalize(domain.text.double(), dim=-1)
    wanted = x @ system.adapters["text"].weight.T + system.adapters["text"].bias
    wanted[1:] += system.modality_bias["text"]
    torch.testing.assert_close(text, wanted, atol=1e-6, rtol=1e-6)  # features are normalised in float32
    unit = F.normalize(text, dim=-1) + F.normalize(image, dim=-1)
    torch.testing.assert_close(candidates, unit / 0.8)
    h = torch.randn(2, 16, dtype=torch.float64)
    torch.testing.assert_close(system.scores((text, image, candidates), h), h @ unit[1:].T / 0.8)


@pytest.mark.parametrize("pad_candidate", [False, True])
def test_tables_of_some_items_are_rows_of_the_whole(pad_candidate: bool) -> None:
    system = model(pad_candidate=pad_candidate)
    ids = torch.tensor([4, 9, 30])
    some, whole = system.item_tables(ids), system.item_tables()
    for a, b in zip(some, whole, strict=True):
        torch.testing.assert_close(a, b[[0, 4, 9, 30]])


def test_modality_bias_starts_at_zero_and_is_per_item() -> None:
    system = model(perturbed=False)
    assert {name: tuple(p.shape) for name, p in system.modality_bias.items()} == {"text": (N, 16), "image": (N, 16)}
    assert all((p == 0).all() for p in system.modality_bias.values())
    assert model(pad_candidate=True).modality_bias["text"].shape == (N + 1, 16)
    assert len(model(with_id=False).modality_bias) == 0


def test_pretraining_is_without_bias_unless_asked() -> None:
    settings = MMM4RecSettings(**SMALL)
    assert len(MMM4Rec(settings, catalogue(), pretraining=True).modality_bias) == 0
    with_id = settings.model_copy(update={"pretrain_with_id": True})
    assert len(MMM4Rec(with_id, catalogue(), pretraining=True).modality_bias) == 2
    without = with_id.model_copy(update={"with_id": False})
    assert len(MMM4Rec(without, catalogue(), pretraining=True).modality_bias) == 0


def missing_images() -> Catalogue:
    domain = catalogue()
    image, has = domain.image.clone(), domain.has_image.clone()
    image[[5, 6]], has[[5, 6]] = 0, False
    return replace(domain, image=image, has_image=has)


def test_missing_image_zero_leaves_the_adapter_bias() -> None:
    system = model(domain=missing_images(), with_id=False)
    text, image, candidates = system.item_tables()
    bias = system.adapters["image"].bias
    torch.testing.assert_close(image[5], bias)
    torch.testing.assert_close(candidates[5], (F.normalize(text[5], dim=0) + F.normalize(bias, dim=0)) / 0.8)


def test_missing_image_mask_leaves_the_image_out() -> None:
    system = model(domain=replace(missing_images(), missing_image="mask"))
    text, image, candidates = system.item_tables()
    assert (image[5] == 0).all()
    assert (image[4] != 0).any()
    torch.testing.assert_close(candidates[5], F.normalize(text[5], dim=0) / 0.8)
    loss = system.finetune_loss((text, image, candidates), rows(MIXED))
    grads = torch.autograd.grad(loss, list(system.parameters()))
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("policy", ["zero", "mask"])
@pytest.mark.parametrize("lacking", [None, "image", "text"])
def test_missing_modalities_have_moderate_gradients_at_the_start(policy: str, lacking: str | None) -> None:
    """A LayerNorm of a zero vector would multiply them by a million, and NAdam's scales would never recover."""
    domain = replace(missing_images() if lacking is None else catalogue(**{lacking: None}), missing_image=policy)
    system = model(perturbed=False, domain=domain).float().train()
    batch = replace(rows([1, 2, 4]), items=torch.tensor([[5, 0, 0, 0], [6, 5, 0, 0], [5, 6, 6, 5]]))
    loss = system.finetune_loss(system.item_tables(), batch)
    grads = torch.autograd.grad(loss, list(system.parameters()), allow_unused=True)
    assert max(float(g.abs().max()) for g in grads if g is not None) < 1e4


@pytest.mark.parametrize("lacking", ["text", "image"])
def test_a_domain_with_one_modality(lacking: str) -> None:
    domain = catalogue(**{lacking: None})
    system = model(domain=domain)
    width = (domain.image if lacking == "text" else domain.text).shape[1]
    assert system.adapters[lacking].weight.shape == (16, width)
    assert torch.isfinite(users(system, rows(MIXED))).all()


def test_neither_modality_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="neither text nor image"):
        model(domain=catalogue(text=None, image=None))


# -- rows


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
def test_last_position_is_the_full_form_there(layers: int, released: bool) -> None:
    system = model(layers=layers, **(RELEASED if released else {}))
    batch = rows(MIXED)
    with torch.no_grad():
        tables = system.item_tables()
        full = system.outputs(tables, batch)
        last = system.encode(tables, batch)
    assert full.shape == (6, 8, 16)
    torch.testing.assert_close(last, full[torch.arange(6), batch.lengths - 1])


@pytest.mark.parametrize("method", ["quadratic", "chunked"])
def test_result_does_not_depend_on_batch_padding_or_method(method: str) -> None:
    system = model()
    other = model(ssd_method=method)
    batch = rows(MIXED)
    together = users(system, batch)
    for k, length in enumerate(MIXED):
        alone = batch.select(torch.tensor([k]), length)
        torch.testing.assert_close(users(other, alone)[0], together[k])


def test_what_padded_positions_hold_never_reaches_h() -> None:
    system = model()
    batch = rows([3, 8])
    items, times = batch.items.clone(), batch.times.clone()
    items[0, 3:] = 7
    times[0, 3:] = 1_700_000_000
    torch.testing.assert_close(users(system, replace(batch, items=items, times=times)), users(system, batch))


def test_only_the_released_reading_sees_the_targets_time() -> None:
    plain, leaky = rows(MIXED), rows(MIXED, target_time=True)
    full_rows = plain.lengths == L
    paper = model()
    assert not paper.target_time_in_row
    torch.testing.assert_close(users(paper, leaky), users(paper, plain))
    released = model(**RELEASED)
    assert released.target_time_in_row
    moved = (users(released, leaky) - users(released, plain)).abs().amax(1)
    assert (moved[~full_rows] > 1e-6).all()
    assert (moved[full_rows] < 1e-12).all()  # a row of full length has no slot for it


def test_times_matter_but_their_origin_does_not() -> None:
    system, batch = model(), rows([3, 8])
    real = batch.times > 0
    later = replace(batch, times=(batch.times + 86_400) * real)
    other = replace(batch, times=rows([3, 8], seed=9).times)
    torch.testing.assert_close(users(system, later), users(system, batch))
    assert (users(system, other) - users(system, batch)).abs().max() > 1e-4


def test_rows_without_times_take_the_form_without_time() -> None:
    system = model()
    batch = rows(MIXED)
    known = torch.tensor([True, False, True, False, True, False])
    mixed = users(system, replace(batch, has_time=known))
    torch.testing.assert_close(mixed[known], users(system, batch)[known])
    untimed = model(use_time="off", perturbed=False)
    untimed.load_state_dict({k: v for k, v in system.state_dict().items() if k in untimed.state_dict()})
    torch.testing.assert_close(mixed[~known], users(untimed, replace(batch, times=None, has_time=None))[~known])
    scrambled = batch.times.where(known[:, None], torch.randint(0, 2_000_000_000, (6, L)))
    torch.testing.assert_close(users(system, replace(batch, times=scrambled, has_time=known)), mixed)


@pytest.mark.parametrize("max_length", [1, 2, 7])
def test_one_event_of_history_and_odd_lengths(max_length: int) -> None:
    system = model(max_length=max_length)
    batch = rows([1, 1, 1])
    h = users(system, replace(batch, times=batch.times[:, :max_length]))
    assert h.shape == (3, 16)
    assert torch.isfinite(h).all()


def test_shared_block_on_both_streams_is_two_calls_of_it() -> None:
    shared, separate = model(), model(share_tissd=False)
    state = {}
    for name in separate.state_dict():
        state[name] = shared.state_dict()[
            name.replace("tissd.text.", "tissd.shared.").replace("tissd.image.", "tissd.shared.")
        ]
    separate.load_state_dict(state)
    batch = rows(MIXED)
    torch.testing.assert_close(users(shared, batch), users(separate, batch))


def test_chunks_by_length_change_nothing() -> None:
    system = model()
    batch = rows([1 + k % 8 for k in range(600)])
    with torch.no_grad():
        tables = system.item_tables()
        torch.testing.assert_close(system.users(tables, batch), system.encode(tables, batch))


def test_mixed_precision_gives_nearly_the_same() -> None:
    system = model(hidden_size=64, head_size=16, perturbed=False).float()
    batch = rows(MIXED)
    with torch.autocast("cpu", torch.bfloat16):
        tables = system.item_tables()
        h = system.encode(tables, batch)
        system.finetune_loss(tables, batch).backward()
    torch.testing.assert_close(h.detach().float(), users(system, batch), atol=0.1, rtol=0.05)
    assert all(p.grad.dtype == torch.float32 for p in system.parameters())
    assert all(torch.isfinite(p.grad).all() for p in system.parameters())


def test_dropout_masks_differ_between_modalities_and_signals() -> None:
    system = model(dropout=0.4).train()
    signals = []
    system.time_gaps.register_forward_hook(lambda _, __, out: signals.append(out))
    tables = system.item_tables()
    batch = rows([8] * 20)
    first, second = (system.encode(tables, batch) for _ in range(2))
    assert not torch.allclose(first, second)
    text, image = signals[0].chunk(2)
    assert not torch.allclose(text, image)


# -- losses


def test_paper_losses() -> None:
    system, batch = model(), rows(MIXED)
    batch = replace(batch, targets=torch.tensor([4, 4, 9, 2, 30, 1]))
    tables = system.item_tables()
    with torch.no_grad():
        scores = system.scores(tables, system.encode(tables, batch))
        finetune = F.cross_entropy(scores, batch.targets - 1, reduction="sum")
        own = scores[:, batch.targets - 1]
        own[0, 1] = own[1, 0] = -torch.inf
        pretrain = F.cross_entropy(own, torch.arange(6))
        torch.testing.assert_close(system.finetune_loss(tables, batch), finetune)
        torch.testing.assert_close(system.pretrain_loss(tables, batch), pretrain)
    assert system.extra_candidates(tables) is None


def test_padding_competes_in_the_released_reading() -> None:
    system, batch = model(**RELEASED), rows(MIXED)
    with torch.no_grad():
        tables = system.item_tables()
        h = system.encode(tables, batch)
        scores = h @ torch.cat([system.extra_candidates(tables), system.candidates(tables)]).T
        wanted = F.cross_entropy(scores, batch.targets, reduction="sum")
        torch.testing.assert_close(system.finetune_loss(tables, batch), wanted)


# -- variants, settings, weights


@pytest.mark.parametrize("preset", ["paper", "released"])
@pytest.mark.parametrize("key", SYSTEMS)
def test_every_variant_trains_every_parameter(key: str, preset: str) -> None:
    file = read_system(key)
    settings = file.settings | (file.released if preset == "released" else {}) | SMALL
    system = build(file.model, settings, catalogue()).double()
    batch = rows([1 + k % 8 for k in range(12)], target_time=system.target_time_in_row)
    system.finetune_loss(system.item_tables(), batch).backward()
    idle = [name for name, p in system.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert idle == []
    assert all(torch.isfinite(p.grad).all() for p in system.parameters())


def test_time_has_an_effect_from_the_start() -> None:
    """From zero biases Tanhshrink leaves a constant, and gradients that no optimiser sees."""
    batch = rows(MIXED)
    later = replace(batch, times=batch.times + torch.randint(0, 10**6, (1, L)).cumsum(1) * (batch.times > 0))

    def effect_and_gradient(bias: float) -> tuple[float, float]:
        system = model(perturbed=False, time_scale_bias=bias)
        effect = (users(system, later) - users(system, batch)).abs().max()
        system.finetune_loss(system.item_tables(), batch).backward()
        return float(effect), float(system.time_gaps.norm.weight.grad.abs().max())

    assert max(effect_and_gradient(0.0)) < 1e-7
    assert min(effect_and_gradient(2.0)) > 1e-6


def test_variants_differ_from_mmm4rec_as_table_vi_says() -> None:
    base = read_system("mmm4rec")
    files = {key: read_system(key) for key in SYSTEMS}

    def changed(key: str) -> dict[str, object]:
        return {k: v for k, v in files[key].settings.items() if v != base.settings[k]}

    assert changed("mmm4rec_noid") == {"with_id": False}
    assert files["mmm4rec_noid"].pretrained_as == "mmm4rec"
    assert "ids" not in files["mmm4rec_noid"].reads
    assert changed("mmm4rec_scratch") == {}
    assert files["mmm4rec_scratch"].pretrain is None
    assert changed("mmm4rec_notime") == {"use_time": "off"}
    assert "time" not in files["mmm4rec_notime"].reads
    assert changed("mmm4rec_noshare") == {"share_tissd": False}
    assert changed("mmm4rec_2layers") == {"layers": 2}
    assert all(files[key].pretrain == base.pretrain for key in SYSTEMS if key != "mmm4rec_scratch")
    assert [files[key].tables for key in SYSTEMS] == [[2, 4, 5, 6], [3, 5], [6], [6], [6], [6]]


def test_settings_file_lists_every_setting() -> None:
    settings = read_system("mmm4rec").settings
    assert settings.keys() == MMM4RecSettings.model_fields.keys()
    assert settings == MMM4RecSettings().model_dump()
    assert RELEASED.keys() <= settings.keys()


def test_presets_of_the_configuration() -> None:
    domain = {"shop": {"interactions": "x.csv", "items": "y.csv"}}
    values = {"preset": "released", "targets": ["shop"], "systems": ["mmm4rec", "mmm4rec_scratch"], "domains": domain}
    file = resolve_system(parse_config(values), "mmm4rec")
    assert file.settings["pad_candidate"] is True
    assert file.settings["ffn_on"] == "text"
    assert file.pretrain.learning_rate == 2.5e-4
    assert file.finetune.learning_rate == 1e-4
    assert resolve_system(parse_config(values), "mmm4rec_scratch").pretrain is None


@pytest.mark.parametrize(("released", "extra"), [(False, 0), (True, 1)])
def test_parameter_count(released: bool, extra: int) -> None:
    # the authors' log: 1,999,085 without ID; with the feed-forward network for both streams one more of it
    n = 11
    features = torch.zeros(n + 1, 768)
    settings = MMM4RecSettings(**(RELEASED if released else {}))
    system = MMM4Rec(settings, Catalogue(n, features, features, has_time=True))
    count = sum(p.numel() for p in system.parameters())
    ffn = 0 if released else 2 * (256 * 256 + 256) + 2 * 256
    assert count == 1_999_085 + ffn + 2 * (n + extra) * 256


def test_start_of_the_weights() -> None:
    system = model(perturbed=False, hidden_size=64, head_size=16)
    layer = system.layers[0]
    for linear in (
        layer.tissd["shared"].project,
        layer.filter.text.real,
        layer.filter.out.imag,
        system.adapters["text"],
    ):
        assert 0.01 < float(linear.weight.detach().std()) < 0.03
        assert (linear.bias == 0).all() or linear is system.adapters["text"]
    heads = layer.tissd["shared"].heads
    assert (heads.D == 1).all()
    assert (heads.A_log.exp() > 1 - 1e-6).all()
    assert (heads.A_log.exp() < 16 + 1e-6).all()
    assert (heads.norm.weight == 1).all()
    assert layer.tissd["shared"].conv.weight.abs().max() <= 0.5


def test_saved_and_loaded_scores_are_the_same(tmp_path: Path) -> None:
    system, batch = model(), rows(MIXED)
    assert not any("features" in name or "has_image" in name for name in system.state_dict())
    save_file(system.state_dict(), tmp_path / "model.safetensors")
    again = model(perturbed=False)
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(users(again, batch), users(system, batch), atol=0, rtol=0)


def test_all_but_the_modality_bias_is_carried_over() -> None:
    system = model()
    left = {name for name in system.state_dict() if not system.carried_over(name)}
    assert left == {"modality_bias.text", "modality_bias.image"}


def test_time_needed_and_not_there() -> None:
    with pytest.raises(UserError, match="use_time: require"):
        model(use_time="require", domain=catalogue(all_timed=False))
    assert not model(domain=catalogue(has_time=False)).timed
    assert model(use_time="require").timed
    assert MMM4RecSettings(use_time=False).use_time == "off"  # what YAML makes of a bare off
    assert MMM4RecSettings(use_time=True).use_time == "on"


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UserError, match="head_size 64 must divide expand \\* hidden_size = 200"):
        build("mmm4rec", {"hidden_size": 100}, catalogue())
    with pytest.raises(UserError, match="unknown key"):
        build("mmm4rec", {"hiden_size": 100}, catalogue())
