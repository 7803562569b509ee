"""The frozen encoder: fetched once into a folder, verified, and read by open_clip from there without any network.

A folder holds ``open_clip_config.json`` (architecture and preprocessing), the weights, the tokenizer's files, and
``encoder.json`` with the sums of all of them. Shapes: B items, F encoder width.
"""

import hashlib
import itertools
import os
import shutil
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmm4rec.errors import UserError
from mmm4rec.io import atomic, read_json, write_json, write_text

WEIGHTS = "open_clip_model.safetensors"
REQUIRED = ("open_clip_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json")
OPTIONAL = ("special_tokens_map.json", "added_tokens.json", "spiece.model", "tokenizer.model")
SIDE = 224  # pixels
HALVES = (0.5, 0.5, 0.5)
#: what SigLIP's checkpoints were trained with; open_clip falls back to CLIP's where a folder does not say
SIGLIP = {"size": (SIDE, SIDE), "resize_mode": "squash", "interpolation": "bicubic", "mean": HALVES, "std": HALVES}
CONTEXT = 64  # tokens; the text tower pools the last one, so that every text has to be padded to it


# ------------------------------------------------------------------------------------------------ fetching


def fetch_encoder(source: str, folder: Path, *, offline: bool) -> None:
    """Bring an encoder into ``folder`` and record the sums of its files. Files that are there cause no request.

    Args:
        source: ``hf-hub:ORG/REPO``, ``local-dir:PATH`` or ``tiny``.
        folder: where it is kept.
        offline: no network; files of a hub's repository must be there already.

    Raises:
        UserError: the source is unknown, files are missing or cannot be had, or they are not those recorded before.
    """
    folder = Path(folder)
    kind, _, place = source.partition(":")
    if source == "tiny":
        write_tiny_encoder(folder)
    elif kind == "local-dir" and place:
        _copy(Path(place), folder)
    elif kind == "hf-hub" and place:
        if _is_there(folder, source):
            return
        _download(place, folder, offline)
    else:
        raise UserError(f"encoder.source: {source!r} is none of hf-hub:ORG/REPO, local-dir:PATH, tiny")
    files = {name: _sha256(folder / name) for name in _files(folder)}
    write_json(folder / "encoder.json", {"source": source, "sha256": files})


def _files(folder: Path) -> list[str]:
    return [name for name in (*REQUIRED, *OPTIONAL) if (folder / name).is_file()]


def _lacking(folder: Path) -> list[str]:
    return [name for name in REQUIRED if not (folder / name).is_file()]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_there(folder: Path, source: str) -> bool:
    """Whether the folder holds this source's files already, as recorded."""
    if not (folder / "encoder.json").exists() or read_json(folder / "encoder.json")["source"] != source:
        return False
    verify_encoder(folder)
    return True


def _copy(place: Path, folder: Path) -> None:
    if lacking := _lacking(place):
        raise UserError(f"encoder.source: {place} lacks {', '.join(lacking)}; all of {', '.join(REQUIRED)} are needed")
    for name in OPTIONAL:  # another encoder's, which would be taken for this one's
        if not (place / name).is_file():
            (folder / name).unlink(missing_ok=True)
    for name in _files(place):
        if not (folder / name).exists() or not (folder / name).samefile(place / name):
            with atomic(folder / name) as part:
                shutil.copyfile(place / name, part)


def _download(repository: str, folder: Path, offline: bool) -> None:
    if not _lacking(folder) and not (folder / "encoder.json").exists():
        return  # brought by hand
    if reason := "`offline: true`" if offline else _snapshot(repository, folder):
        raise UserError(
            f"{folder}: cannot fetch the encoder hf-hub:{repository} ({reason}); put {', '.join(REQUIRED)} of "
            f"https://huggingface.co/{repository} there by hand"
        )


def _snapshot(repository: str, folder: Path) -> str | None:
    """Download a hub's repository; the reason if that fails."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(repository, local_dir=folder, allow_patterns=[*REQUIRED, *OPTIONAL])
    except Exception as error:  # whatever the hub's client and the network below it raise
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    lacking = _lacking(folder)
    return f"the repository has no {', '.join(lacking)}" if lacking else None


def verify_encoder(folder: Path) -> dict[str, Any]:
    """Check the files of an encoder against their recorded sums, and give the record.

    Raises:
        UserError: there is no record, or a file is missing or another one.
    """
    folder = Path(folder)
    if not (folder / "encoder.json").exists():
        raise UserError(f"{folder}: no encoder.json; fetch the encoder with `mmm4rec encoder` first")
    record: dict[str, Any] = read_json(folder / "encoder.json")
    for name in [*_lacking(folder), *record["sha256"]]:
        if not (folder / name).is_file() or record["sha256"].get(name) != _sha256(folder / name):
            raise UserError(
                f"{folder / name}: not the file that was fetched ({record['source']}); remove {folder}, fetch it again"
            )
    return record


# ------------------------------------------------------------------------------------------------ encoding


class Encoder:
    """Text and images to L2-normalised vectors of width F.

    Attributes:
        precision: of the forward pass, ``bf16`` or ``fp32``.
        tokenize: texts to [B, CONTEXT] int64.
        preprocess: a picture to [3, SIDE, SIDE] float32; safe to call from several threads.
    """

    def __init__(
        self,
        model: Any,
        tokenize: Callable[[list[str]], Tensor],
        preprocess: Callable[[Image.Image], Tensor],
        device: torch.device,
        precision: str,
    ) -> None:
        self.model, self.tokenize, self.preprocess = model, tokenize, preprocess
        self.device, self.precision = device, precision

    def texts(self, texts: list[str] | Tensor) -> Tensor:
        """Vectors [B, F] float32 of texts, or of their tokens [B, CONTEXT]."""
        return self._vectors(self.model.encode_text, texts if isinstance(texts, Tensor) else self.tokenize(texts))

    def images(self, images: Sequence[Image.Image | Tensor] | Tensor) -> Tensor:
        """Vectors [B, F] float32 of pictures, or of preprocessed ones [B, 3, SIDE, SIDE]."""
        if not isinstance(images, Tensor):
            images = torch.stack([i if isinstance(i, Tensor) else self.preprocess(i) for i in images])
        return self._vectors(self.model.encode_image, images)

    @torch.inference_mode()
    def _vectors(self, encode: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            vectors = encode(batch.to(self.device, non_blocking=True))
        return torch.nn.functional.normalize(vectors.float(), dim=-1)


def load_encoder(folder: Path, device: str | torch.device, precision: Literal["bf16", "fp32"]) -> Encoder:
    """Load an encoder that ``fetch_encoder`` brought, after checking that it is whole and a SigLIP.

    Where there is no bf16, fp32 stands in (``usable_precision``).

    Raises:
        UserError: files are missing or changed, open_clip cannot load them, or they ask for another preprocessing or
            tokenisation than SigLIP's.
    """
    folder, device = Path(folder), torch.device(device)
    verify_encoder(folder)
    os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries below read it
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    name = f"local-dir:{folder}"
    try:
        model = open_clip.create_model(name, device=device, require_pretrained=True).eval()
        tokenize = open_clip.get_tokenizer(name)
        ids = tokenize(["Red_Shoes, (new)!", "red shoes new"])
    except Exception as error:  # open_clip, safetensors and transformers have no common one
        raise UserError(f"{folder}: open_clip cannot load the encoder: {' '.join(str(error).split())}") from error

    found = open_clip.get_model_preprocess_cfg(model)
    size = found["size"]
    plain = {**found, "size": (size, size) if isinstance(size, int) else tuple(size)}
    plain |= {key: tuple(found[key]) for key in ("mean", "std")}
    for key, value in SIGLIP.items():
        if plain[key] != value:
            raise UserError(
                f"{folder / 'open_clip_config.json'}: preprocess_cfg.{key} is {plain[key]}, SigLIP's is {value}; "
                "take the file of the hub's repository, which has a preprocess_cfg"
            )
    if not isinstance(tokenize, open_clip.tokenizer.HFTokenizer):
        raise UserError(
            f"{folder / 'open_clip_config.json'}: no model_cfg.text_cfg.hf_tokenizer_name, so open_clip takes CLIP's "
            "tokenizer and not the folder's; set it to any name"
        )
    if ids.shape[1] != CONTEXT or model.context_length != CONTEXT:
        raise UserError(
            f"{folder / 'open_clip_config.json'}: texts of {ids.shape[1]} tokens for a text tower of "
            f"{model.context_length}; SigLIP's have {CONTEXT}"
        )
    if not torch.equal(ids[0], ids[1]):
        raise UserError(
            f"{folder / 'open_clip_config.json'}: the tokenizer keeps capitals or punctuation, SigLIP's does not; set "
            'model_cfg.text_cfg.tokenizer_kwargs to {"clean": "canonicalize"}'
        )
    preprocess = image_transform_v2(PreprocessCfg(**found), is_train=False)
    return Encoder(model, tokenize, preprocess, device, usable_precision(device, precision))


def usable_precision(device: torch.device, precision: Literal["bf16", "fp32"]) -> Literal["bf16", "fp32"]:
    """The precision asked for, or fp32 on a processor where bf16 would be many times slower."""
    mkldnn = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return precision if device.type != "cpu" or mkldnn else "fp32"


# ------------------------------------------------------------------------------------------------ the tiny one

EOS = 1  # ends and pads a text, as in SigLIP's vocabulary
#: spread of the weights that differ from 1 / sqrt(fan-in), and of biases that are not zero
TINY_STD = {
    "visual.class_embedding": 1.0,
    "visual.positional_embedding": 1.0,
    "visual.transformer.resblocks.0.mlp.c_fc.bias": 0.5,
    "text.token_embedding.weight": 1.0,
    "text.positional_embedding": 0.0,
    "text.transformer.resblocks.0.mlp.c_fc.bias": 0.5,
    "text.text_projection.bias": 0.1,
}


def write_tiny_encoder(folder: Path) -> None:
    """Write a small SigLIP with fixed random weights, the same bytes each time, for the demo and for tests.

    It knows nothing, but a linear model can still read off its vectors what is in a text or picture: words are cut into
    pieces of up to three letters, the vector of a text is a random projection of the bag of its pieces, and that of a
    picture a mean of random non-linear functions of its patches and their places.
    """
    from safetensors.torch import save_file

    folder, width = Path(folder), 128
    vocabulary = _tiny_vocabulary()
    model_cfg = {
        "embed_dim": width,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": SIDE,
            "patch_size": 32,
            "layers": 1,
            "width": width,
            "head_width": 64,
            "mlp_ratio": 2.0,
            "pool_type": "avg",
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(vocabulary),
            "hf_tokenizer_name": "tiny",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": width,
            "heads": 2,
            "layers": 1,
            "mlp_ratio": 1.0,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    }
    preprocess_cfg = {key: SIGLIP[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    write_json(folder / "open_clip_config.json", {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg})
    write_text(folder / "tokenizer.json", _tiny_tokenizer(vocabulary))
    special = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "[UNK]"}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
    with atomic(folder / WEIGHTS) as part:
        save_file(_tiny_weights(model_cfg), part)


def _tiny_vocabulary() -> dict[str, int]:
    """Pieces that start a word and pieces (##) that go on with it; single bytes cover what is not a to z, 0 to 9."""
    from tokenizers.pre_tokenizers import ByteLevel

    pieces = sorted(ByteLevel.alphabet())
    pieces += ["".join(p) for n in (2, 3) for p in itertools.product(string.ascii_lowercase, repeat=n)]
    pieces += ["".join(p) for p in itertools.product(string.digits, repeat=2)]
    return {piece: i for i, piece in enumerate(["[UNK]", "</s>", *pieces, *(f"##{piece}" for piece in pieces)])}


def _tiny_tokenizer(vocabulary: dict[str, int]) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece(vocabulary, max_input_chars_per_word=100_000))
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), in_bytes])
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", EOS)])
    return str(tokenizer.to_str())


def _tiny_weights(model_cfg: dict[str, Any]) -> dict[str, Tensor]:
    from open_clip import CustomTextCLIP

    random = np.random.RandomState(0)  # the generator that NumPy has frozen

    def uniform(shape: Sequence[int], std: float) -> Tensor:
        """Uniform numbers: without logarithms and sines they are the same on every machine, to the last bit."""
        return torch.from_numpy(((random.random_sample(shape) * 2 - 1) * 3**0.5 * std).astype(np.float16))

    cfg = {key: value for key, value in model_cfg.items() if key != "custom_text"}
    weights: dict[str, Tensor] = CustomTextCLIP(**cfg).state_dict()
    for name, weight in weights.items():
        if weight.dim() == 0 or ("ln_" in name and name.endswith("weight")):
            continue  # of one, or never used
        fan_in = weight.shape[0] if name == "visual.proj" else weight.shape[-1]
        std = 0.0 if name.endswith("bias") else fan_in**-0.5
        weights[name] = uniform(weight.shape, TINY_STD.get(name, std))
    # Filters of 4 x 4 fields: pictures have colours and edges, not noise.
    out, channels, side, _ = weights["visual.conv1.weight"].shape
    fields = uniform((out, channels, 4, 4), 1 / (side // 4) ** 2 / (channels * 16) ** 0.5)
    weights["visual.conv1.weight"] = fields.repeat_interleave(side // 4, 2).repeat_interleave(side // 4, 3)
    # The last token, padding, attends to all alike and is all zero itself: what it gathers is the sum over the pieces.
    weights["text.token_embedding.weight"][EOS] = 0
    weights["text.transformer.resblocks.0.attn.out_proj.weight"] *= 8
    return {name: weight.contiguous() for name, weight in weights.items()}
