localrules:
    figure,


# A run of figure 2: the fine-tuning of a system that sees only the last items of a history. It has a folder of its own,
# so that it cannot be taken for a run of the tables.
use rule finetune as truncate with:
    input:
        attribute_files,
        unpack(truncation_inputs),
    output:
        config="<results>/truncation/{domain}/{system}/last_{last}/seed_{seed}/config.json",
        model="<results>/truncation/{domain}/{system}/last_{last}/seed_{seed}/model.safetensors",
        history="<results>/truncation/{domain}/{system}/last_{last}/seed_{seed}/history.csv",
        metrics="<results>/truncation/{domain}/{system}/last_{last}/seed_{seed}/metrics.json",
        ranks="<results>/truncation/{domain}/{system}/last_{last}/seed_{seed}/ranks.parquet",
        environment="<results>/truncation/{domain}/{system}/last_{last}/seed_{seed}/environment.json",
    log:
        "<logs>/truncate/{domain}/{system}/last_{last}/seed_{seed}.log",
    benchmark:
        "<benchmarks>/truncate/{domain}/{system}/last_{last}/seed_{seed}.tsv"
    wildcard_constraints:
        last=r"[1-9]\d*",
    params:
        settings=truncation_params,
        out=subpath(output.config, parent=True),
        state=f"{CONFIG.results}/state/truncation/{{domain}}/{{system}}/last_{{last}}/seed_{{seed}}",
        tensorboard=f"{CONFIG.results}/tensorboard/truncation/{{domain}}/{{system}}/last_{{last}}/seed_{{seed}}",


# fig2 and fig4 as the paper has them, fig2/<domain> and fig4/<target> of one alone, and all learning curves of a target.
rule figure:
    input:
        run=figure_runs,
    output:
        csv="<results>/figures/{figure}.csv",
        png=report(
            "<results>/figures/{figure}.png",
            caption="../report/figures.rst",
            category=figure_category,
            labels=figure_labels,
        ),
    log:
        "<logs>/figures/{figure}.log",
    benchmark:
        "<benchmarks>/figures/{figure}.tsv"
    wildcard_constraints:
        figure=f"fig2(/({DOMAINS}))?|fig4(/({TARGETS}))?|curves/({TARGETS})",
    conda:
        "../../envs/mmm4rec.yaml"
    resources:
        mem_mb=2000,
    params:
        version=VERSIONS["tables"],
        name=lambda wildcards: wildcards.figure.partition("/")[0],
        inputs=options,
    shell:
        "python3 -m mmm4rec figure --name {params.name} {params.inputs} --out {output.csv:q} > {log} 2>&1"
