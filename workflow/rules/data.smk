rule demo:
    output:
        DEMO_FILES,
    log:
        "<logs>/demo.log",
    benchmark:
        "<benchmarks>/demo.tsv"
    conda:
        "../../envs/mmm4rec.yaml"
    resources:
        mem_mb=1000,
    params:
        version=VERSIONS["demo"],
        out=subpath(output[0], parent=True),
    shell:
        "python3 -m mmm4rec demo --out {params.out:q} > {log} 2>&1"


rule download:
    output:
        ensure("<raw>/{file}", non_empty=True),
    log:
        "<logs>/download/{file}.log",
    benchmark:
        "<benchmarks>/download/{file}.tsv"
    wildcard_constraints:
        file="|".join(re.escape(str(Path(path).relative_to(CONFIG.raw))) for path in MISSING_FILES) or "(?!)",
    retries: 1
    conda:
        "../../envs/mmm4rec.yaml"
    resources:
        mem_mb=1000,
        net=1,
    params:
        file=download_of,
        raw=lambda wildcards, output: output[0].removesuffix(wildcards.file).rstrip("/"),
    shell:
        "python3 -m mmm4rec download {params.file} --raw {params.raw:q} > {log} 2>&1"


rule prepare:
    input:
        unpack(prepare_inputs),
    output:
        interactions="<results>/domains/{domain}/interactions.parquet",
        items_="<results>/domains/{domain}/items.parquet",
        users="<results>/domains/{domain}/users.parquet",
        statistics="<results>/domains/{domain}/statistics.csv",
    log:
        "<logs>/prepare/{domain}.log",
    benchmark:
        "<benchmarks>/prepare/{domain}.tsv"
    conda:
        "../../envs/mmm4rec.yaml"
    threads: 2
    resources:
        mem_mb=8000,
    params:
        inputs=options,
        settings=prepare_params,
        out=subpath(output.interactions, parent=True),
    shell:
        "POLARS_MAX_THREADS={threads} python3 -m mmm4rec prepare {params.inputs} --settings {params.settings:q}"
        " --memory-mb {resources.mem_mb} --out {params.out:q} > {log} 2>&1"


# One job a domain: pictures are kept in a few shards, which are no output: those in them are not fetched again.
rule images:
    input:
        items_="<results>/domains/{domain}/items.parquet",
    output:
        manifest="<results>/images/{domain}/manifest.parquet",
    log:
        "<logs>/images/{domain}.log",
    benchmark:
        "<benchmarks>/images/{domain}.tsv"
    conda:
        "../../envs/mmm4rec.yaml"
    resources:
        mem_mb=2000,
        net=1,
    params:
        version=VERSIONS["images"],
        max_side=CONFIG.images.max_side,
        out=subpath(output.manifest, parent=True),
    shell:
        "python3 -m mmm4rec images --items {input.items_:q} --max-side {params.max_side} --out {params.out:q} > {log} 2>&1"
