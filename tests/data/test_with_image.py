import csv

import numpy as np
import polars as pl
import pytest

from mmm4rec.data.prepare import prepare
from mmm4rec.data.with_image import keep_items_with_image
from mmm4rec.errors import UserError
from mmm4rec.features.store import read_features, write_features

PREPARE = {"domain": "shop", "amazon": None, "edition": 2018, "k_core": 2, "text_fields": "title_category_brand"}
SETTINGS = {"version": 1, "domain": "shop", "k_core": 2}


@pytest.fixture
def shop(tmp_path):
    """Without item 3 user 9 has one event only, and without that one item 2 has one event only."""
    events = {"user_id": [7, 7, 7, 9, 9, 9], "item_id": [1, 1, 2, 2, 3, 3], "position": [0, 1, 2, 0, 1, 2]}
    pl.DataFrame(events).write_parquet(tmp_path / "events.parquet")
    prepare(PREPARE, tmp_path / "shop", interactions=tmp_path / "events.parquet")
    return tmp_path / "shop"


def features(path, has_image):
    has = np.array(has_image)
    ids = np.arange(1, len(has) + 1, dtype=np.int32)
    image = np.where(has[:, None], ids[:, None] * np.ones(2), 0).astype(np.float16)
    text = -ids[:, None].astype(np.float32)
    write_features(path, ids, [str(i) for i in ids], text, np.ones(len(has), bool), image, has, {"encoder": "e"})
    return path


def test_events_of_other_items_go_and_the_core_is_taken_again(shop, tmp_path):
    keep_items_with_image(SETTINGS, shop, features(tmp_path / "f.parquet", [True, True, False]), tmp_path / "out")
    with (tmp_path / "out/statistics.csv").open() as file:
        rows = [(r["stage"], int(r["users"]), int(r["items"]), int(r["interactions"])) for r in csv.DictReader(file)]
    assert rows == [("k_core", 2, 3, 6), ("with_image", 2, 2, 4), ("k_core_with_image", 1, 1, 2)]
    events = pl.read_parquet(tmp_path / "out/interactions.parquet")
    assert events.rows() == [(1, 1, 0, None), (1, 1, 1, None)]
    assert pl.read_parquet(tmp_path / "out/items.parquet").select("item_id", "item").rows() == [(1, "1")]
    assert pl.read_parquet(tmp_path / "out/users.parquet").rows() == [(1, "7")]


def test_features_go_along_in_the_new_order(shop, tmp_path):
    keep_items_with_image(
        SETTINGS | {"k_core": 0}, shop, features(tmp_path / "f.parquet", [False, True, True]), tmp_path / "out"
    )
    kept = read_features(tmp_path / "out/features.parquet")
    assert kept.items.tolist() == ["2", "3"]
    assert kept.text.ravel().tolist() == [-2.0, -3.0]
    assert kept.image[:, 0].tolist() == [2.0, 3.0]
    assert kept.has_image.all()
    assert kept.metadata == {"encoder": "e"}
    events = pl.read_parquet(tmp_path / "out/interactions.parquet")
    assert events.select("user_id", "item_id", "position").rows() == [(1, 1, 0), (2, 1, 0), (2, 2, 1), (2, 2, 2)]


def test_nothing_left_is_told(shop, tmp_path):
    with pytest.raises(UserError, match="no item of shop has an image"):
        keep_items_with_image(SETTINGS, shop, features(tmp_path / "f.parquet", [False] * 3), tmp_path / "out")
    with pytest.raises(UserError, match="no event is left after `k_core: 2`"):
        keep_items_with_image(SETTINGS, shop, features(tmp_path / "f.parquet", [False, True, False]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
