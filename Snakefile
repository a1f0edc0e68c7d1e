"""From catalogue to clear scene: one rule per step, nothing computed here.

A verb alone is a target that stands for all its jobs (`snakemake align`, `snakemake train`); the rule that does
one job bears the name of the function it calls (`align_pair`). Every target asks for all locks as well: behind a
checkpoint Snakemake would not see that an area is new. Every path begins with the pathvar <results>.
What changes how a job works and not what it writes stands in `resources`, which cause no job to run again.
"""

from pathlib import Path

from sereno.model.flow import Flow, hold_folder
from sereno.pipeline.errors import SerenoError
from snakemake.utils import min_version
from snakemake_interface_common.exceptions import WorkflowError

min_version("9.12")


if not workflow.overwrite_configfiles:

    configfile: str(Path(workflow.basedir, "config.yaml"))


try:
    flow = Flow(config, results=workflow.pathvars.items["results"])
except SerenoError as error:
    raise WorkflowError(str(error)) from None

TRIES = 3
"""How often `sereno query`, `sereno dem` and `sereno ingest` try what a server failed to give. They know the cause of a failure and Snakemake does
not: its `retries` would repeat a misspelt setting and a missing file as well."""


wildcard_constraints:
    area=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    scene=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    pair=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    run=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    measurement=r"[A-Za-z0-9][A-Za-z0-9._-]*",


onstart:
    try:
        flow.held = hold_folder(Path(flow.results))
    except SerenoError as error:
        raise WorkflowError(str(error)) from None


onsuccess:
    from sereno.pipeline.ledger import describe_losses, find_ledgers, read_ledgers
    from sereno.pipeline.outcomes import describe_outcome, read_outcome

    results = Path(flow.results)
    try:
        for line in (
            *describe_losses(read_ledgers(find_ledgers(results)), results),
            *describe_outcome(read_outcome(results), results),
        ):
            print(line)
    except SerenoError as error:
        print(error)
    if Path(flow.results, "report/index.html").is_file():
        print(f"done: open {flow.results}/report/index.html")


onerror:
    print(
        f"stopped: the log of the failed job is printed above and lies under {flow.results}/logs; "
        "mend what it names and give the same command again"
    )


localrules:
    all,
    simulate,
    query,
    plan,
    dem,
    ingest,
    align,
    mask,
    patch,
    pack,
    train,
    evaluate,
    predict,
    report,


rule all:
    input:
        flow.locks,
        "<results>/report/index.html",


if flow.world:

    rule simulate_world:
        output:
            "<results>/simulate/world.json",
        log:
            "<results>/logs/simulate.log",
        benchmark:
            "<results>/benchmarks/simulate.tsv"
        conda:
            "environment.yaml"
        threads: 2
        resources:
            mem_mb=4000,
            runtime=30,
        params:
            settings=flow.settings("simulate"),
            code=flow.code("simulate"),
        message:
            "simulate a world with known truth"
        shell:
            "sereno simulate {output:q} --settings {params.settings:q} 2> {log:q}"


rule simulate:
    input:
        flow.world,


checkpoint query_area:
    input:
        world=flow.world,
        frozen=lambda wildcards: flow.frozen_lock(**wildcards),
        named=lambda wildcards: flow.query_files(**wildcards),
    output:
        lock="<results>/query/{area}.json",
        ledger="<results>/query/{area}.ledger.csv",
    log:
        "<results>/logs/query/{area}.log",
    benchmark:
        "<results>/benchmarks/query/{area}.tsv"
    conda:
        "environment.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
        connections=1,
        tries=TRIES,
        max_requests=flow.config.pipeline.query.max_requests,
    params:
        settings=lambda wildcards: flow.settings("query", area=wildcards.area),
        dem_margin=flow.dem_margin,
        task=flow.task,
        code=flow.code("query"),
    message:
        "search scenes and pair them: {wildcards.area}"
    shell:
        "sereno query {output.lock:q} --area {wildcards.area:q} --settings {params.settings:q} {params.dem_margin:q} {params.task:q} "
        "--max-requests {resources.max_requests} --tries {resources.tries} 2> {log:q}"


rule query:
    input:
        flow.locks,


rule plan:
    input:
        flow.locks,
    log:
        "<results>/logs/plan.log",
    conda:
        "environment.yaml"
    params:
        settings=flow.settings("plan"),
    message:
        "reckon what this run will fetch, make and keep"
    shell:
        "sereno plan {input:q} --settings {params.settings:q} 2>&1 | tee {log:q}"


if flow.may_join_dems:

    rule dem_area:
        input:
            lock=ancient("<results>/query/{area}.json"),
        output:
            manifest="<results>/dem/{area}.json",
            image="<results>/dem/{area}.tif",
            ledger="<results>/dem/{area}.ledger.csv",
        log:
            "<results>/logs/dem/{area}.log",
        benchmark:
            "<results>/benchmarks/dem/{area}.tsv"
        conda:
            "environment.yaml"
        threads: 1
        resources:
            mem_mb=4000,
            runtime=60,
            connections=1,
            tries=TRIES,
            attempts=flow.config.pipeline.dem.attempts,
        params:
            settings=flow.settings("dem"),
            code=flow.code("dem"),
            record=lambda wildcards: flow.dem_record(checkpoints, **wildcards),
        message:
            "join elevation models: {wildcards.area}"
        shell:
            "sereno dem {input.lock:q} {output.manifest:q} --settings {params.settings:q} "
            "--attempts {resources.attempts} --tries {resources.tries} 2> {log:q}"


rule dem:
    input:
        flow.locks,
        lambda _: flow.all_dems(checkpoints),


rule ingest_scene:
    input:
        lock=ancient("<results>/query/{area}.json"),
        dem=flow.dem_files,
        joined=lambda wildcards: flow.dem_image(checkpoints, **wildcards),
    output:
        scene="<results>/ingest/{area}/{scene}.json",
        ledger="<results>/ingest/{area}/{scene}.ledger.csv",
    log:
        "<results>/logs/ingest/{area}/{scene}.log",
    benchmark:
        "<results>/benchmarks/ingest/{area}/{scene}.tsv"
    conda:
        "environment.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
        connections=flow.config.pipeline.ingest.readers,
        tries=TRIES,
        attempts=flow.config.pipeline.ingest.attempts,
        scheduler=flow.config.pipeline.ingest.scheduler,
    params:
        settings=flow.settings("ingest"),
        code=flow.code("ingest"),
        record=lambda wildcards: flow.scene_record(checkpoints, **wildcards),
        dem=lambda wildcards: flow.dem_option(checkpoints, **wildcards),
    message:
        "read and calibrate: {wildcards.scene}"
    shell:
        "sereno ingest {input.lock:q} {wildcards.scene:q} {output.scene:q} --settings {params.settings:q} {params.dem:q} "
        "--readers {resources.connections} --attempts {resources.attempts} --scheduler {resources.scheduler:q} --tries {resources.tries} 2> {log:q}"


rule ingest:
    input:
        flow.locks,
        lambda _: flow.all_scenes(checkpoints),


rule align_pair:
    input:
        lock=ancient("<results>/query/{area}.json"),
        scenes=lambda wildcards: flow.pair_scenes(checkpoints, **wildcards),
    output:
        "<results>/align/{area}/{pair}.json",
    log:
        "<results>/logs/align/{area}/{pair}.log",
    benchmark:
        "<results>/benchmarks/align/{area}/{pair}.tsv"
    conda:
        "environment.yaml"
    threads: 1
    resources:
        mem_mb=6000,
        runtime=60,
    params:
        settings=flow.settings("align"),
        code=flow.code("align"),
        record=lambda wildcards: flow.pair_record(checkpoints, **wildcards),
    message:
        "lay scenes onto each other: {wildcards.area} {wildcards.pair}"
    shell:
        "sereno align {input.lock:q} {wildcards.pair:q} {input.scenes:q} {output:q} --settings {params.settings:q} 2> {log:q}"


rule align:
    input:
        flow.locks,
        lambda _: flow.all_pairs(checkpoints, "align"),


rule mask_pair:
    input:
        "<results>/align/{area}/{pair}.json",
    output:
        "<results>/mask/{area}/{pair}.json",
    log:
        "<results>/logs/mask/{area}/{pair}.log",
    benchmark:
        "<results>/benchmarks/mask/{area}/{pair}.tsv"
    conda:
        "environment.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        settings=flow.settings("mask"),
        code=flow.code("mask"),
    message:
        "find clouds and shadows: {wildcards.area} {wildcards.pair}"
    shell:
        "sereno mask {input:q} {output:q} --settings {params.settings:q} 2> {log:q}"


rule mask:
    input:
        flow.locks,
        lambda _: flow.all_pairs(checkpoints, "mask"),


rule patch_pair:
    input:
        pair="<results>/align/{area}/{pair}.json",
        masks="<results>/mask/{area}/{pair}.json",
    output:
        "<results>/patch/{area}/{pair}.json",
    log:
        "<results>/logs/patch/{area}/{pair}.log",
    benchmark:
        "<results>/benchmarks/patch/{area}/{pair}.tsv"
    conda:
        "environment.yaml"
    threads: 1
    resources:
        mem_mb=6000,
        runtime=30,
    params:
        settings=flow.settings("patch"),
        code=flow.code("patch"),
    message:
        "cut into patches: {wildcards.area} {wildcards.pair}"
    shell:
        "sereno patch {input.pair:q} {input.masks:q} {output:q} --settings {params.settings:q} 2> {log:q}"


rule patch:
    input:
        flow.locks,
        lambda _: flow.all_pairs(checkpoints, "patch"),


checkpoint pack_patches:
    input:
        patches=lambda _: flow.all_pairs(checkpoints, "patch"),
        splits=flow.config.pipeline.pack.split.file or [],
    output:
        "<results>/pack/dataset.json",
    log:
        "<results>/logs/pack.log",
    benchmark:
        "<results>/benchmarks/pack.tsv"
    conda:
        "environment.yaml"
    threads: 2
    resources:
        mem_mb=6000,
        runtime=240,
    params:
        settings=flow.settings("pack"),
        code=flow.code("pack"),
    message:
        "pack all patches into one dataset"
    shell:
        "sereno pack {input.patches:q} {output:q} --settings {params.settings:q} 2> {log:q}"


rule pack:
    input:
        flow.locks,
        "<results>/pack/dataset.json",


rule train_run:
    input:
        dataset="<results>/pack/dataset.json",
        start=lambda wildcards: flow.start_files(**wildcards),
        network=lambda wildcards: flow.network_files(**wildcards),
        aperture=lambda wildcards: flow.aperture_files(**wildcards),
    output:
        checkpoint="<results>/train/{run}/checkpoint.safetensors",
        history="<results>/train/{run}/history.csv",
    log:
        "<results>/logs/train/{run}.log",
    benchmark:
        "<results>/benchmarks/train/{run}.tsv"
    conda:
        "environment.yaml"
    threads: 8
    resources:
        mem_mb=8000,
        runtime=2880,
        gpu=lambda wildcards: flow.processes(**wildcards),
    params:
        settings=lambda wildcards: flow.settings("train", run=wildcards.run),
        code=flow.code("train"),
        launch=lambda wildcards: flow.launch(**wildcards),
    message:
        "train: {wildcards.run}"
    shell:
        "{params.launch} train {input.dataset:q} {output.checkpoint:q} --settings {params.settings:q} 2> {log:q}"


rule train:
    input:
        flow.locks,
        flow.all_runs("train", "checkpoint.safetensors"),


rule evaluate_run:
    input:
        dataset="<results>/pack/dataset.json",
        checkpoint="<results>/train/{run}/checkpoint.safetensors",
        network=lambda wildcards: flow.network_files(**wildcards),
    output:
        scores="<results>/evaluate/{run}/scores.csv",
        summary="<results>/evaluate/{run}/summary.json",
        examples="<results>/evaluate/{run}/examples.npz",
    log:
        "<results>/logs/evaluate/{run}.log",
    benchmark:
        "<results>/benchmarks/evaluate/{run}.tsv"
    conda:
        "environment.yaml"
    threads: 8
    resources:
        mem_mb=6000,
        runtime=240,
        gpu=1,
    params:
        settings=flow.settings("evaluate"),
        code=flow.code("evaluate"),
    message:
        "score patch by patch: {wildcards.run}"
    shell:
        "sereno evaluate {input.dataset:q} {input.checkpoint:q} {output.scores:q} --settings {params.settings:q} 2> {log:q}"


rule evaluate:
    input:
        flow.locks,
        flow.all_runs("evaluate", "scores.csv"),


rule predict_pair:
    input:
        checkpoint="<results>/train/{run}/checkpoint.safetensors",
        pair="<results>/align/{area}/{pair}.json",
        masks="<results>/mask/{area}/{pair}.json",
        network=lambda wildcards: flow.network_files(wildcards.run),
    output:
        image="<results>/predict/{run}/{area}/{pair}.tif",
        record="<results>/predict/{run}/{area}/{pair}.json",
    log:
        "<results>/logs/predict/{run}/{area}/{pair}.log",
    benchmark:
        "<results>/benchmarks/predict/{run}/{area}/{pair}.tsv"
    conda:
        "environment.yaml"
    threads: 8
    resources:
        mem_mb=6000,
        runtime=240,
        gpu=1,
    params:
        settings=flow.settings("predict"),
        code=flow.code("predict"),
    message:
        "clear a scene: {wildcards.run} {wildcards.area} {wildcards.pair}"
    shell:
        "sereno predict {input.checkpoint:q} {input.pair:q} {input.masks:q} {output.image:q} --settings {params.settings:q} 2> {log:q}"


rule predict_measurement:
    input:
        checkpoint="<results>/train/{run}/checkpoint.safetensors",
        measurement=lambda wildcards: flow.measurement_file(wildcards.measurement),
    output:
        image="<results>/predict/{run}/{measurement}.tif",
        record="<results>/predict/{run}/{measurement}.json",
    log:
        "<results>/logs/predict/{run}/{measurement}.log",
    benchmark:
        "<results>/benchmarks/predict/{run}/{measurement}.tsv"
    conda:
        "environment.yaml"
    threads: 8
    resources:
        mem_mb=6000,
        runtime=240,
        gpu=1,
    params:
        settings=flow.settings("predict"),
        code=flow.code("predict"),
    message:
        "make a cube of a picture: {wildcards.run} {wildcards.measurement}"
    shell:
        "sereno predict {input.checkpoint:q} {input.measurement:q} {output.image:q} --settings {params.settings:q} 2> {log:q}"


rule predict:
    input:
        flow.locks,
        flow.all_cubes,
        "<results>/pack/dataset.json",  # so that the choice of pairs is made again after it is packed again
        lambda _: flow.all_predictions(checkpoints),


rule write_report:
    input:
        locks=flow.locks,
        patches=lambda _: flow.all_pairs(checkpoints, "patch"),
        dataset="<results>/pack/dataset.json",
        history=flow.all_runs("train", "history.csv"),
        scores=flow.all_runs("evaluate", "scores.csv"),
        predictions=lambda _: flow.all_predictions(checkpoints),
        cubes=flow.all_cubes,
        ledgers=lambda _: flow.all_ledgers(checkpoints),
    output:
        "<results>/report/index.html",
    log:
        "<results>/logs/report.log",
    benchmark:
        "<results>/benchmarks/report.tsv"
    conda:
        "environment.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        settings=flow.settings("report"),
        code=flow.code("report"),
        results=lambda _, output: str(Path(output[0]).parents[1]),
        runs=expand("--run {run}", run=flow.runs),
    message:
        "write the report"
    shell:
        "sereno report {params.results:q} {output:q} {params.runs} --settings {params.settings:q} 2> {log:q}"


rule report:
    input:
        flow.locks,
        "<results>/report/index.html",
