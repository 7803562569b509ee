"""The typed configuration: what is accepted, what one sentence says where it is not, and what each step gets."""

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mmm4rec import config as module
from mmm4rec.config import (
    Config,
    embed_settings,
    features_path,
    finetune_settings,
    json_schema,
    load_config,
    parse_config,
    prepare_settings,
    pretrain_devices,
    pretrain_key,
    pretrain_settings,
    read_system,
    resolve_system,
    result_settings,
    system_keys,
    table_domains,
    table_systems,
    truncated_systems,
    truncation_settings,
)
from mmm4rec.errors import UserError
from mmm4rec.reading import read_yaml
from mmm4rec.versions import VERSIONS

ROOT = Path(__file__).resolve().parent.parent


def values(**changes):
    """A small configuration, as YAML would give it."""
    base = {
        "targets": ["shop"],
        "systems": ["pop", "sasrec"],
        "domains": {
            "shop": {"interactions": "events.csv", "items": "items.csv"},
            "food": {"amazon": "Grocery_and_Gourmet_Food"},
        },
    }
    return base | changes


def error(changes):
    with pytest.raises(UserError) as caught:
        parse_config(values(**changes), "mine.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("mine.yaml: ")
    return message


@pytest.fixture
def own_systems(tmp_path, monkeypatch):
    """Settings files of invented systems, in place of the project's."""
    monkeypatch.setattr(module, "SYSTEMS_DIR", tmp_path)
    stage = {"learning_rate": 0.001, "batch_size": 8, "epochs": 3}
    files = {
        "sasrec": {
            "name": "A",
            "version": 4,
            "reads": ["ids", "text"],
            "tables": [2],
            "model": "sasrec",
            "settings": {"width": 8, "layers": 2},
            "released": {"layers": 1},
            "pretrain": stage,
            "released_pretrain": {"learning_rate": 0.5},
            "finetune": stage,
        },
        "sasrec_t": {
            "base": "sasrec",
            "name": "A (text)",
            "reads": ["text"],
            "tables": [3],
            "settings": {"width": 16},
            "pretrained_as": "sasrec",
        },
        "pop": {"name": "P", "reads": ["ids"], "tables": [2], "model": "pop"},
    }
    for key, value in files.items():
        (tmp_path / f"{key}.yaml").write_text(yaml.safe_dump(value))
    return tmp_path


# ------------------------------------------------------------------------------------------------ config.yaml


def test_defaults():
    config = parse_config(values())
    assert config.seeds == [2020, 2021, 2022]
    assert (config.results, config.raw) == (Path("results"), Path("data/raw"))
    assert (config.preset, config.device, config.gate, config.offline) == ("paper", "auto", "error", False)
    assert config.sources == []
    assert config.domains["shop"].k_core == 5
    assert config.domains["food"].edition == 2018
    assert config.data_switches == {"text_fields": "title_category_brand", "missing_image": "zero"}


def test_preset_sets_switches_and_own_choices_win():
    released = parse_config(values(preset="released", sources=[], targets=["food"]))
    assert released.data_switches == {"text_fields": "title_brand_description", "missing_image": "white"}
    mixed = parse_config(values(preset="released", missing_image="mask"))
    assert mixed.data_switches == {"text_fields": "title_brand_description", "missing_image": "mask"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sedes": [1]}, "sedes: unknown key; is it `seeds`?"),
        ({"colour": "red"}, "colour: unknown key; check its spelling"),
        (
            {"domains": {"shop": {"interaction": "x.csv"}}},
            "domains.shop.interaction: unknown key; is it `interactions`?",
        ),
        ({"targets": ["shoop"]}, "`targets` names the domain 'shoop', which `domains` does not define (shop, food)"),
        ({"sources": ["music"]}, "`sources` names the domain 'music'"),
        ({"sources": ["shop"]}, "shop cannot be in `sources` and in `targets`: the test items would leak"),
        (
            {"sources": ["again"], "domains": {"shop": {"amazon": "X"}, "again": {"amazon": "X", "edition": 2023}}},
            "the source again has the events of the target shop: the test items would leak",
        ),
        (
            {"sources": ["again"], "domains": {key: {"interactions": "events.csv"} for key in ["shop", "again"]}},
            "the source again has the events of the target shop: the test items would leak",
        ),
        ({"table6": {"targets": ["shoop"]}}, "`table6` names the domain 'shoop', which `domains` does not define"),
        ({"seeds": [-1]}, "seeds.0: expected at least 0, found -1"),
        ({"seeds": [2**70]}, "seeds.0: expected at most 9223372036854775807, found 1180591620717411303424"),
        ({"seeds": 1}, "seeds: expected a list, found 1; write [1]"),
        ({"targets": "shop"}, "targets: expected a list, found 'shop'; write [shop]"),
        ({"targets": [2023]}, "targets.0: expected text, found 2023"),
        (
            {"domains": values()["domains"] | {"new": {"interactions": "x"}}, "table4": {"targets": ["new"]}},
            "`table4` names the domain 'new', which `targets` does not: add it there",
        ),
        ({"systems": ["sasrek"]}, "unknown system 'sasrek'; is it `sasrec`?"),
        ({"systems": ["x"]}, "unknown system 'x'; known: pop, sasrec"),
        ({"settings": {"sasrek": {}}}, "unknown system 'sasrek'"),
        ({"compare": "tim4rec"}, "`compare` names the system 'tim4rec', which `systems` does not: add it there"),
        ({"fig2": {"domain": "shoop"}}, "`fig2` names the domain 'shoop', which `domains` does not define"),
        (
            {"fig2": {"systems": ["pop"]}},
            "fig2.systems: pop trains nothing on histories that could be cut; leave it out",
        ),
        ({"fig2": {"systems": ["sasrek"]}}, "fig2.systems: unknown system 'sasrek'"),
        ({"fig2": {"lengths": [3, 0]}}, "fig2.lengths.1: expected more than 0, found 0"),
        ({"fig2": {"lengths": [3, 3]}}, "fig2.lengths: an entry stands twice"),
        ({"targets": []}, "targets: expected a list of at least 1, found []"),
        ({"targets": ["shop", "shop"]}, "targets: an entry stands twice"),
        ({"seeds": [1, 1]}, "seeds: an entry stands twice"),
        ({"seeds": ["one"]}, "seeds.0: expected a whole number, found 'one'"),
        ({"device": "tpu"}, "device: expected 'auto', 'cpu' or 'cuda', found 'tpu'"),
        ({"pretrain": {"epochs": 0}}, "pretrain.epochs: expected at least 1, found 0"),
        ({"finetune": {"epochs": -1}}, "finetune.epochs: expected at least 0, found -1"),
        (
            {"systems": ["pop", "mmm4rec"], "finetune": {"epochs": 0}},
            "finetune.epochs is 0 for mmm4rec, which has no pre-training here",
        ),
        (
            {"systems": ["zesrec", "sasrec"], "sources": ["food"], "settings": {"sasrec": {"finetune": {"epochs": 0}}}},
            "finetune.epochs is 0 for sasrec, which has no pre-training here",
        ),
        ({"finetune": {"epoch": 3}}, "finetune.epoch: unknown key; is it `epochs`?"),
        ({"finetune": None}, "finetune: expected keys and values, found nothing"),
        (
            {"finetune": {"weight_decay": 0.1}},
            "finetune: `weight_decay` is set a system at a time: settings.<system>.finetune.weight_decay",
        ),
        ({"images": {"timeout": "soon"}}, "images.timeout: expected a number, found 'soon'"),
        ({"offline": "maybe"}, "offline: expected true or false, found 'maybe'"),
        ({"results": 3}, "results: expected a path, found 3"),
        ({"encoder": {"name": "precomputed"}}, "`name: precomputed` is taken"),
        ({"encoder": {"name": "../x"}}, "encoder.name: expected a name of letters, digits"),
        (
            {"domains": {"my shop": {"interactions": "x"}}},
            "domains.my shop: expected a name of letters, digits, `_`, `.` and",
        ),
        ({"domains": {"shop": None}}, "domains.shop: expected keys and values, found nothing"),
        ({"domains": {"shop": {}}}, "domains.shop: name `amazon` or `interactions`"),
        (
            {"domains": {"shop": {"amazon": "X", "interactions": "x"}}},
            "domains.shop: `interactions` and `amazon` (X) are both there: keep one; if you wrote no `amazon`, "
            "config.yaml has a domain of this name already: give yours another",
        ),
        ({"domains": {"shop": {"amazon": "X", "items": "x"}}}, "`items` belongs to own `interactions`"),
        (
            {"domains": {"shop": {"amazon": "X", "edition": 2019}}},
            "domains.shop.edition: expected 2018 or 2023, found 2019",
        ),
        ({"domains": {"shop": {"interactions": "x", "k_core": -1}}}, "domains.shop.k_core: "),
        (
            {"domains": {"shop": {"interactions": "x", "features": {}}}},
            "domains.shop.features: name a file for `text`, for `image` or for both",
        ),
        (
            {"domains": {"shop": {"interactions": "x", "features": {"txt": "f.parquet"}}}},
            "mine.yaml: domains.shop.features.txt: unknown key; is it `text`?",
        ),
        (
            {"domains": values()["domains"] | {"shop_with_image": {"interactions": "x"}}},
            "domains.shop_with_image: names that end in _with_image stand for domains of Table IV; rename it",
        ),
        (
            {"preset": "released", "domains": {"shop": {"interactions": "x", "features": "f.parquet"}}},
            "`missing_image: white` (so in `preset: released`) is an image to be encoded",
        ),
        (
            {"systems": ["sasrec", "fdsa"], "domains": {"shop": {"interactions": "x"}}},
            "domains.shop has neither `items` nor `features`, and fdsa read text or images: name one of the two",
        ),
        ({"settings": {"sasrec": {"layer": 1}}}, "settings.sasrec.layer: unknown key; is it `layers`?"),
        ({"settings": {"fdsa": {"colour": 1}}}, "settings.fdsa.colour: unknown key; known: "),
        (
            {"systems": ["mmm4rec_noid"], "settings": {"mmm4rec": {"layer": "x"}}},
            "mine.yaml: settings.mmm4rec.layer: unknown key; is it `layers`?",
        ),
        ({"settings": {"sasrec": {"hidden_size": "wide"}}}, "hidden_size: expected a whole number, found 'wide'"),
        ({"settings": {"sasrec": {"layers": 1.5}}}, "settings.sasrec.layers: expected a whole number, found 1.5"),
        ({"settings": {"sasrec": {"layers": True}}}, "settings.sasrec.layers: expected a whole number, found True"),
        ({"settings": {"sasrec": {"dropout": None}}}, "settings.sasrec.dropout: expected a number, found None"),
        (
            {"settings": {"sasrec": {"finetune": {"epoch": 1}}}},
            "settings.sasrec: finetune.epoch: unknown key; is it `epochs`?",
        ),
        ({"settings": {"sasrec": {"settings": {"layers": 1}}}}, "settings.sasrec.settings: unknown key; known: "),
        ({"systems": ["mmm4rec_notime"], "settings": {"mmm4rec_notime": {"use_time": "on"}}}, "leave it off"),
        ({"settings": {"sasrec": {"finetune": 3}}}, "settings.sasrec.finetune: expected keys and values, found 3"),
        ({"settings": {"pop": {"finetune": {"epochs": 3}}}}, "settings.pop.finetune: pop has no such stage"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(changes, expected):
    assert expected in error(changes)


@pytest.mark.parametrize("other", ["events.csv", "{cwd}/events.csv", "there/../events.csv", "link.csv"])
def test_no_spelling_of_its_path_makes_a_target_s_data_a_source(tmp_path, monkeypatch, other):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "link.csv").symlink_to("events.csv")
    again = {"interactions": other.format(cwd=tmp_path), "items": "items.csv"}
    message = error({"sources": ["again"], "domains": values()["domains"] | {"again": again}})
    assert "the source again has the events of the target shop: the test items would leak" in message


def test_own_features_are_for_all_that_systems_transfer_between_or_for_none():
    own = {name: {"interactions": f"{name}.csv", "features": f"{name}.parquet"} for name in ("shop", "other")}
    domains = own | {"food": values()["domains"]["food"]}
    mixed = {"domains": domains, "sources": ["food", "other"], "systems": ["pop", "fdsa", "unisrec_t", "mmm4rec"]}
    assert error(mixed) == (
        "mine.yaml: own `features` for other, shop and none for food: systems that transfer (unisrec_t, mmm4rec) need "
        "features of one encoder, so give own ones to all of `sources` and `targets` or to none, or set `sources: []`"
    )
    for fine in ({"sources": ["other"]}, {"sources": []}, {"systems": ["pop", "sasrec", "fdsa"]}):
        assert parse_config(values(**mixed | fine))


def test_every_mistake_is_told_at_once():
    message = error({"device": "tpu", "sedes": [1]})
    assert "device: " in message
    assert "sedes: " in message


def test_white_images_are_fine_for_domains_that_are_not_used():
    unused = {"other": {"interactions": "x", "features": "f.parquet"}, **values()["domains"]}
    assert parse_config(values(preset="released", domains=unused)).data_switches["missing_image"] == "white"


@given(st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers())))
def test_whatever_is_written_ends_in_a_configuration_or_a_user_error(extra):
    with suppress(UserError):  # any other exception fails
        assert isinstance(parse_config(values() | extra), Config)


def test_files_are_merged_key_by_key_and_lists_are_replaced(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(values(seeds=[1, 2], images={"tries": 2, "timeout": 5})))
    (tmp_path / "b.yaml").write_text("seeds: [3]\nimages: {tries: 4}\ndomains: {new: {amazon: X}}\n")
    config = load_config(tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert config.seeds == [3]
    assert (config.images.tries, config.images.timeout) == (4, 5.0)
    assert set(config.domains) == {"shop", "food", "new"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "no such file"),
        ("", "a folder; name a file"),
        ("a: [1", "not valid YAML"),
        ("- 1", "expected keys and values, found list"),
        ("a: é", "not UTF-8 at byte 4; save it in that encoding"),
        ("a: 1\nb: 2\na: 3\n", "the key `a` stands twice, in lines 1 and 3: keep one"),
        ("b:\n  - {c: 1, c: 1}\n", "the key `c` stands twice, in lines 2 and 2: keep one"),
    ],
)
def test_unreadable_files(tmp_path, text, expected):
    path = tmp_path / "c.yaml"
    if text:
        path.write_text(text, encoding="latin-1")
    elif text is not None:
        path.mkdir()
    with pytest.raises(UserError, match=expected) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_key_may_override_what_a_merge_brings(tmp_path):
    """Also where the merged keys were merged themselves, and are merged again."""
    text = "settings:\n  a: &a {x: 1}\n  b: &b {<<: *a, x: 2}\n  c: {<<: *b, x: 3}\n"
    (tmp_path / "c.yaml").write_text(text)
    assert read_yaml(tmp_path / "c.yaml") == {"settings": {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 3}}}


@pytest.mark.parametrize("path", [ROOT / "config.yaml", *sorted((ROOT / "config/examples").glob("*.yaml"))], ids=str)
def test_the_configurations_in_the_repository_are_valid(path):
    config = load_config(ROOT / "config.yaml", *([path] if path.parent != ROOT else []))
    assert set(config.targets) <= set(config.domains)


def test_the_paper_run_has_the_paper_s_domains():
    config = load_config(ROOT / "config.yaml")
    assert config.sources == ["food", "cds", "kindle", "movies", "home"]
    assert config.targets == ["scientific", "pantry", "instruments", "arts", "office"]
    assert {name for name, domain in config.domains.items() if domain.amazon and domain.edition == 2018} == {
        *config.sources,
        *config.targets,
    }


def test_the_schema_in_the_repository_is_generated_from_the_typed_configuration():
    written = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text(encoding="utf-8"))
    assert written == json_schema(), "run `make schema`"
    assert written["additionalProperties"] is False
    assert {"targets", "systems", "domains"} == set(written["required"])


# ------------------------------------------------------------------------------------------------ systems


def test_every_settings_file_is_valid_and_its_key_is_in_order():
    keys = system_keys()
    assert keys[:2] == ["pop", "sasrec"]
    for key in keys:
        assert read_system(key).name


@pytest.mark.parametrize("key", system_keys())
def test_every_value_of_a_settings_file_says_where_it_comes_from(key):
    """On its line. A variant says of its few values, in its first line, what they make of the system it is based on."""
    lines = (module.SYSTEMS_DIR / f"{key}.yaml").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    if any(line.startswith("base: ") for line in lines):
        return
    block, silent = "", []
    for line in lines:
        value, _, comment = line.partition("#")
        if line[:1] != " ":
            block = value.partition(":")[0]
        elif block in ("settings", "added", "pretrain", "indomain", "finetune") and value.strip():
            silent += [line] * (not re.search("authors|paper|released|RecBole|UniSRec|ours", comment))
    assert silent == [], "say in a comment on the line whose value it is: authors, paper, released, RecBole or ours"


def test_a_model_that_is_not_there_is_named(own_systems):
    (own_systems / "last.yaml").write_text("{name: L, reads: [ids], tables: [2], model: lastt}")
    assert "last.yaml: model: there is no mmm4rec/models/lastt.py" in error({"systems": ["last"]})
    (own_systems / "last.yaml").write_text("{name: L, reads: [ids], tables: [7], model: pop}")
    assert "last.yaml: tables.0: expected 2, 3, 4, 5 or 6, found 7" in error({"systems": ["last"]})
    (own_systems / "last.yaml").write_text("{base: sasrek}")
    assert "last.yaml: base: unknown system 'sasrek'; is it `sasrec`?" in error({"systems": ["last"]})


def test_keys_stand_in_the_tables_order(own_systems):
    (own_systems / "unknown.yaml").write_text("{}")
    assert system_keys() == ["pop", "sasrec", "sasrec_t", "unknown"]


def test_a_based_system_inherits_and_overrides(own_systems):
    system = read_system("sasrec_t")
    assert (system.name, system.model, system.version, system.reads) == ("A (text)", "sasrec", 4, ["text"])
    assert system.settings == {"width": 16, "layers": 2}
    assert system.finetune == read_system("sasrec").finetune


def test_a_variant_inherits_the_user_s_settings_but_not_against_its_own_file(own_systems):
    own = {"sasrec": {"width": 4, "layers": 3, "finetune": {"epochs": 7}}, "sasrec_t": {"finetune": {"batch_size": 2}}}
    config = parse_config(values(settings=own))
    assert resolve_system(config, "sasrec").settings == {"width": 4, "layers": 3}
    variant = resolve_system(config, "sasrec_t")
    assert variant.settings == {"width": 16, "layers": 3}
    assert (variant.finetune.epochs, variant.finetune.batch_size) == (7, 2)
    (own_systems / "sasrec_t.yaml").write_text("{base: sasrec, pretrain: null, finetune: {epochs: 5}}")
    variant = resolve_system(
        parse_config(values(settings={"sasrec": {"pretrain": {"epochs": 1}, **own["sasrec"]}})), "sasrec_t"
    )
    assert variant.pretrain is None
    assert variant.finetune.epochs == 5


def test_a_setting_that_came_later_is_a_param_where_a_user_changes_it(own_systems):
    """Else everything that finished before it would run again."""
    file = yaml.safe_load((own_systems / "sasrec.yaml").read_text())
    (own_systems / "sasrec.yaml").write_text(yaml.safe_dump(file | {"added": {"share": 0.1}}))
    for own, recorded in (({}, {}), ({"share": 0.1}, {}), ({"share": 0.3}, {"share": 0.3})):
        config = parse_config(values(settings={"sasrec": own}))
        for key, width in (("sasrec", 8), ("sasrec_t", 16)):
            assert resolve_system(config, key).settings == {"width": width, "layers": 2} | recorded
    (own_systems / "sasrec_t.yaml").write_text("{base: sasrec, settings: {share: 0.2}}")
    config = parse_config(values(settings={"sasrec": {"share": 0.3}, "sasrec_t": {"share": 0.1}}))
    assert resolve_system(config, "sasrec_t").settings["share"] == 0.1
    with pytest.raises(UserError, match="share: expected a number, found 'much'"):
        parse_config(values(settings={"sasrec": {"share": "much"}}))
    with pytest.raises(UserError, match=r"sasrec\.colour: unknown key; known: share, layers, width, pretrain"):
        parse_config(values(settings={"sasrec": {"colour": 1}}))


def test_a_circle_of_bases_is_told(own_systems):
    (own_systems / "a.yaml").write_text("base: b")
    (own_systems / "b.yaml").write_text("base: a")
    with pytest.raises(UserError, match=r"a\.yaml: `base` goes round in a circle: a -> b -> a"):
        read_system("a")


def test_what_wins_over_what(own_systems):
    """System's own < preset < global override < override of this system."""
    released = {"preset": "released", "missing_image": "zero"}
    changes = {
        "finetune": {"epochs": 7, "batch_size": 64},
        "settings": {"sasrec": {"width": 32, "finetune": {"epochs": 9}}},
    }
    plain = resolve_system(parse_config(values()), "sasrec")
    assert (plain.settings, plain.finetune.epochs) == ({"width": 8, "layers": 2}, 3)
    assert plain.pretrain.learning_rate == 0.001
    changed = resolve_system(parse_config(values(**released, **changes)), "sasrec")
    assert changed.settings == {"width": 32, "layers": 1}
    assert (changed.finetune.epochs, changed.finetune.batch_size) == (9, 64)
    assert (changed.pretrain.epochs, changed.pretrain.learning_rate) == (3, 0.5)
    other = resolve_system(parse_config(values(systems=["sasrec_t"], **changes)), "sasrec_t")
    assert (other.settings["width"], other.finetune.epochs, other.finetune.batch_size) == (16, 9, 64)


def test_tables_hold_the_configured_systems_in_the_papers_order(own_systems):
    config = parse_config(values(systems=["sasrec_t", "sasrec", "pop"]))
    assert table_systems(config, 2) == ["pop", "sasrec"]
    assert table_systems(config, 3) == ["sasrec_t"]
    assert table_systems(config, 4) == []


def test_tables_have_all_targets_or_those_chosen():
    shops = {name: {"interactions": "x"} for name in ("a", "b")} | {"office": {"amazon": "Office_Products"}}
    config = parse_config(
        values(domains=shops, targets=["a", "b"], table4={"targets": ["b"]}, table6={"targets": ["office"]})
    )
    assert table_domains(config, 2) == ["a", "b"]
    assert table_domains(config, 4) == ["b_with_image"]
    assert table_domains(config, 6) == []  # the paper's, which config.yaml names, is no target of this run


# ------------------------------------------------------------------------------------------------ steps


def test_settings_of_prepare():
    config = parse_config(values(domains={"shop": {"amazon": "X", "edition": 2023, "k_core": 0}}))
    assert prepare_settings(config, "shop") == {
        "version": VERSIONS["prepare"],
        "domain": "shop",
        "amazon": "X",
        "edition": 2023,
        "k_core": 0,
        "text_fields": "title_category_brand",
    }


def test_settings_and_place_of_features():
    own = {"shop": {"interactions": "x", "features": {"text": "t", "image": "i"}, "missing_features": "error"}}
    config = parse_config(values(domains=own | values()["domains"] | own, results="r"))
    assert embed_settings(config, "shop") == {"version": VERSIONS["import_features"], "missing_features": "error"}
    assert features_path(config, "shop") == Path("r/features/precomputed/shop.parquet")
    assert features_path(config, "shop_with_image") == Path("r/domains/shop_with_image/features.parquet")
    assert embed_settings(config, "food") == {
        "version": VERSIONS["embed"],
        "encoder": "hf-hub:timm/ViT-B-16-SigLIP",
        "precision": "bf16",
        "text_fields": "title_category_brand",
        "missing_image": "zero",
        "missing_features": "zero",
    }
    assert features_path(config, "food") == Path("r/features/siglip/food.parquet")


def test_pretrained_weights_are_those_of_the_named_system_and_only_with_sources(own_systems):
    config = parse_config(values(sources=["food"], systems=["pop", "sasrec", "sasrec_t"]))
    assert [pretrain_key(config, key) for key in ("pop", "sasrec", "sasrec_t")] == [None, "sasrec", "sasrec"]
    scratch = parse_config(values(systems=["sasrec"]))
    assert pretrain_key(scratch, "sasrec") is None
    assert finetune_settings(scratch, "sasrec", "shop", 1)["pretrained"] is False
    settings = pretrain_settings(config, "sasrec")
    assert (settings["version"], settings["sources"], settings["seed"]) == ([VERSIONS["pretrain"], 4], ["food"], 2020)


def test_settings_of_a_run():
    settings = finetune_settings(parse_config(values(mask_seen=True)), "sasrec", "shop", 7)
    assert (settings["system"], settings["domain"], settings["seed"]) == ("sasrec", "shop", 7)
    assert settings["mask_seen"] is True
    assert settings["stage"]["stop_metric"] == "ndcg@10"
    assert finetune_settings(parse_config(values()), "pop", "shop", 7)["stage"] is None
    json.dumps(settings)


def test_an_indomain_stage_is_overridden_as_the_others_and_absent_where_there_is_none(own_systems):
    stage = {"learning_rate": 0.001, "batch_size": 8, "epochs": 3}
    own = {"base": "pop", "indomain": stage, "finetune": stage}
    (own_systems / "s3rec.yaml").write_text(yaml.safe_dump(own))
    changes = {"indomain": {"batch_size": 64}, "settings": {"s3rec": {"indomain": {"epochs": 9}}}}
    config = parse_config(values(systems=["s3rec", "pop"], **changes))
    stage = finetune_settings(config, "s3rec", "shop", 7)["indomain"]
    assert (stage["epochs"], stage["batch_size"], stage["learning_rate"]) == (9, 64, 0.001)
    assert "indomain" not in finetune_settings(config, "pop", "shop", 7)
    with pytest.raises(UserError, match=r"settings\.pop\.indomain: pop has no such stage"):
        parse_config(values(systems=["pop"], settings={"pop": {"indomain": {"epochs": 9}}}))


@pytest.mark.parametrize(
    ("category", "metric"),
    [("Prime_Pantry", "recall@10"), ("Industrial_and_Scientific", "recall@10"), ("X", "ndcg@10")],
)
def test_released_runs_stopped_on_recall_for_two_domains(category, metric):
    def stop_metric(system="mmm4rec", **changes):
        config = parse_config(values(domains={"shop": {"amazon": category}}, **changes))
        return finetune_settings(config, system, "shop", 1)["stage"]["stop_metric"]

    assert stop_metric(preset="released") == metric
    assert stop_metric() == "ndcg@10"
    assert stop_metric("sasrec", preset="released") == "ndcg@10"
    own = {"mmm4rec": {"finetune": {"stop_metric": "ndcg@50"}}}
    assert stop_metric(preset="released", settings=own) == "ndcg@50"


@settings(max_examples=20)
@given(
    device=st.sampled_from(["auto", "cpu", "cuda"]),
    offline=st.booleans(),
    tries=st.integers(1, 9),
    batch=st.integers(1),
    devices=st.integers(1, 9),
)
def test_what_changes_no_output_is_in_no_step_s_settings(device, devices, offline, tries, batch):
    """Else a changed device would retrain everything."""
    plain = parse_config(values(sources=["food"]))
    changed = {"device": device, "pretrain_devices": devices, "offline": offline}
    changed |= {"images": {"tries": tries}, "encoder": {"batch_size": batch}}
    config = parse_config(values(sources=["food"], **changed))
    assert prepare_settings(config, "shop") == prepare_settings(plain, "shop")
    assert embed_settings(config, "food") == embed_settings(plain, "food")
    assert pretrain_settings(config, "mmm4rec") == pretrain_settings(plain, "mmm4rec")
    assert finetune_settings(config, "sasrec", "shop", 1) == finetune_settings(plain, "sasrec", "shop", 1)
    assert result_settings(config) == result_settings(plain)
    assert result_settings(parse_config(values(sources=["food"], mask_seen=True))) != result_settings(plain)
    assert result_settings(parse_config(result_settings(plain))) == result_settings(plain)


def test_of_what_nothing_is_made_results_say_nothing():
    """Nor of figure 2's domain, which is the paper's below a file with other targets."""
    kindle = {"kindle": {"amazon": "Kindle_Store"}}
    listed = result_settings(parse_config(values(domains=values()["domains"] | kindle)))
    assert list(listed["domains"]) == ["shop"]
    assert "fig2" not in listed
    listed = result_settings(parse_config(values(fig2={"domain": "shop"})))
    assert listed["fig2"]["domain"] == "shop"


def test_pretraining_is_shared_by_the_configured_devices_where_it_can_be():
    assert pretrain_devices(parse_config(values()), "mmm4rec") == 1
    config = parse_config(values(pretrain_devices=4))
    assert [pretrain_devices(config, key) for key in ("mmm4rec", "mmsrec")] == [4, 1]


def test_a_truncated_run_sees_the_last_items_and_starts_from_scratch():
    """Also where it would transfer: the domain may be a source, whose test items pre-training has seen."""
    config = parse_config(values(sources=["food"], systems=["pop", "mmm4rec"]))
    whole = finetune_settings(config, "mmm4rec", "food", 7)
    assert whole["pretrained"] is True
    cut = truncation_settings(config, "mmm4rec", "food", 3, 7)
    assert cut == whole | {"pretrained": False, "settings": whole["settings"] | {"max_length": 3}}
    assert whole["settings"]["max_length"] == 20


def test_figure_2_takes_the_configured_ones_of_its_systems():
    assert parse_config(values()).fig2.lengths == list(range(1, 21))
    assert truncated_systems(parse_config(values())) == ["sasrec"]
    assert truncated_systems(parse_config(values(systems=["pop"]))) == []
    both = values(systems=["mamba4rec", "fdsa", "sasrec"], fig2={"systems": ["fdsa", "mamba4rec"]})
    assert truncated_systems(parse_config(both)) == ["mamba4rec", "fdsa"]
