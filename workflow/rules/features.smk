# The record is kept until the new one is there: without it, files of another source would pass for brought by hand.
rule encoder:
    input:
        encoder_files,
    output:
        record=update("<encoder>/encoder.json"),
    log:
        "<logs>/encoder.log",
    benchmark:
        "<benchmarks>/encoder.tsv"
    retries: 1
    conda:
        "../../envs/mmm4rec.yaml"
    resources:
        mem_mb=4000,
        net=1,
    params:
        version=VERSIONS["encoder"],
        source=CONFIG.encoder.source,
        out=subpath(output.record, parent=True),
    shell:
        "python3 -m mmm4rec encoder --source {params.source:q} --out {params.out:q} > {log} 2>&1"


rule embed:
    input:
        domain="<results>/domains/{domain}/items.parquet",
        images="<results>/images/{domain}/manifest.parquet",
        encoder="<encoder>/encoder.json",
    output:
        features=f"<results>/features/{CONFIG.encoder.name}/{{domain}}.parquet",
    log:
        "<logs>/embed/{domain}.log",
    benchmark:
        "<benchmarks>/embed/{domain}.tsv"
    conda:
        "../../envs/mmm4rec.yaml"
    threads: 4
    resources:
        mem_mb=8000,
        gpu=GPU,
    params:
        inputs=options,
        settings=embed_params,
        state=f"{CONFIG.results}/state/features/{CONFIG.encoder.name}/{{domain}}",
    shell:
        "python3 -m mmm4rec embed {params.inputs} --settings {params.settings:q} --state {params.state:q}"
        " --out {output.features:q} > {log} 2>&1"


rule import_features:
    input:
        unpack(own_features),
        domain="<results>/domains/{domain}/items.parquet",
    output:
        features="<results>/features/precomputed/{domain}.parquet",
    log:
        "<logs>/import_features/{domain}.log",
    benchmark:
        "<benchmarks>/import_features/{domain}.tsv"
    conda:
        "../../envs/mmm4rec.yaml"
    resources:
        mem_mb=4000,
    params:
        inputs=options,
        settings=embed_params,
    shell:
        "python3 -m mmm4rec import-features {params.inputs} --settings {params.settings:q}"
        " --out {output.features:q} > {log} 2>&1"


# A target of Table IV: items without an image go, the k-core again.
rule with_image:
    input:
        domain="<results>/domains/{domain}/interactions.parquet",
        features=lambda wildcards: str(features_path(CONFIG, wildcards.domain)),
    output:
        interactions=f"<results>/domains/{{domain}}{WITH_IMAGE}/interactions.parquet",
        items_=f"<results>/domains/{{domain}}{WITH_IMAGE}/items.parquet",
        users=f"<results>/domains/{{domain}}{WITH_IMAGE}/users.parquet",
        features=f"<results>/domains/{{domain}}{WITH_IMAGE}/features.parquet",
        statistics=f"<results>/domains/{{domain}}{WITH_IMAGE}/statistics.csv",
    log:
        "<logs>/with_image/{domain}.log",
    benchmark:
        "<benchmarks>/with_image/{domain}.tsv"
    conda:
        "../../envs/mmm4rec.yaml"
    resources:
        mem_mb=4000,
    params:
        inputs=options,
        settings=with_image_params,
        out=subpath(output.interactions, parent=True),
    shell:
        "python3 -m mmm4rec with-image {params.inputs} --settings {params.settings:q} --out {params.out:q} > {log} 2>&1"
