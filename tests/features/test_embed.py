"""Text and pictures of a domain through the tiny encoder."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmm4rec.data import images as pictures
from mmm4rec.data.images import fetch_images
from mmm4rec.errors import UserError
from mmm4rec.features import embed as module
from mmm4rec.features.embed import embed
from mmm4rec.features.encoder import Encoder
from mmm4rec.features.store import read_features

SETTINGS = {
    "version": 1,
    "encoder": "tiny",
    "precision": "fp32",
    "text_fields": "title_category_brand",
    "missing_image": "zero",
    "missing_features": "zero",
}
TEXTS = ["a red shoe", None, "a blue guitar", "  ", "strings", "a cup", "tea"]
COLOURS = ["red", None, "blue", "green", None, "white", "black"]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A prepared domain and its pictures, three a shard."""

    def make_domain(texts=TEXTS, colours=COLOURS):
        paths = [None if colour is None else str(tmp_path / f"{colour}.png") for colour in colours]
        for colour, path in zip(colours, paths, strict=True):
            if colour:
                Image.new("RGB", (40, 30), colour).save(path)
        n = len(texts)
        table = {"item_id": pa.array(range(1, n + 1), pa.int32()), "item": [f"i{k}" for k in range(1, n + 1)]}
        table |= {"text": pa.array(texts, pa.string()), "image": pa.array(paths, pa.string())}
        (tmp_path / "domain").mkdir(exist_ok=True)
        pq.write_table(pa.table(table), tmp_path / "domain" / "items.parquet")
        monkeypatch.setattr(pictures, "SHARD", 3)
        arguments = {"concurrency": 1, "timeout": 1.0, "tries": 1, "max_side": 224, "offline": True}
        fetch_images(tmp_path / "domain" / "items.parquet", tmp_path / "images", **arguments)
        return tmp_path / "domain", tmp_path / "images"

    return make_domain


@pytest.fixture
def run(tiny, tmp_path):
    def run_embed(domain, images, *, state=None, batch_size=2, **settings):
        out = tmp_path / "features.parquet"
        embed(SETTINGS | settings, domain, images, tiny, out, state=state, device="cpu", batch_size=batch_size)
        return read_features(out)

    return run_embed


def stored(colour):
    """What the folder of pictures gives for a colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "JPEG", quality=pictures.QUALITY)
    return Image.open(buffer)


def test_vectors_stand_at_their_items(make, run, encoder):
    features = run(*make())
    assert features.has_text.tolist() == [bool((t or "").strip()) for t in TEXTS]
    assert features.has_image.tolist() == [c is not None for c in COLOURS]
    assert features.text.dtype == features.image.dtype == np.float16
    for k, (text, colour) in enumerate(zip(TEXTS, COLOURS, strict=True)):
        expected = encoder.texts([text])[0].numpy() if features.has_text[k] else np.zeros(128)
        np.testing.assert_allclose(features.text[k], expected, atol=1e-3)
        expected = encoder.images([stored(colour)])[0].numpy() if colour else np.zeros(128)
        np.testing.assert_allclose(features.image[k], expected, atol=1e-3)
    assert features.metadata == {
        "encoder": "tiny",
        "precision": "fp32",
        "text_fields": "title_category_brand",
        "missing_image": "zero",
    }


def test_a_white_picture_stands_in(make, run, encoder):
    domain, images = make()
    plain, filled = run(domain, images), run(domain, images, missing_image="white")
    white = encoder.images([Image.new("RGB", (200, 200), "white")])[0].numpy()
    assert np.array_equal(filled.has_image, plain.has_image)
    assert np.array_equal(filled.image[plain.has_image], plain.image[plain.has_image])
    np.testing.assert_allclose(filled.image[~plain.has_image], np.stack([white] * 2), atol=1e-3)
    assert filled.metadata["missing_image"] == "white"


def test_a_domain_without_pictures(make, run, tmp_path):
    domain, images = make(colours=[None] * 7)
    assert run(domain, images).image is None
    assert "image" not in pq.read_schema(tmp_path / "features.parquet").names
    filled = run(domain, images, missing_image="white")
    assert not filled.has_image.any()
    assert (filled.image == filled.image[0]).all()
    assert filled.image.any()


def test_a_domain_without_text(make, run):
    features = run(*make(texts=[None] * 7))
    assert features.text is None
    assert features.has_image.sum() == 5


def test_a_killed_run_goes_on(make, run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 2)
    domain, images = make()
    expected = run(domain, images)
    encoded = []
    forward = Encoder.images

    def killed(self, batch):
        if len(encoded) == 2:  # two batches are the first shard
            raise KeyboardInterrupt
        encoded.append(len(batch))
        return forward(self, batch)

    state = tmp_path / "state"
    monkeypatch.setattr(Encoder, "images", killed)
    with pytest.raises(KeyboardInterrupt):
        run(domain, images, state=state)
    assert {path.name for path in state.iterdir()} == {
        "key.json", "text_00000.npy", "text_00001.npy", "text_00002.npy", "shard_00000.npy",
    }  # fmt: skip
    assert encoded == [2, 1]

    encoded.clear()
    monkeypatch.setattr(Encoder, "images", lambda self, batch: encoded.append(len(batch)) or forward(self, batch))
    monkeypatch.setattr(Encoder, "texts", lambda self, batch: pytest.fail("text was encoded again"))
    resumed = run(domain, images, state=state)
    assert encoded == [2]
    assert np.array_equal(resumed.image, expected.image)
    assert np.array_equal(resumed.text, expected.text)
    assert not state.exists()


def test_the_state_of_other_inputs_is_not_used(make, run, tmp_path, monkeypatch):
    domain, images = make()
    state = tmp_path / "state"
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_features", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(domain, images, state=state)
    assert (state / "text_00000.npy").exists()
    make(texts=["other", *TEXTS[1:]])
    resumed = run(domain, images, state=state)
    assert np.array_equal(resumed.text, run(domain, images).text)


def test_what_stops_a_run(make, run, tmp_path):
    domain, images = make()
    with pytest.raises(UserError, match="2 of 7 items have no text features, item i2 first"):
        run(domain, images, missing_features="error")
    table = pq.read_table(domain / "items.parquet")
    pq.write_table(table.set_column(1, "item", [table["item"].to_pylist()[::-1]]), domain / "items.parquet")
    with pytest.raises(UserError, match="pictures of other items than the domain has now"):
        run(domain, images)
    (images / "shard_00001.parquet").unlink()
    with pytest.raises(UserError, match=r"shard_00001\.parquet is gone; run `mmm4rec images` again"):
        run(domain, images)
    (images / "manifest.parquet").unlink()
    with pytest.raises(UserError, match=r"no manifest\.parquet"):
        run(domain, images)
    with pytest.raises(UserError, match=r"items\.parquet: no such file"):
        run(tmp_path / "none", images)
