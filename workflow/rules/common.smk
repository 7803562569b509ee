"""Everything that the other files of this folder call: the checked configuration, and functions of wildcards."""

import json
import os
import re
import shlex
import sys
from pathlib import Path

from mmm4rec.config import (
    WITH_IMAGE,
    all_table_numbers,
    embed_settings,
    features_path,
    finetune_settings,
    paper_domain,
    parse_config,
    prepare_settings,
    pretrain_key,
    pretrain_settings,
    raw_files,
    reads_features,
    system_keys,
    table_domains,
    table_systems,
    uses_gpu,
    with_image_settings,
)
from mmm4rec.data.registry import raw_path
from mmm4rec.errors import UserError
from mmm4rec.versions import VERSIONS

try:
    CONFIG = parse_config(config, ", ".join(map(str, workflow.configfiles)))
except UserError as error:
    sys.exit(f"error: {error}")

# What changes no output is no param, for a changed param reruns a step: the commands read it from these variables.
os.environ |= {
    # jobs run the interpreter that runs Snakemake, whether or not its environment is activated
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    # threads that wait sleep: where several jobs share the cores, spinning ones cost a multiple of the work itself
    "OMP_WAIT_POLICY": "PASSIVE",
    "MMM4REC_DEVICE": CONFIG.device,
    "MMM4REC_OFFLINE": str(int(CONFIG.offline)),
    "MMM4REC_BATCH_SIZE": str(CONFIG.encoder.batch_size),
    "MMM4REC_CONCURRENCY": str(CONFIG.images.concurrency),
    "MMM4REC_TIMEOUT": str(CONFIG.images.timeout),
    "MMM4REC_TRIES": str(CONFIG.images.tries),
}
GPU = int(uses_gpu(CONFIG))
TARGETS = "|".join(map(re.escape, CONFIG.targets))
PREPARED = "|".join(map(re.escape, [*CONFIG.domains, *(name + WITH_IMAGE for name in CONFIG.targets)]))

# path of a raw file: (category, edition, kind)
RAW_FILES = {str(path): about for path, about in raw_files(CONFIG).items()}
DEMO_FILES = [path for path, (category, _, _) in RAW_FILES.items() if category.startswith("Demo_")]
# A file that is there is a source like any other: it causes no request, and nothing ever removes or replaces it.
MISSING_FILES = [path for path in RAW_FILES if path not in DEMO_FILES and not Path(path).exists()]

# Inputs of these names stand for the folder they lie in.
FOLDERS = {"domain", "images", "encoder", "pretrained", "run"}


def options(wildcards, input):
    """Named inputs as options of a command: `--features FILE`, `--domain FOLDER`, repeated where there are several."""
    return " ".join(
        f"--{name.rstrip('_').replace('_', '-')} {shlex.quote(str(Path(path).parent) if name in FOLDERS else path)}"
        for name in input.keys()
        for path in ([input[name]] if isinstance(input[name], str) else input[name])
    )


# ------------------------------------------------------------------------------------------------ files a step reads


def domain_file(domain, name="interactions"):
    """A file of a prepared domain."""
    return str(CONFIG.results / "domains" / domain / f"{name}.parquet")


def raw_folder(wildcards):
    """Where raw files are kept."""
    return str(CONFIG.raw)


def results_folder(wildcards):
    """The root of everything this run writes."""
    return str(CONFIG.results)


def download_of(wildcards):
    """Options that name a raw file."""
    category, edition, kind = RAW_FILES[str(CONFIG.raw / wildcards.file)]
    return f"--category {shlex.quote(category)} --edition {edition} --kind {kind}"


def prepare_inputs(wildcards):
    """What a domain is prepared from: two raw files of Amazon Reviews, or the user's own."""
    spec = CONFIG.domains[wildcards.domain]
    if spec.amazon:
        files = {kind: raw_path(CONFIG.raw, spec.amazon, spec.edition, kind) for kind in ("ratings", "metadata")}
    else:
        files = {"interactions": spec.interactions, "items_": spec.items}  # `items` is Snakemake's own
    return {name: str(path) for name, path in files.items() if path}


def own_features(wildcards):
    """Precomputed features: one file, or one a modality."""
    features = CONFIG.domains[wildcards.domain].features
    files = {"features": features} if isinstance(features, Path) else {"text": features.text, "image": features.image}
    return {name: str(path) for name, path in files.items() if path}


def features_of(system, domains):
    """Feature files of domains, none if the system does not read them."""
    return [str(features_path(CONFIG, domain)) for domain in domains] if reads_features(CONFIG, system) else []


def pretrain_inputs(wildcards):
    """Prepared sources, and their features."""
    return {
        "domain": [domain_file(name) for name in CONFIG.sources],
        "features": features_of(wildcards.system, CONFIG.sources),
    }


def finetune_inputs(wildcards):
    """A prepared target, its features, and the pre-trained weights, where the system uses them."""
    start = pretrain_key(CONFIG, wildcards.system)
    return {
        "domain": domain_file(wildcards.domain),
        "features": features_of(wildcards.system, [wildcards.domain]),
        "pretrained": [str(CONFIG.results / "pretrained" / start / "model.safetensors")] if start else [],
    }


def table1_inputs(wildcards):
    """Every prepared domain, and their features if any system reads them."""
    domains = [*CONFIG.sources, *CONFIG.targets]
    some_system = next((name for name in CONFIG.systems if reads_features(CONFIG, name)), None)
    return {
        "domain": [domain_file(name) for name in domains],
        "features": features_of(some_system, domains) if some_system else [],
    }


def table_runs(wildcards):
    """Runs of a table: its targets, or the one that the file is named after."""
    number, target = int(wildcards.number), wildcards.part.removeprefix("/")
    alone = target + WITH_IMAGE if number == 4 else target
    return expand(
        "<results>/runs/{domain}/{system}/seed_{seed}/metrics.json",
        domain=alone if target else table_domains(CONFIG, number),
        system=table_systems(CONFIG, number),
        seed=CONFIG.seeds,
    )


def all_tables():
    """What `snakemake` makes without a target: each table that some configured system stands in."""
    return expand("<results>/tables/table{number}.csv", number=[1, *all_table_numbers(CONFIG)])


# ------------------------------------------------------------------------------------------------ what changes an output


def prepare_params(wildcards):
    """Settings of `prepare`, as JSON."""
    return json.dumps(prepare_settings(CONFIG, wildcards.domain))


def with_image_params(wildcards):
    """Settings of `with_image`, as JSON."""
    return json.dumps(with_image_settings(CONFIG, wildcards.domain))


def embed_params(wildcards):
    """Settings of `embed` and of `import_features`, as JSON."""
    return json.dumps(embed_settings(CONFIG, wildcards.domain))


def pretrain_params(wildcards):
    """Settings of `pretrain`, as JSON."""
    return json.dumps(pretrain_settings(CONFIG, wildcards.system))


def finetune_params(wildcards):
    """Settings of `finetune`, as JSON."""
    return json.dumps(finetune_settings(CONFIG, wildcards.system, wildcards.domain, int(wildcards.seed)))


def table1_params(wildcards):
    """Settings of Table I, as JSON; comparable with print are domains of the 2018 edition, filtered as in the paper."""
    names = {name: paper_domain(CONFIG, name) for name in [*CONFIG.sources, *CONFIG.targets]}
    published = {name: printed for name, printed in names.items() if printed}
    settings = {"published": published, "gate": CONFIG.gate, "sources": CONFIG.sources}
    return json.dumps({"version": VERSIONS["tables"], **settings})


def table_params(wildcards):
    """Settings of a table of runs, as JSON."""
    return json.dumps({"version": VERSIONS["tables"], "systems": table_systems(CONFIG, int(wildcards.number))})
