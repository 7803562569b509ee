"""Pre-training and fine-tuning from files to files."""

import csv
import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_systems import SMALL as SMALL_SYSTEMS

from mmm4rec.config import Config, StageSettings, finetune_settings, pretrain_settings
from mmm4rec.errors import UserError
from mmm4rec.evaluation.metrics import summarise
from mmm4rec.features.store import write_features
from mmm4rec.recommend import ENDINGS, recommend, recommend_all, write
from mmm4rec.training.data import load_catalogue, load_events
from mmm4rec.training.finetune import finetune
from mmm4rec.training.pretrain import pretrain
from mmm4rec.training.run import load_pretrained, read_weights

SMALL = {"hidden_size": 16, "head_size": 8, "state_size": 4, "inner_size": 16, "max_length": 6, "dropout": 0.1}


@pytest.fixture
def config():
    stage = {"epochs": 2, "batch_size": 32, "accumulate": 1}
    return Config(
        targets=["shop"],
        sources=["other"],
        systems=["pop", "sasrec", "mmm4rec", "mmm4rec_noid"],
        domains={"shop": {"interactions": "shop.csv"}, "other": {"interactions": "other.csv"}},
        pretrain=stage,
        finetune=stage,
        settings={"mmm4rec": SMALL, "mmm4rec_noid": SMALL},
    )


def sequences(seed, users=30, items=12):
    generator = np.random.default_rng(seed)
    return [[int((s + k) % items) + 1 for k in range(n)] for s, n in generator.integers([0, 3], [items, 8], (users, 2))]


def features(path: Path, domain: Path, width=8, seed=0, *, fewer_words=False) -> Path:
    items = pq.read_table(domain / "items.parquet")
    n = items.num_rows
    generator = np.random.default_rng(seed)
    text, image = (generator.normal(size=(n, width)).astype(np.float16) for _ in range(2))
    has_image = np.arange(n) % 3 > 0
    ids, names, there = items["item_id"].to_numpy(), items["item"].to_pylist(), np.ones(n, bool)
    dropped = np.where(np.arange(n)[:, None] % 3 > 0, text / 2, text).astype(np.float32) if fewer_words else None
    write_features(path, ids, names, text, there, image, has_image, {}, dropped)
    return path


@pytest.fixture
def shop(make_domain):
    return make_domain(sequences(0), name="shop")


def test_pop_counts_training_events_only(config, make_domain, tmp_path):
    # items 1 and 2 are the training events; 3 is only ever validated, 4 only ever tested
    shop = make_domain([[1, 2, 3, 4], [1, 1, 3, 4]], name="tiny")
    finetune(finetune_settings(config, "pop", "shop", 1), shop, None, None, tmp_path / "run")
    assert pq.read_table(tmp_path / "run" / "ranks.parquet")["rank"].to_pylist() == [4, 4]
    assert load_file(tmp_path / "run" / "model.safetensors")["popularity"].flatten().tolist() == [0, 3, 1, 0, 0]


def test_a_run_folder_is_complete_and_agrees_with_its_ranks(config, shop, tmp_path):
    out = tmp_path / "run"
    finetune(finetune_settings(config, "sasrec", "shop", 1), shop, None, None, out, state=tmp_path / "state")
    names = {"config.json", "model.safetensors", "history.csv", "metrics.json", "ranks.parquet", "environment.json"}
    assert {p.name for p in out.iterdir()} == names
    assert not (tmp_path / "state").exists()
    metrics = json.loads((out / "metrics.json").read_text())
    ranks = pq.read_table(out / "ranks.parquet")
    assert metrics["test"] == summarise(ranks["rank"].to_numpy())
    assert ranks["user_id"].to_pylist() == list(range(1, 31))
    assert metrics["epochs"] == 2
    history = list(csv.DictReader((out / "history.csv").read_text().splitlines()))
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert float(history[0]["loss"]) > 0
    assert json.loads((out / "environment.json").read_text())["seed"] == 1


def test_the_same_seed_gives_the_same_ranks(config, shop, tmp_path):
    settings = finetune_settings(config, "sasrec", "shop", 1)
    for name in ("a", "b"):
        finetune(settings, shop, None, None, tmp_path / name)
    a, b = (pq.read_table(tmp_path / name / "ranks.parquet") for name in ("a", "b"))
    assert a.equals(b)


@pytest.fixture
def pretrained(config, make_domain, tmp_path):
    other = make_domain(sequences(1, items=9), name="other")
    features(tmp_path / "other.parquet", other)
    pretrain(pretrain_settings(config, "mmm4rec"), [other], [tmp_path / "other.parquet"], tmp_path / "pre")
    return tmp_path / "pre"


def test_zero_shot_ranks_what_pretraining_left(config, shop, pretrained, tmp_path):
    config.settings["mmm4rec_noid"] = SMALL | {"finetune": {"epochs": 0}}
    given, out = features(tmp_path / "shop.parquet", shop, seed=3), tmp_path / "run"
    finetune(finetune_settings(config, "mmm4rec_noid", "shop", 1), shop, given, pretrained, out)
    weights, before = load_file(out / "model.safetensors"), read_weights(pretrained)
    assert set(weights) <= set(before)
    assert all(torch.equal(w, before[name]) for name, w in weights.items())
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["test"] == summarise(pq.read_table(out / "ranks.parquet")["rank"].to_numpy())
    assert (metrics["epochs"], metrics["best_epoch"], metrics["seconds"]) == (0, 0, 0.0)
    assert (out / "history.csv").read_text() == "epoch,loss,seconds\n"


def test_transfer_carries_everything_but_ids(config, shop, pretrained, tmp_path):
    given = features(tmp_path / "shop.parquet", shop, seed=3)
    assert not any(name.startswith("modality_bias.") for name in read_weights(pretrained))
    for system in ("mmm4rec", "mmm4rec_noid"):
        settings = finetune_settings(config, system, "shop", 1)
        assert settings["pretrained"]
        finetune(settings, shop, given, pretrained, tmp_path / system)
        metrics = json.loads((tmp_path / system / "metrics.json").read_text())
        assert metrics["parameters"] == metrics["trained_parameters"]
        made = json.loads((tmp_path / system / "config.json").read_text())
        asked = {key: pretrain_settings(config, "mmm4rec")[key] for key in ("sources", "seed", "settings", "stage")}
        digest = hashlib.sha256((pretrained / "model.safetensors").read_bytes()).hexdigest()
        assert made["pretraining"] == asked | {"sha256": digest}
        widths = {"text": 8, "image": 8}
        assert made["features"] == {"encoder": None, "text": 1.0, "image": 0.6667, "widths": widths}
    with_id, without = (
        json.loads((tmp_path / s / "metrics.json").read_text())["parameters"] for s in ("mmm4rec", "mmm4rec_noid")
    )
    assert with_id - without == 2 * 12 * 16


@pytest.mark.parametrize("key", ["unisrec", "vqrec", "missrec"])
def test_what_stays_as_pretrained_learns_from_scratch(make_domain, shop, tmp_path, key):
    """Positions and encoder; from scratch all that is held back is VQRec's permutation."""
    stage = {"epochs": 1, "batch_size": 32, "accumulate": 1}
    config = Config(
        targets=["shop"],
        sources=["other"],
        systems=[key],
        domains={name: {"interactions": name, "items": name} for name in ("shop", "other")},
        pretrain=stage,
        finetune=stage,
        settings={key: SMALL_SYSTEMS[key] | ({"permutation_epochs": 0} if key == "vqrec" else {})},
    )
    other = make_domain(sequences(1, items=9), name="other")
    given = features(tmp_path / "shop.parquet", shop, seed=3)
    pre = tmp_path / "pre"
    pretrain(pretrain_settings(config, key), [other], [features(tmp_path / "other.parquet", other)], pre)
    before, settings = read_weights(pre), finetune_settings(config, key, "shop", 1)
    finetune(settings, shop, given, pre, tmp_path / "transferred")
    finetune(settings | {"pretrained": False}, shop, given, None, tmp_path / "scratch")
    transferred, scratch = (read_weights(tmp_path / name) for name in ("transferred", "scratch"))
    kept = [name for name in before if name.startswith(("position.", "encoder.", "network."))]
    assert kept
    assert all(torch.equal(transferred[name], before[name]) for name in kept)
    metrics = json.loads((tmp_path / "scratch" / "metrics.json").read_text())
    permutation = scratch["permutation"].numel() if key == "vqrec" else 0
    assert metrics["parameters"] - metrics["trained_parameters"] == permutation


def test_texts_with_words_left_out_are_taken_where_a_source_has_them(config, make_domain, tmp_path):
    """Items of another source, and those without one, keep the vector of their whole text."""
    domains = [make_domain(sequences(seed, items=9), name=f"source_{seed}") for seed in (1, 2)]
    plain = [features(tmp_path / f"{k}.parquet", domain, seed=k) for k, domain in enumerate(domains)]
    given = [plain[0], features(tmp_path / "fewer.parquet", domains[1], seed=1, fewer_words=True)]
    events = load_events(domains)
    known = load_catalogue(events, domains, given, ["ids", "text"], "zero", text_dropped=True)
    assert known.text_dropped.dtype == torch.float32
    changed = [10 + i for i in range(9) if i % 3]
    assert (known.text_dropped != known.text).any(1).nonzero()[:, 0].tolist() == changed
    torch.testing.assert_close(known.text_dropped[changed], known.text[changed].float() / 2)
    assert load_catalogue(events, domains, given, ["ids", "text"], "zero").text_dropped is None
    assert load_catalogue(events, domains, plain, ["ids", "text"], "zero", text_dropped=True).text_dropped is None

    settings = pretrain_settings(config, "unisrec")
    settings["settings"] |= {"hidden_size": 16, "inner_size": 16, "experts": 2, "max_length": 6}
    weights = []
    for share, files in ((0.0, given), (1.0, given), (1.0, plain)):
        settings["settings"]["word_drop_batches"] = share
        pretrain(settings, domains, files, tmp_path / "pre")
        weights.append(read_weights(tmp_path / "pre")["position.weight"])
        kept = json.loads((tmp_path / "pre" / "config.json").read_text())["features"]
        assert kept.get("text_dropped") == (0.3333 if files is given else None)
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])  # without any, items are left out always


def test_no_other_system_reads_them(config, make_domain, tmp_path, monkeypatch):
    other = make_domain(sequences(1, items=9), name="other")
    given = features(tmp_path / "f.parquet", other, fewer_words=True)
    asked, read = [], pq.read_table
    monkeypatch.setattr(pq, "read_table", lambda p, columns=None: asked.append(columns) or read(p, columns=columns))
    pretrain(pretrain_settings(config, "mmm4rec"), [other], [given], tmp_path / "pre")
    assert not any("text_dropped" in columns for columns in asked)
    assert "text_dropped" not in json.loads((tmp_path / "pre" / "config.json").read_text())["features"]


# ------------------------------------------------------------------------------------------------ in-domain stage


def with_indomain(config, seed=1):
    """SASRec with a first stage on the target: its pre-training objective over the batch."""
    settings = finetune_settings(config, "sasrec", "shop", seed)
    assert "indomain" not in settings  # else every finished run would run again
    return settings | {"indomain": StageSettings(learning_rate=0.01, batch_size=32, epochs=3).model_dump()}


def test_an_indomain_stage_comes_first_and_is_counted(config, shop, tmp_path):
    out = tmp_path / "run"
    finetune(with_indomain(config), shop, None, None, out, state=tmp_path / "state", tensorboard=tmp_path / "tb")
    history, before = (
        list(csv.DictReader((out / name).read_text().splitlines())) for name in ("history.csv", "history_indomain.csv")
    )
    assert [row["epoch"] for row in before] == ["1", "2", "3"]
    assert list(before[0]) == ["epoch", "loss", "seconds"]  # nothing of it is validated
    metrics = json.loads((out / "metrics.json").read_text())
    seconds = sum(float(row["seconds"]) for row in before)
    assert metrics["indomain"] == {"epochs": 3, "seconds": pytest.approx(seconds)}
    assert metrics["epochs"] == len(history) == 2
    own = sum(float(row["seconds"]) + float(row["valid_seconds"]) for row in history)
    assert metrics["seconds"] == pytest.approx(seconds + own)
    assert metrics["seconds_to_best"] > seconds
    assert [p.name for p in (tmp_path / "tb").iterdir() if p.is_dir()] == ["indomain"]
    plain = tmp_path / "plain"
    finetune(finetune_settings(config, "sasrec", "shop", 1), shop, None, None, plain)
    other = list(csv.DictReader((plain / "history.csv").read_text().splitlines()))
    assert other[0]["loss"] != history[0]["loss"]  # it starts from what the first stage learned


def test_an_indomain_stage_sees_training_events_only(config, make_domain, tmp_path):
    """Other validation and test items, the same first stage: no row has them, as a target or in its history."""
    rows = sequences(0)
    losses = []
    for name, held_out in (("a", [3, 4]), ("b", [7, 12])):
        domain = make_domain([[*row[:-2], *held_out] for row in [*rows, [12, 12, 12, 12]]], name=name)
        finetune(with_indomain(config), domain, None, None, tmp_path / f"run_{name}")
        history = csv.DictReader((tmp_path / f"run_{name}" / "history_indomain.csv").read_text().splitlines())
        losses.append([row["loss"] for row in history])
    assert losses[0] == losses[1]


def test_a_run_killed_in_fine_tuning_does_not_repeat_its_indomain_stage(config, shop, tmp_path, monkeypatch):
    finetune(with_indomain(config), shop, None, None, tmp_path / "whole")
    monkeypatch.setattr("mmm4rec.training.finetune.rank_targets", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finetune(with_indomain(config), shop, None, None, tmp_path / "run", state=tmp_path / "state")
    monkeypatch.undo()
    monkeypatch.setattr("mmm4rec.models.sasrec.SASRec.pretrain_loss", interrupted)
    finetune(with_indomain(config), shop, None, None, tmp_path / "run", state=tmp_path / "state")
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not (tmp_path / "state").exists()


def interrupted(*_args, **_options):
    raise KeyboardInterrupt


def test_features_of_another_width_carry_nothing_over(config, shop, pretrained, tmp_path):
    """Most weights would fit, those that read features would not: a fresh adapter under a pre-trained one's name."""
    given = features(tmp_path / "shop.parquet", shop, width=6)
    with pytest.raises(UserError, match=r"pre-trained on text features of width 8, the target's have 6; transfer"):
        finetune(finetune_settings(config, "mmm4rec", "shop", 1), shop, given, pretrained, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_features_of_another_encoder_are_told(config, shop, pretrained, tmp_path, caplog):
    given = features(tmp_path / "shop.parquet", shop)
    pq.write_table(pq.read_table(given).replace_schema_metadata({"encoder": "another"}), given)
    finetune(finetune_settings(config, "mmm4rec", "shop", 1), shop, given, pretrained, tmp_path / "run")
    assert "features were made by None for the pre-training, by another here" in caplog.text


def test_weights_that_fit_nothing_are_refused(config, shop, tmp_path):
    finetune(finetune_settings(config, "pop", "shop", 1), shop, None, None, tmp_path / "pop")
    system = torch.nn.Linear(2, 2)
    system.carried_over = lambda name: True
    with pytest.raises(UserError, match="most of the pre-trained weights do not fit"):
        load_pretrained(system, tmp_path / "pop")


def test_weights_of_which_the_smaller_part_fits_are_refused(tmp_path):
    """Under a pre-trained system's name a mostly fresh one would stand in the tables."""
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(9)}, tmp_path / "model.safetensors")
    system = torch.nn.Linear(2, 2)
    system.carried_over = lambda name: True
    with pytest.raises(UserError, match="most of the pre-trained weights do not fit"):
        load_pretrained(system, tmp_path)


def test_features_are_asked_for_before_training(config, shop, tmp_path):
    with pytest.raises(UserError, match="give it the domain's features"):
        finetune(finetune_settings(config, "mmm4rec", "shop", 1), shop, None, None, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_features_of_another_domain_are_refused(config, shop, make_domain, tmp_path):
    other = make_domain(sequences(1, items=9), name="other")
    given = features(tmp_path / "other.parquet", other)
    settings = finetune_settings(config, "mmm4rec", "shop", 1)
    with pytest.raises(
        UserError, match=r"other\.parquet: its 9 items are not the 12 that .*shop has now, in their order"
    ):
        finetune(settings, shop, given, None, tmp_path / "run")
    given = features(tmp_path / "shop.parquet", shop)
    renamed(shop, ["item-2", "item-1", *(f"item-{i}" for i in range(3, 13))])
    with pytest.raises(UserError, match=r"shop\.parquet: its 12 items are not .* import the features again"):
        finetune(settings, shop, given, None, tmp_path / "run")


def test_features_of_every_source_in_the_sources_order(config, make_domain, tmp_path):
    """As many items in all are not enough: users of one source would be shown the features of another."""
    domains = [make_domain(sequences(1, items=n), name=f"of_{n}") for n in (9, 8)]
    given = [features(tmp_path / f"{domain.name}.parquet", domain) for domain in domains]
    settings = pretrain_settings(config, "mmm4rec")
    with pytest.raises(UserError, match=r"of_8\.parquet: its 8 items are not the 9 that .*of_9 has now"):
        pretrain(settings, domains, given[::-1], tmp_path / "pre")
    with pytest.raises(UserError, match="1 files of features for 2 domains; give one for each, in their order"):
        pretrain(settings, domains, given[:1], tmp_path / "pre")


def test_recommendations_in_the_users_own_ids(config, shop, tmp_path):
    finetune(finetune_settings(config, "sasrec", "shop", 1), shop, None, None, tmp_path / "run")
    best = recommend(tmp_path / "run", ["item-1", "item-2"], 5)
    assert len(best) == 5
    assert not {"item-1", "item-2"} & {item for item, _ in best}
    assert [s for _, s in best] == sorted((s for _, s in best), reverse=True)
    with pytest.raises(UserError, match=r"unknown items in the history: 'item-2 '; .*items\.parquet; .* `--histories`"):
        recommend(tmp_path / "run", ["item-1", "item-2 "], 5)
    (shop / "items.parquet").rename(shop / "gone.parquet")
    with pytest.raises(
        UserError, match=r"items\.parquet: no such file; run this from the folder that .*run was made in"
    ):
        recommend(tmp_path / "run", ["item-1"], 5)


def renamed(domain: Path, names: list[str]) -> None:
    """The domain with other raw ids."""
    items = pq.read_table(domain / "items.parquet")
    pq.write_table(items.set_column(1, "item", [names]), domain / "items.parquet")


def test_a_run_is_not_read_with_other_items(config, shop, make_domain, tmp_path):
    """As many of them: nothing in the weights tells; a run made before items were recorded goes by their shapes."""
    run = tmp_path / "run"
    finetune(finetune_settings(config, "sasrec", "shop", 1), shop, None, None, run)
    names = [f"item-{i}" for i in range(1, 13)]
    best = recommend(run, ["item-1", "item-2"], 5)
    renamed(shop, ["item-0", *names[:-1]])  # a new item, and the last one gone
    (tmp_path / "histories.csv").write_text("user_id,item_id,timestamp\n1,item-1,3\n")
    for ask in (lambda: recommend(run, ["item-1"], 5), lambda: recommend_all(run, tmp_path / "histories.csv", 5)):
        with pytest.raises(
            UserError, match=r"run was made of another state of .*shop, with other items; train it again"
        ):
            ask()
    renamed(shop, names)
    assert recommend(run, ["item-1", "item-2"], 5) == best
    made = json.loads((run / "environment.json").read_text())
    del made["items_sha256"]
    (run / "environment.json").write_text(json.dumps(made))
    assert recommend(run, ["item-1", "item-2"], 5) == best
    shop.rename(tmp_path / "before")
    make_domain(sequences(0, items=11), name="shop")
    with pytest.raises(UserError, match=r"run: its weights do not fit .*shop and its features as they are now; train"):
        recommend(run, ["item-1"], 5)


@pytest.mark.parametrize("brands", [None, [f"brand {i % 3}" for i in range(12)]])
def test_a_run_of_s3rec_is_read_again(config, make_domain, tmp_path, caplog, brands):
    """With brands as attributes, and with texts where there are no brands."""
    shop = make_domain(sequences(0), brands=brands, categories=[["all"] if brands else None] * 12)
    given = features(tmp_path / "shop.parquet", shop)
    small = {"hidden_size": 16, "inner_size": 16, "max_length": 6}
    config = config.model_copy(update={"indomain": config.finetune, "settings": {"s3rec": small}})
    with caplog.at_level(logging.INFO):
        finetune(finetune_settings(config, "s3rec", "shop", 1), shop, given, None, tmp_path / "run")
    said = "attributes: 4 brands and categories, of 12 items" if brands else "brands and categories are no attributes"
    assert said in caplog.text
    attribute = read_weights(tmp_path / "run")["first_stage.attribute.weight"]
    assert attribute.shape == ((1 + 4, 16) if brands else (16, 8))
    assert len(recommend(tmp_path / "run", ["item-1", "item-2"], 5)) == 5


def test_recommendations_of_a_time_aware_system(config, make_domain, tmp_path):
    rows = sequences(0)
    shop = make_domain(rows, [[86_400 * k * k for k in range(len(r))] for r in rows], name="timed")
    given = features(tmp_path / "shop.parquet", shop)
    settings = finetune_settings(config, "mmm4rec", "shop", 1) | {"pretrained": False}
    finetune(settings, shop, given, None, tmp_path / "run")
    history = ["item-1", "item-2", "item-3"]
    assert recommend(tmp_path / "run", history, 3) != recommend(tmp_path / "run", history, 3, [0, 10, 9000])
    with pytest.raises(UserError, match="2 times for 3 items"):
        recommend(tmp_path / "run", history, 3, [1, 2])
    with pytest.raises(UserError, match="from the oldest event to the newest"):
        recommend(tmp_path / "run", history, 3, [9000, 10, 0])
    for times in ([-1, 0, 1], [1, 2, 1_400_000_000_000], [1, 2, 2**63]):
        with pytest.raises(UserError, match=f"unix seconds since 1970, found {times[0]} to {times[-1]}; divide"):
            recommend(tmp_path / "run", history, 3, times)


@pytest.mark.parametrize("timed", [False, True])
def test_recommendations_for_many_are_those_of_each(config, make_domain, tmp_path, monkeypatch, caplog, timed):
    monkeypatch.setattr("mmm4rec.recommend.SCORES_AT_ONCE", 30)  # two users at a time
    rows = sequences(0)
    times = [[86_400 * k * k for k in range(len(r))] for r in rows] if timed else None
    shop = make_domain(rows, times, name="shop")
    given = features(tmp_path / "shop.parquet", shop)
    run = tmp_path / "run"
    finetune(finetune_settings(config, "mmm4rec", "shop", 1) | {"pretrained": False}, shop, given, None, run)
    histories = {
        "b": [("item-3", 50), ("item-1", 7)],  # the older event stands behind
        "a": [("item-2", 1), ("item-2", 1), ("nothing", 2), ("item-5", 90_000)],
        "gone": [("nothing", 1)],
        "all": [(f"item-{i}", i) for i in range(1, 13)],
        "long": [(f"item-{1 + i % 10}", i) for i in range(40)],
    }
    events = [{"user_id": u, "item_id": i, "timestamp": t} for u, h in histories.items() for i, t in h]
    pl.DataFrame(events).write_csv(tmp_path / "histories.csv")
    with caplog.at_level(logging.INFO):
        found = recommend_all(run, tmp_path / "histories.csv", 4)
    assert "56 of 58 events are of known items; 4 of 5 users have one" in caplog.text
    assert found.columns == ["user_id", "rank", "item_id", "score"]
    assert found["user_id"].unique(maintain_order=True).to_list() == ["b", "a", "long"]  # nothing is left for `all`
    assert found.filter(pl.col("user_id") == "long")["item_id"].sort().to_list() == ["item-11", "item-12"]
    asked = {
        "b": (["item-1", "item-3"], [7, 50]),
        "a": (["item-2", "item-5"], [1, 90_000]),
        "long": tuple(zip(*histories["long"], strict=True)),
    }
    for user, (items, seconds) in asked.items():
        own = found.filter(pl.col("user_id") == user)
        expected = recommend(run, list(items), 4, list(seconds))[: len(own)]
        assert own["item_id"].to_list() == [item for item, _ in expected]
        assert own["score"].to_list() == pytest.approx([score for _, score in expected], rel=1e-4)
        assert own["rank"].to_list() == list(range(1, len(own) + 1))


def test_histories_with_positions_and_without_a_known_item(config, shop, tmp_path):
    finetune(finetune_settings(config, "sasrec", "shop", 1), shop, None, None, tmp_path / "run")
    pl.DataFrame({"user_id": [7, 7], "item_id": ["item-2", "item-1"], "position": [1, 0]}).write_parquet(
        tmp_path / "histories.parquet"
    )
    found = recommend_all(tmp_path / "run", tmp_path / "histories.parquet", 3)
    expected = recommend(tmp_path / "run", ["item-1", "item-2"], 3)
    assert found["user_id"].to_list() == [7, 7, 7]
    assert found["item_id"].to_list() == [item for item, _ in expected]
    (tmp_path / "other.csv").write_text("user_id,item_id,timestamp\n1,2,3\n")
    with pytest.raises(UserError, match=r"knows none of its items; .* It has '2', the run 'item-1'"):
        recommend_all(tmp_path / "run", tmp_path / "other.csv", 3)
    (tmp_path / "empty.csv").write_text("user_id,item_id,timestamp\n")
    with pytest.raises(UserError, match="there is no event in it"):
        recommend_all(tmp_path / "run", tmp_path / "empty.csv", 3)


def test_recommendations_are_written_by_the_ending(tmp_path):
    table = pl.DataFrame({"user_id": ["a"], "rank": [1], "item_id": ["x"], "score": [0.5]})
    for ending in ENDINGS:
        write(tmp_path / f"best{ending}", table)
    assert (tmp_path / "best.csv").read_text() == "user_id,rank,item_id,score\na,1,x,0.5\n"
    assert (tmp_path / "best.tsv").read_text() == "user_id\trank\titem_id\tscore\na\t1\tx\t0.5\n"
    assert pl.read_parquet(tmp_path / "best.parquet").equals(table)


def test_pretraining_recommends_nothing(pretrained):
    with pytest.raises(UserError, match="a pre-training knows no items of yours"):
        recommend(pretrained, ["item-1"], 3)


def test_a_domain_without_anybody_to_rank(config, make_domain, tmp_path):
    short = make_domain([[1, 2], [2, 1]], name="short")
    with pytest.raises(UserError, match="nobody to rank"):
        finetune(finetune_settings(config, "sasrec", "shop", 1), short, None, None, tmp_path / "run")


def test_a_domain_without_training_rows(config, make_domain, tmp_path):
    short = make_domain([[1, 2, 3], [2, 1, 3]], name="short")
    with pytest.raises(UserError, match="no training row"):
        finetune(finetune_settings(config, "sasrec", "shop", 1), short, None, None, tmp_path / "run")
