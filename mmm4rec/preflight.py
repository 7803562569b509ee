"""What can be known of a run before its first job, and is no matter of the configuration's words alone.

Snakemake and ``mmm4rec plan`` come by here; what reads a configuration on another machine, or long after, does not.
"""

from collections.abc import Iterator
from pathlib import Path

from mmm4rec.config import (
    SYSTEM_ORDER,
    SYSTEMS_DIR,
    Config,
    features_path,
    pretrain_key,
    reads_features,
    resolve_system,
)
from mmm4rec.errors import UserError
from mmm4rec.reading import validated


def check_settings(config: Config) -> None:
    """Hold settings that the user changed against the systems' own limits, as a training does when it starts.

    Only then are the systems imported: PyTorch takes seconds, and what the files of the systems here say is tested.
    Those of systems that were added are looked at too.

    Raises:
        UserError: a value is outside of its limits, or does not go with another one; or a model is none.
    """
    plain = config.model_copy(update={"settings": {}})
    for key in dict.fromkeys([*config.settings, *config.systems]):  # what was written, before what inherits it
        system, without = resolve_system(config, key), resolve_system(plain, key)
        added, changed = key not in SYSTEM_ORDER, system.settings != without.settings
        if added or changed:
            from mmm4rec.models.base import model_class

            Settings = model_class(system.model).Settings
            if added:
                validated(Settings, without.settings, f"{SYSTEMS_DIR / key}.yaml: settings")
            if changed:
                validated(Settings, system.settings, f"settings.{key}")


def missing_files(config: Config) -> Iterator[str]:
    """Sentences, each about an own file of a configured source or target that is not there.

    A file is missed only if what is made of it is not there yet.
    """
    readers = [key for key in config.systems if reads_features(config, key)]
    for name in dict.fromkeys([*config.sources, *config.targets]):
        spec, prepared = config.domains[name], config.results / "domains" / name / "interactions.parquet"
        files = [("interactions", spec.interactions, prepared), ("items", spec.items, prepared)]
        files += [(key, path, features_path(config, name)) for key, path, _ in _features(config, name) if readers]
        for key, path, made in files:
            if path and not path.is_file() and not made.exists():
                yield f"domains.{name}.{key}: {path}: no such file"


def check_widths(config: Config) -> None:
    """Look at the widths of own features.

    Raises:
        UserError: systems would be pre-trained on features of other widths than the targets'.
    """
    readers = [key for key in config.systems if reads_features(config, key)]
    names = dict.fromkeys([*config.sources, *config.targets])
    carried = {part for key in readers if pretrain_key(config, key) for part in resolve_system(config, key).reads}
    for modality in [part for part in ("text", "image") if part in carried]:
        first: tuple[str, int] | None = None
        for name in names:
            for key, path, columns in _features(config, name):
                width = _width(path, modality) if modality in columns else None
                if width and first and width != first[1]:
                    raise UserError(
                        f"domains.{name}.{key}: {path} has {modality} vectors of {width} numbers, {first[0]} of "
                        f"{first[1]}; transfer needs features of one encoder: bring such, or name no `sources`"
                    )
                if width:
                    first = first or (str(path), width)


def _features(config: Config, domain: str) -> Iterator[tuple[str, Path, tuple[str, ...]]]:
    """The key of each file of own features, its path, and which modalities are read from it."""
    given = config.domains[domain].features
    if isinstance(given, Path):
        yield "features", given, ("text", "image")
    elif given:
        yield from ((f"features.{name}", path, (name,)) for name, path in given if path)


def _width(path: Path, column: str) -> int | None:
    """Numbers in a vector of a file's column; None without any, and where the import of the file says what is wrong."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # mapped, for a file may be larger than memory, and all of it one row group
        file = pq.ParquetFile(path, memory_map=True)
        kind = file.schema_arrow.field(column).type
    except (OSError, pa.ArrowException, KeyError):
        return None
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        for batch in file.iter_batches(1024, columns=[column]):
            if len(vectors := batch.column(0).drop_null()):
                return len(vectors[0])
    return None
