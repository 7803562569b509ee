"""The encoder: where it comes from, that it is whole and a SigLIP, and what the tiny one can be read for."""

import json
import shutil
import socket

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mmm4rec.errors import UserError
from mmm4rec.features.encoder import OPTIONAL, REQUIRED, WEIGHTS, fetch_encoder, load_encoder, write_tiny_encoder

# ------------------------------------------------------------------------------------------------ the forward pass


def test_vectors_are_normalised_float32(encoder):
    texts = encoder.texts(["a red shoe", "x", ""])
    images = encoder.images([Image.new("RGB", (30, 60), "red"), encoder.preprocess(Image.new("L", (9, 9)))])
    for vectors, shape in ((texts, (3, 128)), (images, (2, 128))):
        assert vectors.shape == shape
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


def test_tokens_or_preprocessed_pictures_give_the_same(encoder):
    texts, images = ["a red shoe", "guitar"], [Image.new("RGB", (30, 60), c) for c in ("red", "blue")]
    assert torch.equal(encoder.texts(texts), encoder.texts(encoder.tokenize(texts)))
    batch = torch.stack([encoder.preprocess(image) for image in images])
    assert torch.equal(encoder.images(images), encoder.images(batch))


def test_text_is_canonicalised_and_padded_to_64(encoder):
    ids = encoder.tokenize(["Red_SHOES, (new)!", "red shoes new", "word " * 100])
    assert ids.shape == (3, 64)
    assert torch.equal(ids[0], ids[1])
    assert ids[0, -1] == ids[2, -1] == 1  # the pooled token ends and pads every text
    assert (ids[2] == 1).sum() == 1


def test_pictures_are_squashed_and_scaled_to_one(encoder):
    wide = Image.linear_gradient("L").convert("RGB").resize((300, 100))
    squashed = np.asarray(wide.resize((224, 224), Image.Resampling.BICUBIC), np.float32) / 127.5 - 1
    np.testing.assert_allclose(encoder.preprocess(wide).permute(1, 2, 0).numpy(), squashed, atol=1e-6)


def test_bf16_is_close_to_fp32_where_the_processor_has_it(tiny, encoder):
    other = load_encoder(tiny, "cpu", "bf16")
    assert other.precision in ("bf16", "fp32")
    cosine = (other.texts(["a red shoe"]) * encoder.texts(["a red shoe"])).sum()
    assert cosine > 0.999


def test_loading_needs_no_network(tiny, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load_encoder(tiny, "cpu", "fp32").texts(["x"]).shape == (1, 128)


# ------------------------------------------------------------------------------------------------ the tiny one


def test_the_tiny_encoder_has_the_same_bytes_each_time(tiny, tmp_path):
    write_tiny_encoder(tmp_path)
    for name in REQUIRED:
        assert (tmp_path / name).read_bytes() == (tiny / name).read_bytes()


def ridge(X, Y, n):
    """Scores of a linear model fitted on the first n rows for the rest."""
    X, Y = X.numpy().astype(np.float64), np.asarray(Y, np.float64)
    mean, offset = X[:n].mean(0), Y[:n].mean(0)
    A = X[:n] - mean
    gram = A.T @ A
    weights = np.linalg.solve(gram + 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram)), A.T @ (Y[:n] - offset))
    return (X[n:] - mean) @ weights + offset


def test_words_can_be_read_off_the_tiny_vectors(encoder):
    random = np.random.default_rng(0)
    words = np.array(
        ["".join(random.choice(list("abcdefghijklmnopqrstuvwxyz"), random.integers(3, 9))) for _ in range(60)]
    )
    chosen = np.array([random.permutation(60) < 10 for _ in range(700)])
    texts = [" ".join(random.permutation(words[row])) for row in chosen]
    scores, truth = ridge(encoder.texts(texts), chosen, 500), chosen[500:]
    # area under the ROC curve of each word: a word that is there scores above one that is not
    areas = [(s[t][:, None] > s[~t]).mean() for s, t in zip(scores.T, truth.T, strict=True)]
    assert min(areas) > 0.9


def test_letters_of_any_script_make_different_vectors(encoder):
    vectors = encoder.texts(["ピンク", "あおい", "zxqv", "zxqw", "42", "43", "café"])
    cosine = (vectors @ vectors.T).fill_diagonal_(0)
    assert cosine.max() < 0.95


def test_colour_and_shape_can_be_read_off_the_tiny_vectors(encoder):
    random = np.random.default_rng(0)
    colours, shapes = ["red", "green", "blue", "yellow", "black"], ["ellipse", "rectangle", "polygon"]
    colour, shape = random.integers(5, size=300), random.integers(3, size=300)
    pictures = []
    for c, s, r in zip(colour, shape, random.integers(50, 90, size=300), strict=True):
        pictures.append(Image.new("RGB", (200, 200), "white"))
        corners = [100 - r, 100 - r, 100 + r, 100 + r]
        box = [(100, 100 - r), (100 - r, 100 + r), (100 + r, 100 + r)] if s == 2 else corners
        getattr(ImageDraw.Draw(pictures[-1]), shapes[s])(box, fill=colours[c])
    vectors = torch.cat([encoder.images(pictures[k : k + 100]) for k in range(0, 300, 100)])
    for labels, n in ((colour, 5), (shape, 3)):
        assert (ridge(vectors, np.eye(n)[labels], 200).argmax(1) == labels[200:]).mean() > 0.8


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        # without a word on preprocessing open_clip takes CLIP's, silently
        (lambda m, p: p.clear(), r"config\.json: preprocess_cfg\.resize_mode is shortest, SigLIP's is squash"),
        (lambda m, p: p.update(mean=[0.48, 0.46, 0.41]), r"preprocess_cfg\.mean is \(0\.48, 0\.46, 0\.41\)"),
        (lambda m, p: p.update(interpolation="bilinear"), r"interpolation is bilinear"),
        (lambda m, p: m["vision_cfg"].update(image_size=256), r"open_clip cannot load|size is \(256, 256\)"),
        (lambda m, p: m["text_cfg"].update(tokenizer_kwargs={"clean": "lower"}), "keeps capitals or punctuation"),
        # likewise its tokenizer
        (lambda m, p: m["text_cfg"].pop("hf_tokenizer_name"), r"no model_cfg\.text_cfg\.hf_tokenizer_name"),
        (lambda m, p: m["text_cfg"].update(context_length=32), "texts of 32 tokens for a text tower of 32"),
        (lambda m, p: m["text_cfg"].update(width=64), "open_clip cannot load the encoder"),
    ],
)
def test_an_encoder_that_is_no_siglip_is_refused(tiny, tmp_path, edit, message):
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    config = json.loads((source / "open_clip_config.json").read_text())
    edit(config["model_cfg"], config["preprocess_cfg"])
    (source / "open_clip_config.json").write_text(json.dumps(config))
    fetch_encoder(f"local-dir:{source}", tmp_path / "encoder", offline=True)
    with pytest.raises(UserError, match=message):
        load_encoder(tmp_path / "encoder", "cpu", "fp32")


def test_bare_weights_are_refused(tiny, tmp_path):
    (tmp_path / "bare").mkdir()
    shutil.copy(tiny / WEIGHTS, tmp_path / "bare")
    with pytest.raises(UserError, match=r"bare lacks open_clip_config\.json, tokenizer\.json, tokenizer_config\.json"):
        fetch_encoder(f"local-dir:{tmp_path / 'bare'}", tmp_path / "encoder", offline=True)
    with pytest.raises(UserError, match=r"bare: no encoder\.json; fetch the encoder"):
        load_encoder(tmp_path / "bare", "cpu", "fp32")


def test_a_changed_file_is_refused(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "encoder")
    (tmp_path / "encoder" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: not the file that was fetched \(tiny\)"):
        load_encoder(tmp_path / "encoder", "cpu", "fp32")
    (tmp_path / "encoder" / WEIGHTS).unlink()
    with pytest.raises(UserError, match=rf"{WEIGHTS}: not the file"):
        load_encoder(tmp_path / "encoder", "cpu", "fp32")


# ------------------------------------------------------------------------------------------------ sources


def test_an_unknown_source(tmp_path):
    for source in ("siglip", "hf-hub:", "local-dir:"):
        with pytest.raises(UserError, match="is none of hf-hub:ORG/REPO, local-dir:PATH, tiny"):
            fetch_encoder(source, tmp_path, offline=True)


def test_a_local_folder_is_copied_or_taken_as_it_is(tiny, tmp_path):
    fetch_encoder(f"local-dir:{tiny}", tmp_path / "copy", offline=True)
    for name in REQUIRED:
        assert (tmp_path / "copy" / name).read_bytes() == (tiny / name).read_bytes()
    record = json.loads((tmp_path / "copy" / "encoder.json").read_text())
    assert record["source"] == f"local-dir:{tiny}"
    assert list(record["sha256"]) == list(REQUIRED)
    (tmp_path / "copy" / "encoder.json").unlink()
    fetch_encoder(f"local-dir:{tmp_path / 'copy'}", tmp_path / "copy", offline=True)
    assert (tmp_path / "copy" / "encoder.json").exists()


def test_another_encoder_in_the_same_folder_leaves_nothing_of_the_first(tiny, tmp_path):
    rich = tmp_path / "rich"
    shutil.copytree(tiny, rich)
    (rich / OPTIONAL[0]).write_text("the first one's")
    for source in (rich, tiny):
        fetch_encoder(f"local-dir:{source}", tmp_path / "encoder", offline=True)
    assert not (tmp_path / "encoder" / OPTIONAL[0]).exists()
    record = json.loads((tmp_path / "encoder" / "encoder.json").read_text())
    assert list(record["sha256"]) == list(REQUIRED)


def test_the_hub_offline_says_what_to_bring_by_hand(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    source, folder = "hf-hub:timm/ViT-B-16-SigLIP", tmp_path / "encoder"
    message = r"encoder: cannot fetch .* \(`offline: true`\); put open_clip_config\.json, .*tokenizer_config\.json of https://hugg"
    with pytest.raises(UserError, match=message):
        fetch_encoder(source, folder, offline=True)
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("encoder.json"))
    fetch_encoder(source, folder, offline=True)
    fetch_encoder(source, folder, offline=False)  # there already: no request
    assert json.loads((folder / "encoder.json").read_text())["source"] == source
    with pytest.raises(UserError, match="hf-hub:other/repo"):
        fetch_encoder("hf-hub:other/repo", folder, offline=True)


def test_the_hub_is_asked_for_the_files_that_are_needed(tiny, tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repository, *, local_dir, allow_patterns):
        asked.append((repository, set(REQUIRED) <= set(allow_patterns)))
        shutil.copytree(tiny, local_dir, ignore=shutil.ignore_patterns("encoder.json"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    fetch_encoder("hf-hub:timm/x", tmp_path / "encoder", offline=False)
    assert asked == [("timm/x", True)]
    assert load_encoder(tmp_path / "encoder", "cpu", "fp32").texts(["x"]).shape == (1, 128)


def test_a_hub_that_fails(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    with pytest.raises(UserError, match=r"\(ConnectionError: no route to host\); put .* there by hand"):
        fetch_encoder("hf-hub:timm/x", tmp_path, offline=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: None)
    with pytest.raises(UserError, match=r"\(the repository has no open_clip_config\.json, "):
        fetch_encoder("hf-hub:timm/x", tmp_path, offline=False)
