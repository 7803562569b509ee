"""Typed configuration: what a user may write in ``config.yaml``, and what each step of the pipeline gets from it.

A step never reads the configuration file. The functions at the end of this module resolve, for one step, the plain
values that change its output; the workflow hands them over as rule parameters, so a changed value reruns that step.
This module imports neither torch nor polars: the workflow reads it at every call.
"""

import shutil
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PositiveInt,
    StringConstraints,
    Tag,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mmm4rec.data.registry import Edition, Kind, paper_name, raw_path
from mmm4rec.errors import UserError
from mmm4rec.reading import is_it, read_yaml, validated
from mmm4rec.versions import VERSIONS

SYSTEMS_DIR = Path(__file__).resolve().parent.parent / "config" / "systems"
SYSTEM_ORDER = [
    *("pop", "sasrec", "sasrec_t", "mamba4rec", "mamba4rec_t", "tim4rec", "tim4rec_t", "tim4rec_notime", "bsarec"),
    *("fdsa", "s3rec", "unisrec", "unisrec_t", "zesrec", "vqrec", "mmsrec", "missrec", "missrec_noid", "m3rec"),
    *("mmm4rec", "mmm4rec_noid", "mmm4rec_scratch", "mmm4rec_notime", "mmm4rec_noshare", "mmm4rec_2layers"),
]
STAGES = ("pretrain", "indomain", "finetune")
#: of the settings of a pre-training, what a run that starts from it keeps in mind
PRETRAINING = ("sources", "seed", "settings", "stage")
METRICS = ("recall@10", "recall@50", "ndcg@10", "ndcg@50")
Preset = Literal["paper", "released"]
TextFields = Literal["title_category_brand", "title_brand_description"]
MissingImage = Literal["zero", "white", "mask"]

#: end of the name of a target that was cut down to its items with an image
WITH_IMAGE = "_with_image"

#: part of a path, and of a wildcard
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]

# Switches of the two presets (docs/method.md). Those of the model stand in its own settings file.
PRESET_DATA: dict[str, dict[str, Any]] = {
    "paper": {"text_fields": "title_category_brand", "missing_image": "zero"},
    "released": {"text_fields": "title_brand_description", "missing_image": "white"},
}
# The released runs stopped on recall@10 for these two, on ndcg@10 elsewhere.
RELEASED_STOP_ON_RECALL = {"Industrial_and_Scientific", "Prime_Pantry"}


class Strict(BaseModel):
    """A model that rejects unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FeatureFiles(Strict):
    """Precomputed features, one file a modality; widths may differ."""

    text: Path | None = Field(None, description="Parquet with item_id and text")
    image: Path | None = Field(None, description="Parquet with item_id and image")

    @model_validator(mode="after")
    def _not_empty(self) -> "FeatureFiles":
        if self.text is None and self.image is None:
            raise ValueError("name a file for `text`, for `image` or for both")
        return self


OneFile = Annotated[Path, Tag("(one file)")]
FileEach = Annotated[FeatureFiles, Tag("(a file each)")]
#: which of the two is told by the form, so that a mistake in one is not told of the other too
Features = Annotated[
    OneFile | FileEach, Discriminator(lambda v: "(one file)" if isinstance(v, str | Path) else "(a file each)")
]


class Domain(Strict):
    """One catalogue with its users: a category of Amazon Reviews, or the user's own files."""

    amazon: str | None = Field(None, description="category name of Amazon Reviews, e.g. Industrial_and_Scientific")
    edition: Literal[2018, 2023] = Field(2018, description="edition of Amazon Reviews")
    interactions: Path | None = Field(
        None, description=".parquet, .csv or .tsv: user_id, item_id, timestamp or position, rating optional"
    )
    items: Path | None = Field(
        None, description="item_id and any of title, brand, categories, description, text, image"
    )
    features: Features | None = Field(None, description="precomputed: item_id, text, image; null is missing")
    k_core: int = Field(5, ge=0, description="every user and item keeps at least this many events; 0 takes all events")
    missing_features: Literal["zero", "error"] = Field("zero", description="what to do about items without features")

    @model_validator(mode="after")
    def _one_source(self) -> "Domain":
        if self.amazon is None and self.interactions is None:
            raise ValueError("name `amazon` or `interactions`")
        if self.amazon is not None and self.interactions is not None:
            raise ValueError(
                f"`interactions` and `amazon` ({self.amazon}) are both there: keep one; if you wrote no `amazon`, "
                "config.yaml has a domain of this name already: give yours another"
            )
        if self.amazon is not None and self.items is not None:
            raise ValueError("`items` belongs to own `interactions`; an Amazon category brings its own metadata")
        return self


class EncoderConfig(Strict):
    """The frozen encoder of text and images."""

    name: FileName = Field("siglip", description="name of its folder below `folder`, and of its features'")
    source: str = Field(
        "hf-hub:timm/ViT-B-16-SigLIP",
        description="hf-hub:ORG/REPO, local-dir:PATH, or tiny (a small fixed random SigLIP, for the demo and tests)",
    )
    folder: Path = Field(Path("data/encoders"), description="where the encoder is kept after it was fetched once")
    batch_size: int = Field(256, ge=1)
    precision: Literal["bf16", "fp32"] = Field("bf16", description="of the encoder's forward pass")

    @model_validator(mode="after")
    def _name_is_free(self) -> "EncoderConfig":
        if self.name == "precomputed":
            raise ValueError("`name: precomputed` is taken by features brought along; choose another")
        return self


class ImagesConfig(Strict):
    """How pictures are fetched."""

    concurrency: int = Field(16, ge=1, le=64, description="requests under way at once")
    timeout: float = Field(20.0, gt=0, description="seconds to wait for a picture")
    tries: int = Field(3, ge=1, description="tries for one picture before it counts as unreachable")
    max_side: int = Field(512, ge=224, description="pictures are stored scaled down to at most this many pixels a side")


class StageOverrides(Strict):
    """Overrides of every system's training settings; a key left out keeps the system's own value."""

    epochs: int | None = Field(None, ge=1)
    patience: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)
    accumulate: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0)


class FinetuneOverrides(StageOverrides):
    """The same of fine-tuning."""

    epochs: int | None = Field(None, ge=0, description="0: zero-shot, what pre-training left is ranked as it is")


class TableTargets(Strict):
    """What a table is made of, where it has not all targets."""

    targets: list[str] | None = Field(None, description="those of `targets` that are in it; default, or none: all")


def _no_duplicates(values: Any) -> Any:
    if isinstance(values, list) and len(set(map(str, values))) != len(values):
        raise ValueError("an entry stands twice")
    return values


Names = Annotated[list[str], BeforeValidator(_no_duplicates)]
Seeds = Annotated[list[Annotated[int, Field(ge=0, le=2**63 - 1)]], BeforeValidator(_no_duplicates)]


class Fig2(Strict):
    """The truncation study of figure 2: systems that see only the last items of a history, trained from scratch."""

    domain: str = Field("kindle", description="a source or a target; one that is neither has to be asked for by name")
    systems: Names = Field(["sasrec", "mamba4rec"], description="those of `systems` that are in it")
    lengths: Annotated[list[PositiveInt], BeforeValidator(_no_duplicates)] = Field(
        list(range(1, 21)), min_length=1, description="last items that are seen; shares are of what the most reach"
    )
    seeds: Seeds | None = Field(
        None, min_length=1, description="default: the first of `seeds`, since each is a training a system and length"
    )

    @field_validator("systems")
    @classmethod
    def _read_histories(cls, systems: list[str]) -> list[str]:
        for name in systems:
            if read_system(name).finetune is None:
                raise ValueError(f"{name} trains nothing on histories that could be cut; leave it out")
        return systems


class Config(Strict):
    """The whole of ``config.yaml``."""

    results: Path = Field(Path("results"), description="root of everything a run writes")
    raw: Path = Field(Path("data/raw"), description="raw files: downloaded here, or brought by hand")
    seeds: Seeds = Field([2020, 2021, 2022], min_length=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = Field("32-true", description="of training; 32-true uses TF32 on GPUs")
    pretrain_devices: int = Field(
        1, ge=1, description="devices that share a pre-training: GPUs, or processor cores; changes rounding alone"
    )
    offline: bool = Field(False, description="true: no network at all; images not yet there count as unreachable")
    preset: Preset = "paper"
    text_fields: TextFields | None = Field(None, description="text of an item; default: the preset's")
    missing_image: MissingImage | None = Field(
        None, description="what stands for a missing image; default: the preset's"
    )
    sources: Names = Field([], description="pre-training domains; none: every system is trained from scratch")
    targets: Names = Field(min_length=1, description="domains the systems are fine-tuned and compared on")
    systems: Names = Field(min_length=1, description="what the tables compare; `mmm4rec systems` lists the keys")
    compare: str | None = Field(
        None,
        description="system that Tables II to IV and the sparsity table hold against the best other one, where it is "
        "in them; none: MMM4Rec, in Table III that without ids",
    )
    table4: TableTargets = Field(TableTargets(), description="the comparison on items with an image")
    table6: TableTargets = Field(TableTargets(), description="the variants of MMM4Rec")
    fig2: Fig2 = Fig2()
    gate: Literal["error", "warn"] = Field("error", description="Table I against print, for the 2018 edition")
    mask_seen: bool = Field(False, description="true: items of the history are no candidates at ranking")
    domains: dict[FileName, Domain]
    encoder: EncoderConfig = EncoderConfig()
    images: ImagesConfig = ImagesConfig()
    pretrain: StageOverrides = StageOverrides()
    indomain: StageOverrides = StageOverrides()
    finetune: FinetuneOverrides = FinetuneOverrides()
    settings: dict[str, dict[str, Any]] = Field(
        {}, description="overrides of systems' settings, by system key; variants inherit them"
    )

    @field_validator(*STAGES, mode="before")
    @classmethod
    def _for_all_systems(cls, values: Any, info: ValidationInfo) -> Any:
        """What is known in the block of the same name of a single system is no misspelling."""
        for key in values if isinstance(values, Mapping) else ():
            if key in StageSettings.model_fields and key not in StageOverrides.model_fields:
                raise ValueError(f"`{key}` is set a system at a time: settings.<system>.{info.field_name}.{key}")
        return values

    @model_validator(mode="after")
    def _names_exist(self) -> "Config":
        for key in ("sources", "targets"):
            for name in getattr(self, key):
                if name not in self.domains:
                    known = ", ".join(self.domains)
                    raise ValueError(f"`{key}` names the domain {name!r}, which `domains` does not define ({known})")
        if "domain" in self.fig2.model_fields_set and self.fig2.domain not in self.domains:
            raise ValueError(f"`fig2` names the domain {self.fig2.domain!r}, which `domains` does not define")
        for name in self.domains:
            if name.endswith(WITH_IMAGE):
                raise ValueError(
                    f"domains.{name}: names that end in {WITH_IMAGE} stand for domains of Table IV; rename it"
                )
        for table in (4, 6):
            for name in getattr(self, f"table{table}").targets or ():
                if name not in self.domains:
                    raise ValueError(f"`table{table}` names the domain {name!r}, which `domains` does not define")
                # config.yaml names some of the paper's, also below a file with other targets
                if name not in self.targets and paper_name(self.domains[name].amazon or "") != name:
                    raise ValueError(
                        f"`table{table}` names the domain {name!r}, which `targets` does not: add it there"
                    )
        for one, other in product(self.sources, self.targets):
            if one == other:
                raise ValueError(f"{one} cannot be in `sources` and in `targets`: the test items would leak")
            if self._same_data(one, other):
                raise ValueError(f"the source {one} has the events of the target {other}: the test items would leak")
        for name in [*self.systems, *self.settings]:
            if name not in system_keys():
                raise ValueError(_unknown_system(name))
        if self.compare is not None and self.compare not in self.systems:
            raise ValueError(f"`compare` names the system {self.compare!r}, which `systems` does not: add it there")
        own = [name for name in [*self.sources, *self.targets] if self.domains[name].features is not None]
        if own and self.data_switches["missing_image"] == "white":
            raise ValueError(
                "`missing_image: white` (so in `preset: released`) is an image to be encoded, which precomputed "
                f"`features` leave no room for ({', '.join(own)}): set `missing_image: zero` or `mask`"
            )
        return self

    def _same_data(self, one: str, other: str) -> bool:
        """Whether two names stand for the same events, of either edition."""
        a, b = self.domains[one], self.domains[other]
        files = [spec.interactions.resolve() for spec in (a, b) if spec.interactions]  # one file has many spellings
        return (len(files) == 2 and files[0] == files[1]) or (a.amazon is not None and a.amazon == b.amazon)

    @property
    def data_switches(self) -> dict[str, Any]:
        """The preset's switches on data, with the user's own choices on top."""
        own = {"text_fields": self.text_fields, "missing_image": self.missing_image}
        return PRESET_DATA[self.preset] | {k: v for k, v in own.items() if v is not None}


# ------------------------------------------------------------------------------------------------ systems


class StageSettings(Strict):
    """How one training stage runs. Gradients of ``accumulate`` batches are summed, not averaged, before a step."""

    optimizer: Literal["adam", "adamw", "nadam"] = "adam"
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(0.0, ge=0)
    batch_size: int = Field(ge=1)
    accumulate: int = Field(1, ge=1)
    epochs: int = Field(ge=1)
    patience: int | None = Field(None, ge=1, description="epochs strictly below the best before training stops")
    stop_metric: Literal["recall@10", "recall@50", "ndcg@10", "ndcg@50"] = "ndcg@10"
    max_grad_norm: float | None = Field(None, gt=0, description="of the mean gradient over a step's batches")


class FinetuneSettings(StageSettings):
    """How fine-tuning runs, which may be left out: zero-shot, what pre-training left is ranked as it is."""

    epochs: int = Field(ge=0)


class SystemFile(Strict):
    """One ``config/systems/<system>.yaml``: a column of the tables."""

    base: str | None = Field(None, description="system whose settings these ones change")
    name: str = Field(description="as the paper prints it")
    version: int = Field(1, description="raised by hand when the system's results change")
    reads: list[Literal["ids", "text", "image", "time", "attributes"]] = Field(
        description="what an item or event is known by; `attributes`: the item's brand and categories"
    )
    tables: list[Literal[2, 3, 4, 5, 6]] = Field(description="the paper's tables this system stands in")
    model: str = Field(description="key of the class in mmm4rec.models")
    one_device: bool = Field(
        False, description="pre-training takes one device alone: its loss encodes more than what `encode_rows` does"
    )
    settings: dict[str, Any] = Field({}, description="hyper-parameters, checked by the model's own Settings")
    added: dict[str, Any] = Field(
        {},
        description="hyper-parameters that came when runs were finished already, at the defaults of the model's own "
        "Settings: only one that a user changes is a param, so that nothing runs again for the others",
    )
    released: dict[str, Any] = Field({}, description="what `preset: released` changes in `settings`")
    pretrain: StageSettings | None = Field(None, description="none: the system does not transfer")
    released_pretrain: dict[str, Any] = Field({}, description="what `preset: released` changes in `pretrain`")
    pretrained_as: str | None = Field(None, description="system whose pre-trained weights this one starts from")
    indomain: StageSettings | None = Field(
        None,
        description="a first stage on the target itself: its training events, with the system's own pre-training "
        "objective, before fine-tuning",
    )
    finetune: FinetuneSettings | None = Field(None, description="none: nothing to train")

    @field_validator("model")
    @classmethod
    def _is_there(cls, model: str) -> str:
        if not (Path(__file__).parent / "models" / f"{model}.py").exists():
            raise ValueError(f"there is no mmm4rec/models/{model}.py")
        return model


def system_keys() -> list[str]:
    """Keys of all systems, in the tables' order."""
    keys = sorted(path.stem for path in SYSTEMS_DIR.glob("*.yaml"))
    return sorted(keys, key=lambda key: SYSTEM_ORDER.index(key) if key in SYSTEM_ORDER else len(SYSTEM_ORDER))


def _unknown_system(name: str) -> str:
    return f"unknown system {name!r}; {is_it(name, system_keys()) or 'known: ' + ', '.join(system_keys())}"


def _merge(base: Any, over: Any) -> Any:
    """Merge dictionaries, key by key; anything else is replaced."""
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        return {k: _merge(base[k], v) if k in base and k in over else v for k, v in {**base, **over}.items()}
    return over


def read_system(key: str) -> SystemFile:
    """Read one system's settings file, with those it is based on.

    Raises:
        UserError: there is no such system, or its file is not valid.
    """
    values: dict[str, Any] = {}
    for _, own in _lineage(key):
        values = _merge(values, own)
    return validated(SystemFile, values, SYSTEMS_DIR / f"{key}.yaml")


def bases(key: str) -> list[str]:
    """The systems that a system's settings file changes, the nearest first; none if it stands on its own."""
    return [name for name, _ in _lineage(key)][-2::-1]


def others(systems: Iterable[str], ours: str) -> list[str]:
    """The systems that one is compared with: all but itself and those whose settings files change its own."""
    return [system for system in systems if ours not in (system, *bases(system))]


@lru_cache
def _settings_file(path: Path, changed: int) -> dict[str, Any]:
    """A settings file, read once a change: a plan asks for the same ones hundreds of times."""
    return read_yaml(path)


def _lineage(key: str) -> list[tuple[str, dict[str, Any]]]:
    """The settings files a system is made of, by system: the one that all is based on first, its own last."""
    files: list[tuple[str, dict[str, Any]]] = []
    while key is not None:
        if key in [k for k, _ in files]:
            circle = " -> ".join([*(k for k, _ in files), key])
            raise UserError(f"{SYSTEMS_DIR / files[0][0]}.yaml: `base` goes round in a circle: {circle}")
        path = SYSTEMS_DIR / f"{key}.yaml"
        if not path.exists():
            named = f"{SYSTEMS_DIR / files[-1][0]}.yaml: base: " if files else ""
            raise UserError(f"{named}{_unknown_system(key)}")
        own = dict(_settings_file(path, path.stat().st_mtime_ns))
        files.append((key, own))
        key = own.pop("base", None)
    return files[::-1]


# ------------------------------------------------------------------------------------------------ reading


def load_config(path: Path | str = "config.yaml", *more: Path | str) -> Config:
    """Read ``config.yaml`` and merge further files over it, as Snakemake's ``--configfile`` does.

    Raises:
        UserError: a file is missing, or a key or value in it is wrong.
    """
    merged: dict[str, Any] = {}
    for one in (path, *more):
        merged = _merge(merged, read_yaml(Path(one)))
    return parse_config(merged, ", ".join(map(str, (path, *more))))


def parse_config(values: Mapping[str, Any], origin: object = "configuration") -> Config:
    """Validate a configuration that was read already (by Snakemake, say).

    Raises:
        UserError: a key is unknown or a value is wrong; the message names the key.
    """
    config: Config = validated(Config, dict(values), origin)
    try:
        for key in dict.fromkeys([*config.settings, *config.systems]):  # what was written, before what inherits it
            resolve_system(config, key)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    readers = [key for key in config.systems if reads_features(config, key)]
    _check_items(config, readers, origin)
    _check_transfer(config, readers, origin)
    _check_zero_shot(config, origin)
    return config


def _check_items(config: Config, readers: list[str], origin: object) -> None:
    """Own domains without anything known of their items leave nothing to systems that read text or images."""
    for name in dict.fromkeys([*config.sources, *config.targets]):
        spec = config.domains[name]
        if readers and spec.interactions and spec.items is None and spec.features is None:
            raise UserError(
                f"{origin}: domains.{name} has neither `items` nor `features`, and {', '.join(readers)} read text or "
                "images: name one of the two, or take systems that read ids alone"
            )


def _check_transfer(config: Config, readers: list[str], origin: object) -> None:
    """What is learned of features is carried over to features of the same encoder alone."""
    transferring = [key for key in readers if pretrain_key(config, key)]
    own: dict[bool, list[str]] = {True: [], False: []}
    for name in [*config.sources, *config.targets]:
        own[config.domains[name].features is not None].append(name)
    if transferring and own[True] and own[False]:
        raise UserError(
            f"{origin}: own `features` for {', '.join(own[True])} and none for {', '.join(own[False])}: systems that "
            f"transfer ({', '.join(transferring)}) need features of one encoder, so give own ones to all of `sources` "
            "and `targets` or to none, or set `sources: []`"
        )


def _check_zero_shot(config: Config, origin: object) -> None:
    """Ranking without fine-tuning takes something that was learned before."""
    for key in config.systems:
        system = resolve_system(config, key)
        if system.finetune and not (system.finetune.epochs or system.indomain or pretrain_key(config, key)):
            raise UserError(
                f"{origin}: finetune.epochs is 0 for {key}, which has no pre-training here, so it would be ranked "
                "without learning anything: give it epochs, leave it out, or name `sources` for one that transfers"
            )


def json_schema() -> dict[str, Any]:
    """JSON schema of ``config.yaml`` (``workflow/schemas/config.schema.json`` is generated from it)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


# ------------------------------------------------------------------------------------------------ what each step gets


def resolve_system(config: Config, key: str) -> SystemFile:
    """A system's settings with the preset, the global overrides and the user's own on top."""
    system = read_system(key)
    values = system.model_dump()
    own = _overrides(config, key)
    known = values["added"] | values["settings"]
    unknown = sorted(set(own) - set(STAGES) - set(known))
    if unknown:
        near = is_it(unknown[0], [*known, *STAGES]) or f"known: {', '.join([*known, *STAGES])}"
        raise UserError(f"settings.{key}.{unknown[0]}: unknown key; {near}")
    if config.preset == "released":
        values["settings"] |= values["released"]
        if values["pretrain"]:
            values["pretrain"] |= values["released_pretrain"]
    for stage in STAGES:
        over = own.get(stage, {})
        if not isinstance(over, dict):
            raise UserError(f"settings.{key}.{stage}: expected keys and values, found {over!r}")
        if values[stage]:
            values[stage] |= getattr(config, stage).model_dump(exclude_none=True) | over
        elif over:
            raise UserError(f"settings.{key}.{stage}: {key} has no such stage")
    changed = {k: v for k, v in own.items() if k not in STAGES}
    changed |= _numbers(known, changed, f"settings.{key}")
    values["settings"] |= {k: v for k, v in changed.items() if k in values["settings"] or v != known[k]}
    if values["settings"].get("use_time", "off") not in ("off", False) and "time" not in values["reads"]:
        raise UserError(f"settings.{key}.use_time: {key} is the variant without time; leave it off")
    return validated(SystemFile, values, f"settings.{key}")


def _numbers(settings: Mapping[str, Any], changed: Mapping[str, Any], origin: str) -> dict[str, int | float]:
    """The changed values of what is a number in a settings file, as numbers: YAML takes 1e-3 for a string.

    Limits, and all that is no number, are left to the model, which only a training loads.
    """
    numbers = {}
    for name, value in changed.items():
        if (kind := type(settings[name])) in (int, float):
            try:
                if isinstance(value, bool):
                    raise ValueError
                numbers[name] = TypeAdapter(kind).validate_python(value)
            except ValueError:  # pydantic's too
                what = "a whole number" if kind is int else "a number"
                raise UserError(f"{origin}.{name}: expected {what}, found {value!r}") from None
    return numbers


def _overrides(config: Config, key: str) -> dict[str, Any]:
    """The user's ``settings`` of a system; a variant inherits those of its base, but for what its own file sets."""
    over: dict[str, Any] = {}
    for name, file in _lineage(key):
        over = {
            k: _without(v, file[k]) if k in file else v for k, v in over.items() if k not in file.get("settings", {})
        }
        over = _merge(over, config.settings.get(name, {}))
    return over


def _without(values: Any, said: Any) -> Any:
    """The entries of a stage's overrides that a settings file does not set; none if it has no such stage."""
    if said is None or not isinstance(values, Mapping):
        return {}
    return {k: v for k, v in values.items() if k not in said}


def prepare_settings(config: Config, domain: str) -> dict[str, Any]:
    """What changes a prepared domain."""
    spec = config.domains[domain]
    keep = {"amazon", "edition", "k_core"}
    return {
        "version": VERSIONS["prepare"],
        "domain": domain,
        **spec.model_dump(mode="json", include=keep),
        "text_fields": config.data_switches["text_fields"],
    }


def embed_settings(config: Config, domain: str) -> dict[str, Any]:
    """What changes a domain's feature file."""
    spec = config.domains[domain]
    if spec.features is not None:
        return {"version": VERSIONS["import_features"], "missing_features": spec.missing_features}
    return {
        "version": VERSIONS["embed"],
        "encoder": config.encoder.source,
        "precision": config.encoder.precision,
        "text_fields": config.data_switches["text_fields"],
        # what stands for a missing image in training, `zero` or `mask`, changes no features
        "missing_image": "white" if config.data_switches["missing_image"] == "white" else "zero",
        "missing_features": spec.missing_features,
    }


def with_image_settings(config: Config, domain: str) -> dict[str, Any]:
    """What changes a domain that is cut down to its items with an image."""
    return {"version": VERSIONS["with_image"], "domain": domain, "k_core": config.domains[domain].k_core}


def features_path(config: Config, domain: str) -> Path:
    """Where a domain's features are kept: one file a domain and encoder."""
    if domain.endswith(WITH_IMAGE):
        return config.results / "domains" / domain / "features.parquet"
    encoder = "precomputed" if config.domains[domain].features is not None else config.encoder.name
    return config.results / "features" / encoder / f"{domain}.parquet"


def pretrain_key(config: Config, system: str) -> str | None:
    """The system whose pre-trained weights ``system`` starts from, or None if it is trained from scratch."""
    resolved = resolve_system(config, system)
    if resolved.pretrain is None or not config.sources:
        return None
    return resolved.pretrained_as or system


def pretrain_devices(config: Config, system: str) -> int:
    """How many devices share a system's pre-training: those that are configured, if it can be divided."""
    return 1 if resolve_system(config, system).one_device else config.pretrain_devices


def pretrain_settings(config: Config, system: str) -> dict[str, Any]:
    """What changes pre-trained weights."""
    resolved = resolve_system(config, system)
    assert resolved.pretrain is not None, system
    return {
        "version": [VERSIONS["pretrain"], resolved.version],
        "system": system,
        "model": resolved.model,
        "reads": resolved.reads,
        "sources": config.sources,
        "seed": config.seeds[0],
        "precision": config.precision,
        "missing_image": config.data_switches["missing_image"],
        "settings": resolved.settings,
        "stage": resolved.pretrain.model_dump(),
    }


def finetune_settings(config: Config, system: str, domain: str, seed: int) -> dict[str, Any]:
    """What changes one run: a system fine-tuned and ranked on a target with a seed."""
    resolved = resolve_system(config, system)
    stage = resolved.finetune.model_dump() if resolved.finetune else None
    if (
        stage
        and resolved.model == "mmm4rec"
        and config.preset == "released"
        and config.domains[domain.removesuffix(WITH_IMAGE)].amazon in RELEASED_STOP_ON_RECALL
        and "stop_metric" not in _overrides(config, system).get("finetune", {})
    ):
        stage["stop_metric"] = "recall@10"
    # no key where there is no such stage: runs of all other systems keep their params
    indomain = {"indomain": resolved.indomain.model_dump()} if resolved.indomain else {}
    return {
        "version": [VERSIONS["finetune"], resolved.version],
        "system": system,
        "model": resolved.model,
        "reads": resolved.reads,
        "domain": domain,
        "seed": seed,
        "precision": config.precision,
        "missing_image": config.data_switches["missing_image"],
        "mask_seen": config.mask_seen,
        "pretrained": pretrain_key(config, system) is not None,
        "settings": resolved.settings,
        "stage": stage,
        **indomain,
    }


def truncation_settings(config: Config, system: str, domain: str, last: int, seed: int) -> dict[str, Any]:
    """What changes one run of figure 2: a run that sees only the ``last`` items of a history.

    It starts from scratch: the domain may be a source, whose test items pre-training has seen.
    """
    settings = finetune_settings(config, system, domain, seed)
    return settings | {"pretrained": False, "settings": settings["settings"] | {"max_length": last}}


def result_settings(config: Config) -> dict[str, Any]:
    """The configuration without what changes no result: devices, folders, ways to fetch, domains that are not used."""
    without = {"device", "pretrain_devices", "offline", "gate", "results", "raw"}
    if not figure2_unasked(config):  # the paper's, most likely, of which nothing is made
        without.add("fig2")
    images, encoder = {"concurrency", "timeout", "tries"}, {"batch_size", "folder"}
    values = config.model_dump(
        mode="json", exclude={**dict.fromkeys(without, True), "images": images, "encoder": encoder}
    )
    used = {*config.sources, *config.targets}
    for table in ("table4", "table6"):
        if (chosen := values[table]["targets"]) is not None:
            values[table]["targets"] = [name for name in chosen if name in used]
    return values | {"domains": {name: value for name, value in values["domains"].items() if name in used}}


def table_domains(config: Config, table: int) -> list[str]:
    """The prepared domains a table is made of; none, where it is about other targets than the configured ones."""
    chosen = getattr(config, f"table{table}").targets if table in (4, 6) else None
    names = [name for name in config.targets if chosen is None or name in chosen]
    return [f"{name}{WITH_IMAGE}" for name in names] if table == 4 else names


def table_systems(config: Config, *tables: int) -> list[str]:
    """The configured systems that stand in one of these tables of the paper, in the tables' order."""
    keys = [key for key in system_keys() if key in config.systems]
    return [key for key in keys if not set(tables).isdisjoint(read_system(key).tables)]


def truncated_systems(config: Config) -> list[str]:
    """The configured systems that stand in figure 2, in the tables' order."""
    return [key for key in system_keys() if key in config.systems and key in config.fig2.systems]


def truncations(config: Config) -> list[tuple[str, int, int]]:
    """System, last items and seed of each run of figure 2."""
    seeds = config.fig2.seeds or config.seeds[:1]
    return [(s, last, seed) for s in truncated_systems(config) for last in config.fig2.lengths for seed in seeds]


def figure2_unasked(config: Config) -> bool:
    """Whether figure 2 is made without being asked for by name: only of a domain that is prepared anyway."""
    return bool(truncations(config)) and config.fig2.domain in (*config.sources, *config.targets)


def all_table_numbers(config: Config) -> list[int]:
    """The tables from II on that some configured system and target stand in.

    Table IV needs images, and whether own features have some shows when they are read: ask for it by name then.
    """
    numbers = [n for n in (2, 3, 4, 5, 6) if table_systems(config, n) and table_domains(config, n)]
    own = any(config.domains[name.removesuffix(WITH_IMAGE)].features for name in table_domains(config, 4))
    return [n for n in numbers if n != 4 or not own]


def reads_features(config: Config, system: str) -> bool:
    """Whether a system reads text or images."""
    return not {"text", "image"}.isdisjoint(resolve_system(config, system).reads)


def raw_files(config: Config) -> dict[Path, tuple[str, Edition, Kind]]:
    """Category, edition and kind of every raw file of Amazon Reviews that a domain is prepared from, by its path."""
    kinds: tuple[Kind, ...] = ("ratings", "metadata")
    return {
        raw_path(config.raw, spec.amazon, spec.edition, kind): (spec.amazon, spec.edition, kind)
        for spec in config.domains.values()
        if spec.amazon
        for kind in kinds
    }


def uses_gpu(config: Config) -> bool:
    """Whether training runs on a GPU, by the configuration and by what this machine has."""
    return config.device == "cuda" or (config.device == "auto" and shutil.which("nvidia-smi") is not None)


def paper_domain(config: Config, domain: str) -> str | None:
    """What the paper calls a domain, if it is one of the paper's: of the 2018 edition, filtered as there."""
    spec = config.domains[domain]
    return paper_name(spec.amazon) if spec.amazon and (spec.edition, spec.k_core) == (2018, 5) else None
