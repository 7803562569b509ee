"""What holds for every system with something to learn, whatever it is."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from small_systems import LEARNING, N_ITEMS, catalogue, rows, small, small_settings
from torch.nn import Embedding, functional

from mmm4rec.config import StageSettings, read_system, system_keys
from mmm4rec.errors import UserError
from mmm4rec.evaluation.ranking import rank_targets
from mmm4rec.models.base import Catalogue, build, model_class
from mmm4rec.nn.dropout import Dropout
from mmm4rec.training.data import load_events
from mmm4rec.training.finetune import freeze
from mmm4rec.training.loop import History, finetune_loss, train
from mmm4rec.training.run import read_weights, write_run

BATCH = rows([[3, 4, 5, 6, 7, 8], [1, 2, 3, 9, 0, 0], [11, 12, 10, 0, 0, 0]], [9, 10, 1])
PRETRAINED = [key for key in LEARNING if read_system(key).pretrain]
FROZEN = {
    "unisrec": {"position", "encoder"},
    "vqrec": {"position", "encoder"},
    "missrec": {"position", "network"},
    "s3rec": {"first_stage"},
}
# where published code does otherwise, and `defects` has no entry for it
AS_MEANT = {
    "unisrec": {"duplicates": "masked"},
    "vqrec": {"duplicates": "masked"},
    "missrec": {"duplicates": "masked"},
    "mmm4rec": {"duplicates": "masked", "target_time_in_row": False, "mask_padded_gaps": True, "pad_candidate": False},
    "s3rec": {"aap_weight": 0.2, "mip_weight": 1.0, "map_weight": 1.0, "sp_weight": 0.5},  # UniSRec swaps the first two
}
# their papers let every event know of every other: BSARec filters the spectrum of a whole row, MISSRec's decoder has no
# causal mask (and its encoder reads a set), MMSRec predicts masked slots from both sides
BOTH_WAYS = {"bsarec", "missrec", "mmsrec"}

TRANSFORMER = {"dropout": 1 + 2 * 2, "attention": 2}  # of the input, and of both halves of each layer
# how often encoding rows draws each kind of dropout, "attention" that of its weights, by the papers and published code
DRAWS = {
    "sasrec": TRANSFORMER,
    "s3rec": TRANSFORMER,
    "zesrec": TRANSFORMER,
    "vqrec": TRANSFORMER,
    "unisrec": TRANSFORMER | {"adaptor_dropout": 3},  # of every expert
    "fdsa": {"dropout": 2 * (1 + 2 * 2) + 1, "attention": 4},  # two encoders, and what joins them
    "bsarec": {"dropout": 1 + 2 * 3, "attention": 2},  # filter, attention, network
    "mamba4rec": {"dropout": 1 + 2 * 3},  # Mamba, inside the network and behind it
    "m3rec": {"dropout": 3 + 2 * (1 + 3 * 2)},  # three streams through one Mamba and a network each
    "tim4rec": {"dropout": 1 + 1 + 2 * 3, "time_dropout": 2 + 1},  # of the gaps too; factors, and the next layer's time
    "tim4rec_notime": {"dropout": 1 + 2 * 3},
    "missrec": {"dropout": 1 + (1 + 2) + (2 + 2), "attention": 3},  # encoder and decoder, of a layer each
    "mmsrec": {"embedding_dropout": 2, "dropout": 2 * 2 * 3, "attention": 4},  # rows, and items as rows of one
    # both modalities, their gaps; then shared factor, next time, block and network each, filter, fusion, network
    "mmm4rec": {"dropout": 2 + 1 + 1 + 1 + 1 + 2 * 2 + 1 + 1 + 2},
    "mmm4rec_notime": {"dropout": 2 + 1 + 2 * 2 + 1 + 2},
    "mmm4rec_noshare": {"dropout": 2 + 1 + 2 * (1 + 1) + 1 + 2 * 2 + 1 + 1 + 2},
    "mmm4rec_2layers": {"dropout": 2 + 1 + 2 * (1 + 1 + 1 + 2 * 2 + 1 + 1 + 2)},
}


def without_noise(key: str) -> dict:
    return {name: 0.0 for name in small_settings(key) if "dropout" in name or name == "masked"}


@pytest.mark.parametrize("key", LEARNING)
def test_frozen_features_stay_as_they_were(key):
    """FDSA, S3-Rec and M3Rec of the references overwrite them in their initialisation."""
    system, as_read = small(key, catalogue()), catalogue()  # a system may hold the very tensors that it was given
    stored = {name: b for name, b in system.named_buffers() if name.split(".")[-1] in ("text", "image")}
    before = {name: b.clone() for name, b in stored.items()}
    reads = set(read_system(key).reads) & {"text", "image"}
    for modality in reads:
        raw = getattr(as_read, modality)
        kept = [b for name, b in stored.items() if name.endswith(modality)]
        assert kept or read_system(key).model == "vqrec"  # which keeps codes
        for table in kept:  # as stored, or of length one
            assert torch.allclose(table, raw) or torch.allclose(table, torch.nn.functional.normalize(raw))
    optimizer = torch.optim.SGD(system.parameters(), lr=0.1)
    system.finetune_loss(system.item_tables(), BATCH).backward()
    optimizer.step()
    assert all(torch.equal(before[name], b) for name, b in stored.items())


@pytest.mark.parametrize("key", LEARNING)
def test_the_paddings_vector_is_zero_and_stays_so(key):
    """An initialisation of all weights draws it too, as in RecBole, and no gradient would bring it back."""
    system, file = small(key), read_system(key)
    tables = [m.weight for m in system.modules() if isinstance(m, Embedding) and m.num_embeddings == N_ITEMS + 1]
    assert len(tables) == ("ids" in file.reads and file.model != "mmm4rec")  # whose biases have no row for padding
    assert not any(table[0].any() for table in tables)
    optimizer = torch.optim.Adam(system.parameters(), lr=0.1, weight_decay=0.1)
    system.start_epoch(1)
    for loss in [system.pretrain_loss] * 2 * bool(file.indomain) + [system.finetune_loss] * 2:
        optimizer.zero_grad()
        loss(system.item_tables(), BATCH).backward()
        optimizer.step()
        assert not any(table[0].any() for table in tables)


@pytest.mark.parametrize("key", LEARNING)
def test_what_is_frozen_on_a_target(key):
    """Of those that transfer, what their papers keep; S3-Rec's maps of the first stage have no use in the second."""
    system = small(key)
    before = {name for name, p in system.named_parameters() if p.requires_grad}
    freeze(system)
    frozen = before - {name for name, p in system.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in frozen} == FROZEN.get(read_system(key).model, set())


@pytest.mark.parametrize("from_scratch", [False, True], ids=["transferred", "from_scratch"])
@pytest.mark.parametrize("key", LEARNING)
def test_every_trained_parameter_gets_a_gradient_and_no_frozen_one(key, from_scratch):
    """From scratch that is every one, but VQRec's permutation, which has nothing to permute."""
    system = small(key, perturbed=0.3)
    if not from_scratch or read_system(key).indomain:  # S3-Rec is never without its first stage
        freeze(system)
    else:
        held_back = [name for name, p in system.named_parameters() if not p.requires_grad]
        assert held_back == (["permutation"] if read_system(key).model == "vqrec" else [])
    system.train()
    for _ in range(3):  # what one draw of dropout or of an augmentation misses, another reaches
        system.start_epoch(1)
        system.finetune_loss(system.item_tables(), BATCH).backward()
    unmoved = [n for n, p in system.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert unmoved == []
    assert [n for n, p in system.named_parameters() if not p.requires_grad and p.grad is not None] == []


@pytest.mark.parametrize("key", LEARNING)
def test_the_loss_of_fine_tuning_is_a_sum_over_the_rows(key):
    """Which the engine divides by the size of a batch: a mean would be learned from a thousand times less."""
    system = small(key, perturbed=0.1).eval()
    system.start_epoch(1)
    tables = system.item_tables()
    one, two = (system.finetune_loss(tables, rows(n * [[3, 5, 2, 0, 0, 0]], n * [7])) for n in (1, 2))
    assert two > 1.3 * one  # a mean of equal rows is that of one; MMSRec's loss takes the rows for each other's rivals


@pytest.mark.parametrize("key", LEARNING)
def test_dropout_is_drawn_where_it_belongs(key, monkeypatch):
    """In training, and nowhere in evaluation: there, equations hold with or without it."""
    rates = {"dropout": 0.3, "embedding_dropout": 0.25, "adaptor_dropout": 0.15, "time_dropout": 0.1}
    system = small(key, **{name: rate for name, rate in rates.items() if name in small_settings(key)})
    system.start_epoch(1)
    names, drawn = {rate: name for name, rate in rates.items()}, Counter()
    attend = functional.scaled_dot_product_attention

    def attended(*args, dropout_p=0.0, **kwargs):
        drawn["attention"] += dropout_p == rates["dropout"]
        assert dropout_p in (0.0, rates["dropout"])
        return attend(*args, dropout_p=dropout_p, **kwargs)

    def dropped(module, given, made):
        drawn[names[module.p]] += not torch.equal(given[0], made)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attended)
    for module in system.modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(dropped)
    system.eval().encode(system.item_tables(), BATCH)
    assert +drawn == Counter()
    system.train().encode(system.item_tables(), BATCH)
    wanted = DRAWS.get(key, DRAWS.get(read_system(key).model))
    assert wanted is not None, f"DRAWS above is to say where {key} drops something"
    assert +drawn == wanted


@pytest.mark.parametrize("missing_image", ["zero", "mask"])
@pytest.mark.parametrize("key", LEARNING)
def test_no_gradient_explodes_at_the_start(key, missing_image):
    """Items that lack a feature may start as zero vectors, and a norm of those multiplies their gradients by 1e6.

    Items 11 and 12 lack an image, 12 its text too. Adam divides by the largest gradients it has seen.
    """
    known = replace(catalogue(), missing_image=missing_image)
    batch = rows([[3, 11, 5, 6, 12, 8], [12, 0, 0, 0, 0, 0], [11, 12, 10, 0, 0, 0]], [9, 12, 11])
    stages = [False, True] if read_system(key).pretrain else [False]
    for pretraining in stages:
        system = small(key, known, pretraining=pretraining).train()
        system.start_epoch(1)
        loss = system.pretrain_loss if pretraining else system.finetune_loss
        loss(system.item_tables(), batch).backward()
        sizes = {n: p.grad.abs().max().item() for n, p in system.named_parameters() if p.grad is not None}
        assert {n: size for n, size in sizes.items() if not size < 1e4} == {}


@pytest.mark.parametrize("key", PRETRAINED)
def test_pretraining_on_several_devices_is_refused_where_rows_are_not_divided(key):
    """What ``one_device`` says: whether the loss gets all that it needs of rows from ``encode_rows``."""
    system = small(key, pretraining=True)
    seen, encode_rows = [], system.encode_rows
    system.encode_rows = lambda tables, rows: seen.append(len(rows.lengths)) or encode_rows(tables, rows)
    system.pretrain_loss(system.item_tables(), BATCH)
    assert set(seen) == (set() if read_system(key).one_device else {len(BATCH.lengths)})


@pytest.mark.parametrize("key", PRETRAINED)
def test_every_parameter_is_pretrained(key):
    system = small(key, pretraining=True, perturbed=0.3).train()
    for _ in range(3):
        system.start_epoch(1)
        system.pretrain_loss(system.item_tables(), BATCH).backward()
    assert [n for n, p in system.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("key", LEARNING)
def test_blind_to_the_rest_of_the_batch(key):
    system = small(key).eval()
    system.start_epoch(1)
    tables = system.item_tables()
    together = system.users(tables, BATCH)
    for i in range(3):
        alone = system.users(tables, BATCH.select(slice(i, i + 1), int(BATCH.lengths[i])))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key", LEARNING)
def test_blind_to_the_amount_of_padding(key):
    """Rows trimmed to their events give the same scores as rows that end in padding."""
    system = small(key).eval()
    system.start_epoch(1)
    tables = system.item_tables()
    short = BATCH.select(slice(1, 3), 4)
    longer = BATCH.select(slice(1, 3), 6)
    torch.testing.assert_close(system.encode(tables, longer), system.encode(tables, short), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key", LEARNING)
def test_blind_to_what_follows(key):
    """What the target is, and what stands behind the row's end, changes nothing."""
    system = small(key).eval()
    system.start_epoch(1)
    tables = system.item_tables()
    row = rows([[3, 4, 5, 0, 0, 0]], [7])
    followed = rows([[3, 4, 5, 9, 9, 9]], [8])
    cut = followed.select(slice(0, 1))
    cut = type(cut)(cut.items, row.lengths, cut.targets, row.times, row.has_time)
    torch.testing.assert_close(system.encode(tables, cut), system.encode(tables, row), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key", [key for key in LEARNING if read_system(key).model not in BOTH_WAYS])
def test_no_state_knows_of_a_later_event(key):
    """What any module makes of a position, in any layer, does not change with the last event, but does with the first.

    The last layer computes the last position alone, so that users tell nothing of how the layers below look at them.
    """
    length = 5  # no width and no other number of the small systems, so that it tells the states from all else
    layers = {"layers": 2} if "layers" in small_settings(key) else {}
    system = small(key, perturbed=0.3, **layers).eval()
    system.start_epoch(1)
    states = []

    def record(_module, _given, made):
        states.extend(made if isinstance(made, tuple) else (made,))

    for module in system.modules():
        module.register_forward_hook(record)
    system.encode(system.item_tables(), rows([[3, 4, 5, 6, 7], [3, 4, 5, 6, 8], [9, 4, 5, 6, 7]]))
    mixed = False
    for state in states:
        if state is not None and state.shape[1:2] == (length,):
            row, other_last, other_first = state.unflatten(0, (-1, 3)).unbind(1)  # streams lie one above the other
            torch.testing.assert_close(other_last[:, :-1], row[:, :-1], rtol=1e-4, atol=1e-5)
            mixed |= not torch.allclose(other_first[:, 1:-1], row[:, 1:-1], rtol=1e-3, atol=1e-4)
    assert mixed


@pytest.mark.parametrize("key", LEARNING)
def test_order_matters(key):
    system = small(key, perturbed=0.3).eval()
    system.start_epoch(1)
    u = system.users(system.item_tables(), rows([[3, 4, 5], [4, 3, 5]]))
    assert not torch.allclose(u[0], u[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("key", LEARNING)
def test_saved_and_loaded_scores_are_identical(key, tmp_path):
    first = small(key).eval()
    first.start_epoch(1)
    write_run(tmp_path, {}, first, History(), {}, {})
    torch.manual_seed(1)
    again = build(read_system(key).model, small_settings(key), catalogue()).eval()
    read = read_weights(tmp_path)
    again.load_state_dict(read)
    assert all(w.dtype == read[name].dtype and torch.equal(w, read[name]) for name, w in first.state_dict().items())
    a, b = (s.scores(s.item_tables(), s.users(s.item_tables(), BATCH)) for s in (first, again))
    assert a.shape == (3, N_ITEMS)
    assert torch.equal(a, b)


@pytest.mark.parametrize("key", PRETRAINED)
def test_tables_of_some_items_are_rows_of_all(key):
    """Pre-training computes the tables of the items at hand only."""
    system = small(key, pretraining=True).eval()
    system.start_epoch(1)
    ids = torch.tensor([2, 5, 12])
    for some, all_ in zip(system.item_tables(ids), system.item_tables(), strict=True):
        torch.testing.assert_close(some, all_[functional.pad(ids, (1, 0))])


@pytest.mark.parametrize("key", LEARNING)
def test_every_setting_stands_in_its_file(key):
    """Else nobody could change it: what a file does not name is an unknown key. Its numbers are of the field's type."""
    file = read_system(key)
    fields = model_class(file.model).Settings.model_fields
    assert set(fields) == {*file.settings, *file.added}
    assert {name: fields[name].default for name in file.added} == file.added
    numbers = {k: type(v) for k, v in (file.added | file.settings).items() if type(v) in (int, float)}
    assert numbers == {name: fields[name].annotation for name in numbers}


@pytest.mark.parametrize("key", LEARNING)
def test_no_defect_unless_it_is_asked_for(key):
    """Those with an entry in ``defects``, and those that are a value of another setting."""
    file = read_system(key)
    assert file.settings.get("defects", []) == []
    as_meant = AS_MEANT.get(file.model, {})
    assert {name: file.settings[name] for name in as_meant} == as_meant


@pytest.mark.parametrize("key", LEARNING)
def test_overfits_a_toy_set(key, make_domain):
    cycle = [[(s + k) % 9 + 1 for k in range(6)] for s in range(9)]
    events = load_events([make_domain(cycle, [[1_500_000_000 + k * 86_400 for k in range(6)] for _ in cycle])])
    known = catalogue(events.n_items)
    known.has_text[1:] = known.has_image[1:] = True
    torch.manual_seed(1)
    known.text[1:], known.image[1:] = torch.randn(9, 10), torch.randn(9, 8)
    system = small(key, known, **without_noise(key))
    stage = StageSettings(optimizer="adam", learning_rate=0.005, batch_size=16, epochs=80)
    reads = read_system(key).reads
    train(
        system, events, events.all_rows(), stage, finetune_loss,
        seed=0, time_aware="time" in reads, whole_catalogue=True,
    )  # fmt: skip
    assert rank_targets(system, events, events.test_rows(), time="time" in reads).tolist() == [1] * 9


@pytest.mark.parametrize("key", [key for key in LEARNING if {"text", "image"} & set(read_system(key).reads)])
def test_without_features_it_says_so(key):
    with pytest.raises(UserError, match="features"):
        build(read_system(key).model, small_settings(key), Catalogue(n_items=N_ITEMS, has_time=True, all_timed=True))


@pytest.mark.parametrize("key", [k for k in LEARNING if "time" in read_system(k).reads])
def test_without_times_it_says_so_where_they_are_required(key):
    with pytest.raises(UserError, match="require"):
        small(key, catalogue(times=False), use_time="require")


@pytest.mark.parametrize("key", system_keys())
def test_a_row_has_at_least_one_position(key):
    with pytest.raises(UserError, match="max_length: expected at least 1, found 0"):
        small(key, max_length=0)
