# The state of an unfinished training is no output, so that Snakemake keeps it: a killed job goes on from it.
# One thread a job: there are many of them, and side by side they take the least time. `--set-threads finetune=8` else.
rule pretrain:
    input:
        unpack(pretrain_inputs),
    output:
        config="<results>/pretrained/{system}/config.json",
        model="<results>/pretrained/{system}/model.safetensors",
        history="<results>/pretrained/{system}/history.csv",
        metrics="<results>/pretrained/{system}/metrics.json",
        environment="<results>/pretrained/{system}/environment.json",
    log:
        "<logs>/pretrain/{system}.log",
    benchmark:
        "<benchmarks>/pretrain/{system}.tsv"
    conda:
        "../../envs/mmm4rec.yaml"
    threads: devices_of
    resources:
        mem_mb=lambda wildcards: 24000 * devices_of(wildcards),
        gpu=lambda wildcards: GPU * devices_of(wildcards),
        launcher=launcher_of,  # no param: on more devices the result is the same
    params:
        inputs=options,
        settings=pretrain_params,
        out=subpath(output.config, parent=True),
        state=f"{CONFIG.results}/state/pretrained/{{system}}",
        tensorboard=f"{CONFIG.results}/tensorboard/pretrained/{{system}}",
    shell:
        "{resources.launcher} -m mmm4rec pretrain {params.inputs} --settings {params.settings:q} --out {params.out:q}"
        " --state {params.state:q} --tensorboard {params.tensorboard:q} > {log} 2>&1"


rule finetune:
    input:
        attribute_files,
        unpack(finetune_inputs),
    output:
        config="<results>/runs/{domain}/{system}/seed_{seed}/config.json",
        model="<results>/runs/{domain}/{system}/seed_{seed}/model.safetensors",
        history="<results>/runs/{domain}/{system}/seed_{seed}/history.csv",
        metrics="<results>/runs/{domain}/{system}/seed_{seed}/metrics.json",
        ranks="<results>/runs/{domain}/{system}/seed_{seed}/ranks.parquet",
        environment="<results>/runs/{domain}/{system}/seed_{seed}/environment.json",
    log:
        "<logs>/finetune/{domain}/{system}/seed_{seed}.log",
    benchmark:
        "<benchmarks>/finetune/{domain}/{system}/seed_{seed}.tsv"
    wildcard_constraints:
        domain=PREPARED,
    conda:
        "../../envs/mmm4rec.yaml"
    resources:
        mem_mb=8000,
        gpu=GPU,
    params:
        inputs=options,
        settings=finetune_params,
        out=subpath(output.config, parent=True),
        state=f"{CONFIG.results}/state/runs/{{domain}}/{{system}}/seed_{{seed}}",
        tensorboard=f"{CONFIG.results}/tensorboard/runs/{{domain}}/{{system}}/seed_{{seed}}",
    shell:
        "python3 -m mmm4rec finetune {params.inputs} --settings {params.settings:q} --out {params.out:q}"
        " --state {params.state:q} --tensorboard {params.tensorboard:q} > {log} 2>&1"
