"""From raw reviews to the paper's tables: `snakemake --cores 8` makes everything that config.yaml asks for."""

from snakemake.utils import min_version

min_version("9.19")


configfile: "config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"


# The config key `results` moves the root of everything that a run writes.
pathvars:
    results=str(CONFIG.results),
    raw=str(CONFIG.raw),
    encoder=f"{CONFIG.encoder.folder}/{CONFIG.encoder.name}",
    logs="<results>/logs",
    benchmarks="<results>/benchmarks",


wildcard_constraints:
    domain="|".join(map(re.escape, CONFIG.domains)),
    system="|".join(system_keys()),
    seed=r"\d+",


rule all:
    input:
        all_tables(),
        all_figures(),


include: "workflow/rules/data.smk"
include: "workflow/rules/features.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/figures.smk"
