# The study as a graph of notebook jobs. `medstudy run params/demo` starts it; so does plain
#   snakemake --config run=params/demo
# Each run depends on its parameters, its notebook's code cells, its data (all by keys) and the package; a change of one
# redoes it and what follows, and a run takes from its folder the stages that did not change. Executed notebooks and
# run.json are not declared as outputs: they outlive a failure. `medstudy run` sees to runs without a good run.json.
import shlex
import sys
from pathlib import Path

from snakemake.logging import logger

from medstudy.batch.progress import Progress
from medstudy.batch.study import code_files, keys, results_of
from medstudy.studies import load_study
from medstudy.files import private_folder, slug

STUDY = load_study(config.get("run", "params/demo"))
R = str(results_of(STUDY))
RESULTS = str(Path(R).parent)
MODELS = {slug(model): model for model in STUDY.models}
CONTRACT = ["metrics.json", "contrasts.json", "gates.json"]
RUN = R + "/{model}/{task}/seed{seed}/"
ALL_RUNS = expand(RUN + "{file}", model=MODELS, task=STUDY.tasks, seed=STUDY.seeds, file=CONTRACT)
# the notebooks' own default is left alone where it holds
ELSEWHERE = [] if RESULTS == "results" else [f"results={RESULTS}"]
JOB = shlex.quote(sys.executable) + " -m medstudy.batch.run_notebook {input.nb:q} {params.nb:q} --threads {threads}"
CODE = code_files()
THREADS = int(config.get("threads", 1))

progress = Progress(MODELS, dry=bool(config.get("dry")))
if workflow.is_main_process:
    logger.addHandler(progress)


def made_of(task):
    return lambda w: keys(STUDY.run(task, MODELS[w.model], int(w.seed)), f"notebooks/{task}.ipynb")


wildcard_constraints:
    model="[^/]+",
    seed=r"\d+",


localrules:
    all,
    report,


rule all:
    input:
        ALL_RUNS,
        R + "/comparison.done",
        R + "/report/index.html",


# one rule a task, so that messages name it and a profile can give it resources of its own
for task, resources_of_task in STUDY.tasks.items():

    rule:
        name: task
        input:
            nb=ancient(f"notebooks/{task}.ipynb"),  # only its code cells count
            code=CODE,
        output:
            [RUN.replace("{task}", task) + file for file in CONTRACT],
        log:
            RUN.replace("{task}", task) + "private/notebook.log",
        params:
            nb=RUN.replace("{task}", task) + "notebook.ipynb",
            task=task,
            model=lambda w: MODELS[w.model],
            made_of=made_of(task),
            gpu=lambda w, resources: resources.get("gpu", 0),
        threads: THREADS
        resources: **resources_of_task
        shell:
            "exec " + JOB + " --run {STUDY.folder:q} {params.task} {params.model:q} {wildcards.seed}"
            " --name {params.task}' '{params.model:q}' seed {wildcards.seed}' --gpus {params.gpu} &> {log:q}"


rule comparison:
    input:
        nb=ancient("notebooks/comparison.ipynb"),
        runs=ALL_RUNS,
        code=CODE,
    output:
        touch(R + "/comparison.done"),
    log:
        R + "/private/comparison.log",
    params:
        nb=R + "/comparison.ipynb",
        study=STUDY.name,
        margin=STUDY.margin,
        made_of=keys(None, "notebooks/comparison.ipynb"),
    threads: THREADS
    shell:
        "exec " + JOB + " --set study={params.study:q} margin={params.margin} {ELSEWHERE:q} --name comparison &> {log:q}"


rule report:
    input:
        runs=ALL_RUNS,
        comparison=R + "/comparison.done",
        code=CODE,
    output:
        R + "/report/index.html",
    log:
        R + "/private/report.log",
    shell:
        "exec " + shlex.quote(sys.executable) + " -m medstudy.batch.cli report {R:q} &> {log:q}"


onstart:
    private_folder(Path(R, "private"))
