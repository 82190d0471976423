# The study as a graph of notebook jobs. `medstudy run params/demo` starts it; so does plain
#   snakemake --config run=params/demo
# Each run: inputs are its notebook, its parameters, its data card and the package files it imports; a change of
# one redoes the runs that depend on it and what follows. Executed notebooks and run.json are not declared as outputs:
# they outlive a failure. `medstudy run` sees to runs without a good run.json.
import shlex
import sys
from pathlib import Path

from medstudy.batch.study import failures, results_of
from medstudy.batch.inputs import base_marker, code_of, data_files
from medstudy.params import load_study
from medstudy.runs import slug

STUDY = load_study(config.get("run", "params/demo"))
R = str(results_of(STUDY))
RESULTS = str(Path(R).parent)
BASE = RESULTS + "/base_models/{model}"
MODELS = {slug(model): model for model in STUDY.models}
CONTRACT = ["metrics.json", "contrasts.json", "gates.json"]
RUN = R + "/{model}/{task}/seed{seed}/"
ALL_RUNS = expand(RUN + "{file}", model=MODELS, task=STUDY.tasks, seed=STUDY.seeds, file=CONTRACT)
BASES = sorted({file for model in STUDY.models for file in base_marker(model, Path(RESULTS))})
# the notebooks' own default is left alone where it holds
ELSEWHERE = [] if RESULTS == "results" else [f"results={RESULTS}"]
PYTHON = shlex.quote(sys.executable)
JOURNAL = R + "/engine.jsonl"
THREADS = int(config.get("threads", 1))


wildcard_constraints:
    model="[^/]+",
    seed=r"\d+",


localrules:
    all,
    report,


rule all:
    input:
        BASES,
        ALL_RUNS,
        R + "/comparison.done",
        R + "/report/index.html",


rule base_model:
    input:
        nb="notebooks/base_model.ipynb",
        code=code_of("notebooks/base_model.ipynb") if BASES else [],
    output:
        touch(BASE + ".done"),
    log:
        BASE + ".log",
    params:
        nb=BASE + ".ipynb",
        model=lambda w: MODELS[w.model],
    threads: THREADS
    shell:
        "exec {PYTHON} -m medstudy.batch.run_notebook {input.nb:q} {params.nb:q} --set model={params.model:q} {ELSEWHERE:q}"
        " --name 'base_model '{params.model:q} --journal {JOURNAL:q} --threads {threads} &> {log:q}"


# one rule a task, so that messages name it and a profile can give it resources of its own
for task, resources_of_task in STUDY.tasks.items():

    rule:
        name: task
        input:
            nb=f"notebooks/{task}.ipynb",
            params=[str(STUDY.folder / "shared.yaml"), str(STUDY.folder / f"{task}.yaml")],
            data=data_files(STUDY.run(task, STUDY.models[0], STUDY.seeds[0])),
            code=code_of(f"notebooks/{task}.ipynb"),
            base=lambda w: base_marker(MODELS[w.model], Path(RESULTS)),
        output:
            [RUN.replace("{task}", task) + file for file in CONTRACT],
        log:
            RUN.replace("{task}", task) + "notebook.log",
        params:
            nb=RUN.replace("{task}", task) + "notebook.ipynb",
            task=task,
            model=lambda w: MODELS[w.model],
            gpu=lambda w, resources: resources.get("gpu", 0),
        threads: THREADS
        resources: **resources_of_task
        shell:
            "exec {PYTHON} -m medstudy.batch.run_notebook {input.nb:q} {params.nb:q}"
            " --run {STUDY.folder:q} {params.task} {params.model:q} {wildcards.seed}"
            " --name {params.task}' '{params.model:q}' seed {wildcards.seed}'"
            " --journal {JOURNAL:q} --threads {threads} --gpus {params.gpu} &> {log:q}"


rule comparison:
    input:
        nb="notebooks/comparison.ipynb",
        study=str(STUDY.folder / "study.yaml"),  # holds the margin
        runs=ALL_RUNS,
        code=code_of("notebooks/comparison.ipynb"),
    output:
        touch(R + "/comparison.done"),
    log:
        R + "/comparison.log",
    params:
        nb=R + "/comparison.ipynb",
        study=STUDY.name,
        margin=STUDY.margin,
    threads: THREADS
    shell:
        "exec {PYTHON} -m medstudy.batch.run_notebook {input.nb:q} {params.nb:q} --set study={params.study:q} margin={params.margin} {ELSEWHERE:q}"
        " --name comparison --journal {JOURNAL:q} --threads {threads} &> {log:q}"


rule report:
    input:
        runs=ALL_RUNS,
        comparison=R + "/comparison.done",
        code=code_of("medstudy.report.pages"),
    output:
        R + "/report/index.html",
    log:
        R + "/report.log",
    shell:
        "exec {PYTHON} -m medstudy.batch.cli report {R:q} &> {log:q}"


onerror:
    for line in failures(Path(R)):
        print(line, file=sys.stderr)
    print(f"comparison and report in {R} are of an earlier start, if they are there", file=sys.stderr)
