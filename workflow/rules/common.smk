"""Everything that the other files of this folder call: the checked configuration, and functions of wildcards."""

import json
import os
import re
import shlex
import sys
from itertools import chain
from pathlib import Path

from mmm4rec.config import (
    WITH_IMAGE,
    all_table_numbers,
    embed_settings,
    features_path,
    figure2_unasked,
    finetune_settings,
    paper_domain,
    parse_config,
    prepare_settings,
    pretrain_devices,
    pretrain_key,
    pretrain_settings,
    raw_files,
    reads_features,
    resolve_system,
    result_settings,
    system_keys,
    table_domains,
    table_systems,
    truncation_settings,
    truncations,
    uses_gpu,
    with_image_settings,
)
from mmm4rec.data.registry import DEMO, raw_path
from mmm4rec.errors import UserError
from mmm4rec.preflight import check_settings, check_widths, missing_files
from mmm4rec.reading import read_yaml
from mmm4rec.versions import VERSIONS

try:
    for path in workflow.configfiles:
        read_yaml(path)  # for what Snakemake's own reader lets pass: a key that stands twice
    CONFIG = parse_config(config, ", ".join(map(str, workflow.configfiles)))
    if workflow.is_main_process:  # a scheduler's jobs start Snakemake again, and need not look again
        check_settings(CONFIG)
        if not workflow.storage_settings.default_storage_provider:  # else own files lie in the storage
            # what is asked for may need none of them; where it does, Snakemake stops
            for told in missing_files(CONFIG):
                print(f"warning: {told}", file=sys.stderr)
            check_widths(CONFIG)
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
DOMAINS = "|".join(map(re.escape, CONFIG.domains))
PREPARED = "|".join(map(re.escape, [*CONFIG.domains, *(name + WITH_IMAGE for name in CONFIG.targets)]))

# path of a raw file: (category, edition, kind)
RAW_FILES = {str(path): about for path, about in raw_files(CONFIG).items()}
DEMO_FILES = [path for path, (category, _, _) in RAW_FILES.items() if category.startswith(DEMO)]
# A file that is there is a source like any other: it causes no request, and nothing ever removes or replaces it.
MISSING_FILES = [path for path in RAW_FILES if path not in DEMO_FILES and not Path(path).exists()]

# Names in the report.
PAGES = {
    "table1": "I: domains",
    "table2": "II: accuracy with item ids",
    "table3": "III: accuracy without item ids",
    "table4": "IV: items with an image",
    "table5": "V: convergence",
    "table6": "VI: variants of MMM4Rec",
    "sparsity": "Accuracy where data is thin",
    "cost": "Cost of every system",
    "provenance": "Versions, devices, configuration",
}
FIGURES = {"fig2": "2: truncated histories", "fig4": "4: convergence"}

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


def encoder_files(wildcards):
    """Files of an encoder on disk: other weights in the same place are another encoder."""
    kind, _, place = CONFIG.encoder.source.partition(":")
    files = sorted(Path(place).iterdir()) if kind == "local-dir" and Path(place).is_dir() else []
    return [str(path) for path in files if path.is_file() and path.name != "encoder.json"]


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


def devices_of(wildcards):
    """How many devices share a pre-training."""
    return pretrain_devices(CONFIG, wildcards.system)


def launcher_of(wildcards):
    """What starts a pre-training: Python, or on several devices torchrun, with a process a device."""
    devices = devices_of(wildcards)
    return "python3" if devices == 1 else f"torchrun --standalone --nproc-per-node {devices}"


def finetune_inputs(wildcards):
    """A prepared target, its features, and the pre-trained weights, where the system uses them."""
    start = pretrain_key(CONFIG, wildcards.system)
    return {
        "domain": domain_file(wildcards.domain),
        "features": features_of(wildcards.system, [wildcards.domain]),
        "pretrained": [str(CONFIG.results / "pretrained" / start / "model.safetensors")] if start else [],
    }


def attribute_files(wildcards):
    """Items, whose brands and categories are attributes to some systems: other ones leave a domain's events as they are."""
    reads = resolve_system(CONFIG, wildcards.system).reads
    return [domain_file(wildcards.domain, "items")] if "attributes" in reads else []


def table1_domains(wildcards):
    """Every domain of the run, or the one that the file is named after."""
    return [wildcards.part.removeprefix("/")] if wildcards.part else [*CONFIG.sources, *CONFIG.targets]


def table1_inputs(wildcards):
    """Prepared domains, and their features if any system reads them."""
    domains = table1_domains(wildcards)
    some_system = next((name for name in CONFIG.systems if reads_features(CONFIG, name)), None)
    return {
        "domain": [domain_file(name) for name in domains],
        "features": features_of(some_system, domains) if some_system else [],
    }


def truncation_inputs(wildcards):
    """What a run of figure 2 reads: no pre-trained weights, which may have seen the domain."""
    return finetune_inputs(wildcards) | {"pretrained": []}


def runs_of(systems, domains):
    """Runs of systems on domains, with every seed."""
    return expand(
        "<results>/runs/{domain}/{system}/seed_{seed}/metrics.json",
        domain=domains,
        system=systems,
        seed=CONFIG.seeds,
    )


def sparsity_inputs(wildcards):
    """Runs of all systems of Tables II and III, the targets they rank, and their features if any system reads them."""
    domains = [wildcards.part.removeprefix("/")] if wildcards.part else CONFIG.targets
    systems = table_systems(CONFIG, 2, 3)
    return {
        "domain": [domain_file(name) for name in domains],
        "features": list(dict.fromkeys(path for system in systems for path in features_of(system, domains))),
        "run": runs_of(systems, domains),
    }


def table_runs(wildcards):
    """Runs of a table: its targets, or the one that the file is named after."""
    number, target = int(wildcards.number), wildcards.part.removeprefix("/")
    alone = target + WITH_IMAGE if number == 4 else target
    return runs_of(table_systems(CONFIG, number), alone if target else table_domains(CONFIG, number))


def figure_runs(wildcards):
    """Runs of a figure, of which a part may be asked for: the domain behind the slash."""
    figure, _, domain = wildcards.figure.partition("/")
    if figure == "fig2":
        return truncation_runs(domain or CONFIG.fig2.domain)
    if figure == "fig4":
        return runs_of(table_systems(CONFIG, 5), domain or CONFIG.targets)
    return runs_of(trained_systems(domain), domain)


def truncation_runs(domain):
    """Runs of figure 2."""
    return [
        f"<results>/truncation/{domain}/{system}/last_{last}/seed_{seed}/metrics.json"
        for system, last, seed in truncations(CONFIG)
    ]


def trained_systems(target):
    """Systems that are trained on a target for these tables; those that count alone (Pop) have no learning curve."""
    numbers = [n for n in all_table_numbers(CONFIG) if target in table_domains(CONFIG, n)]
    return [system for system in table_systems(CONFIG, *numbers) if resolve_system(CONFIG, system).finetune]


def all_runs():
    """Every run of these tables once."""
    tables = [runs_of(table_systems(CONFIG, n), table_domains(CONFIG, n)) for n in all_table_numbers(CONFIG)]
    return list(dict.fromkeys(chain.from_iterable(tables)))


def all_trainings(wildcards):
    """Every run of the tables, and the pre-training they start from."""
    systems = table_systems(CONFIG, *all_table_numbers(CONFIG))
    starts = dict.fromkeys(start for system in systems if (start := pretrain_key(CONFIG, system)))
    return [*expand("<results>/pretrained/{start}/metrics.json", start=starts), *all_runs()]


def all_tables():
    """Every table that is made without being asked for, with its page of the report."""
    tables = ["table1", *(f"table{number}" for number in all_table_numbers(CONFIG))]
    tables += ["sparsity"] if table_systems(CONFIG, 2, 3) else []
    tables += ["cost"] if all_runs() else []
    pages = [*tables, *(["provenance"] if all_runs() else [])]
    return [*expand("<results>/tables/{table}.csv", table=tables), *expand("<results>/report/{page}.html", page=pages)]


def all_figures():
    """Every figure that is made without being asked for: figure 2 only of a domain that is prepared anyway."""
    figures = []
    if figure2_unasked(CONFIG):
        figures.append("fig2")
    if table_systems(CONFIG, 5):
        figures.append("fig4")
    figures += [f"curves/{target}" for target in CONFIG.targets if trained_systems(target)]
    return expand("<results>/figures/{figure}.{kind}", figure=figures, kind=["csv", "png"])


# ------------------------------------------------------------------------------------------------ names in the report


def page_category(wildcards):
    """Where a page stands in the report."""
    return {"cost": "Cost", "provenance": "Provenance"}.get(wildcards.table, "Tables")


def page_labels(wildcards):
    """How a page is called in the report: one label, for Snakemake makes a switch of a second one with two values."""
    table, _, domain = wildcards.table.partition("/")
    return {"table": ", ".join(filter(None, [PAGES[table], domain]))}


def figure_category(wildcards):
    """Where a figure stands in the report."""
    return "Learning curves" if wildcards.figure.startswith("curves/") else "Figures"


def figure_labels(wildcards):
    """How a figure is called in the report."""
    figure, _, domain = wildcards.figure.partition("/")
    return {"figure": ", ".join(filter(None, [FIGURES.get(figure), domain]))}


def sparsity_labels(wildcards):
    """How the figure of the sparsity table is called in the report."""
    return {"figure": ", ".join(filter(None, [PAGES["sparsity"], wildcards.part.removeprefix("/")]))}


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


def truncation_params(wildcards):
    """Settings of a run of figure 2, as JSON."""
    numbers = int(wildcards.last), int(wildcards.seed)
    return json.dumps(truncation_settings(CONFIG, wildcards.system, wildcards.domain, *numbers))


def result_params(wildcards):
    """The configuration, as JSON."""
    return json.dumps(result_settings(CONFIG))


def table1_params(wildcards):
    """Settings of Table I, as JSON; comparable with print are domains of the 2018 edition, filtered as in the paper."""
    names = {name: paper_domain(CONFIG, name) for name in table1_domains(wildcards)}
    published = {name: printed for name, printed in names.items() if printed}
    sources = [] if wildcards.part else CONFIG.sources  # their union is a row of its own
    settings = {"published": published, "gate": CONFIG.gate, "sources": sources}
    return json.dumps({"version": VERSIONS["tables"], **settings})


def table_params(wildcards):
    """Settings of a table of runs, as JSON."""
    number = int(wildcards.number)
    settings = {"version": VERSIONS["tables"], "systems": table_systems(CONFIG, number)}
    if number == 4:  # whose users print does not say
        settings["paper"] = [name for name in CONFIG.targets if paper_domain(CONFIG, name) == name]
    if number in (2, 3, 4):
        settings |= compared()
    return json.dumps(settings)


def compared():
    """The system that tables hold against the best other one, where it is not the paper's: no param for the others."""
    return {"compare": CONFIG.compare} if CONFIG.compare else {}


def sparsity_params(wildcards):
    """Settings of the sparsity table, as JSON."""
    return json.dumps({"version": VERSIONS["tables"], "systems": table_systems(CONFIG, 2, 3)} | compared())
