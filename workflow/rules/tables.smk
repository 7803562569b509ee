localrules:
    table1,
    accuracy_table,
    convergence_table,
    ablation_table,
    cost,
    provenance,
    page,
    freeze,


rule table1:
    input:
        unpack(table1_inputs),
    output:
        csv="<results>/tables/table1{part}.csv",
        md="<results>/tables/table1{part}.md",
    log:
        "<logs>/tables/table1{part}.log",
    benchmark:
        "<benchmarks>/tables/table1{part}.tsv"
    wildcard_constraints:
        part=f"(/({DOMAINS}))?",
    conda:
        "../../envs/mmm4rec.yaml"
    resources:
        mem_mb=2000,
    params:
        inputs=options,
        settings=table1_params,
    shell:
        "python3 -m mmm4rec table --number 1 {params.inputs} --settings {params.settings:q}"
        " --out {output.csv:q} > {log} 2>&1"


# table2.csv compares on all targets, table2/<domain>.csv on one of them.
rule accuracy_table:
    input:
        run=table_runs,
    output:
        csv="<results>/tables/table{number}{part}.csv",
        runs="<results>/tables/table{number}{part}_runs.csv",
        tests="<results>/tables/table{number}{part}_tests.csv",
        md="<results>/tables/table{number}{part}.md",
    log:
        "<logs>/tables/table{number}{part}.log",
    benchmark:
        "<benchmarks>/tables/table{number}{part}.tsv"
    wildcard_constraints:
        number="[234]",
        part=f"(/({TARGETS}))?",
    conda:
        "../../envs/mmm4rec.yaml"
    resources:
        mem_mb=2000,
    params:
        inputs=options,
        settings=table_params,
    shell:
        "python3 -m mmm4rec table --number {wildcards.number} {params.inputs} --settings {params.settings:q}"
        " --out {output.csv:q} > {log} 2>&1"


rule convergence_table:
    input:
        run=table_runs,
    output:
        csv="<results>/tables/table{number}{part}.csv",
        md="<results>/tables/table{number}{part}.md",
    log:
        "<logs>/tables/table{number}{part}.log",
    benchmark:
        "<benchmarks>/tables/table{number}{part}.tsv"
    wildcard_constraints:
        number="5",
        part=f"(/({TARGETS}))?",
    conda:
        "../../envs/mmm4rec.yaml"
    resources:
        mem_mb=2000,
    params:
        inputs=options,
        settings=table_params,
    shell:
        "python3 -m mmm4rec table --number {wildcards.number} {params.inputs} --settings {params.settings:q}"
        " --out {output.csv:q} > {log} 2>&1"


rule ablation_table:
    input:
        run=table_runs,
    output:
        csv="<results>/tables/table{number}{part}.csv",
        tests="<results>/tables/table{number}{part}_tests.csv",
        md="<results>/tables/table{number}{part}.md",
    log:
        "<logs>/tables/table{number}{part}.log",
    benchmark:
        "<benchmarks>/tables/table{number}{part}.tsv"
    wildcard_constraints:
        number="6",
        part=f"(/({TARGETS}))?",
    conda:
        "../../envs/mmm4rec.yaml"
    resources:
        mem_mb=2000,
    params:
        inputs=options,
        settings=table_params,
    shell:
        "python3 -m mmm4rec table --number {wildcards.number} {params.inputs} --settings {params.settings:q}"
        " --out {output.csv:q} > {log} 2>&1"


# Beyond the paper: the systems of Tables II and III by groups of users, from the same runs.
rule sparsity:
    input:
        unpack(sparsity_inputs),
    output:
        csv="<results>/tables/sparsity{part}.csv",
        tests="<results>/tables/sparsity{part}_tests.csv",
        md="<results>/tables/sparsity{part}.md",
        figure=report(
            "<results>/figures/sparsity{part}.png",
            caption="../report/sparsity.rst",
            category="Figures",
            labels=sparsity_labels,
        ),
    log:
        "<logs>/tables/sparsity{part}.log",
    benchmark:
        "<benchmarks>/tables/sparsity{part}.tsv"
    wildcard_constraints:
        part=f"(/({TARGETS}))?",
    conda:
        "../../envs/mmm4rec.yaml"
    resources:
        mem_mb=3000,
    params:
        inputs=options,
        settings=sparsity_params,
    shell:
        "python3 -m mmm4rec sparsity {params.inputs} --settings {params.settings:q}"
        " --out {output.csv:q} --figure {output.figure:q} > {log} 2>&1"


rule cost:
    input:
        run=all_trainings,
    output:
        csv="<results>/tables/cost.csv",
        md="<results>/tables/cost.md",
    log:
        "<logs>/tables/cost.log",
    benchmark:
        "<benchmarks>/tables/cost.tsv"
    conda:
        "../../envs/mmm4rec.yaml"
    resources:
        mem_mb=1000,
    params:
        version=VERSIONS["tables"],
        inputs=options,
    shell:
        "python3 -m mmm4rec cost {params.inputs} --out {output.csv:q} > {log} 2>&1"


rule provenance:
    input:
        run=all_trainings,
    output:
        md="<results>/tables/provenance.md",
    log:
        "<logs>/tables/provenance.log",
    benchmark:
        "<benchmarks>/tables/provenance.tsv"
    conda:
        "../../envs/mmm4rec.yaml"
    resources:
        mem_mb=1000,
    params:
        version=VERSIONS["tables"],
        inputs=options,
        settings=result_params,
    shell:
        "python3 -m mmm4rec provenance {params.inputs} --settings {params.settings:q} --out {output.md:q} > {log} 2>&1"


# The report shows HTML, and offers other tables for download only.
rule page:
    input:
        table="<results>/tables/{table}.md",
    output:
        report(
            "<results>/report/{table}.html",
            caption="../report/tables.rst",
            category=page_category,
            labels=page_labels,
        ),
    log:
        "<logs>/report/{table}.log",
    benchmark:
        "<benchmarks>/report/{table}.tsv"
    wildcard_constraints:
        table=f"table[1-6]|table1/({DOMAINS})|table[2-6]/({TARGETS})|sparsity(/({TARGETS}))?|cost|provenance",
    conda:
        "../../envs/mmm4rec.yaml"
    resources:
        mem_mb=1000,
    params:
        version=VERSIONS["tables"],
    shell:
        "python3 -m mmm4rec page --table {input.table:q} --out {output:q} > {log} 2>&1"


# `snakemake published/<name>/provenance.json`: what is to be kept, with where it comes from.
rule freeze:
    input:
        all_tables(),
        all_figures(),
    output:
        "published/{name}/provenance.json",
    log:
        "<logs>/freeze/{name}.log",
    benchmark:
        "<benchmarks>/freeze/{name}.tsv"
    conda:
        "../../envs/mmm4rec.yaml"
    resources:
        mem_mb=1000,
    params:
        results=results_folder,
        settings=result_params,
        out=subpath(output[0], parent=True),
    shell:
        "python3 -m mmm4rec freeze --results {params.results:q} --settings {params.settings:q}"
        " --out {params.out:q} > {log} 2>&1"
