"""Executes one notebook as a job: papermill, and what a shared machine needs around it.

    python -m medstudy.batch.run_notebook notebooks/summarization.ipynb results/…/notebook.ipynb \
        --run params/demo summarization builtin/llama 1 --threads 1

A run counts as finished only if papermill met no error and the notebook wrote its end marker, ``run.json`` with
``"status": "ok"``: a killed kernel leaves cells that look completed.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import papermill
from huggingface_hub import constants
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError

from medstudy.batch.machine import die_with_parent, finished, lock_of, take_gpus, visible_gpus
from medstudy.data.card import load_card
from medstudy.data.cases import DataError
from medstudy.files import private_folder, write_json, write_whole
from medstudy.params import ParamsError, assigned, nearest, read_yaml
from medstudy.report.privacy import is_private, release, run_folders
from medstudy.report.withhold import ships
from medstudy.studies import load_study

#: Figures of executed notebooks: SVG for the pages, and PNG, as JupyterLab shows no SVG of a notebook that it did not
#: run itself. The same figure gives the same bytes.
FIGURES = """c.InlineBackend.figure_formats = {"svg", "png"}
c.InlineBackend.print_figure_kwargs = {"bbox_inches": "tight", "metadata": {"Date": None}}
"""
#: What helps, by a word of the error.
REMEDIES = {
    "OutOfMemoryError|CUDA out of memory": "the GPU's memory is full: smaller batch_size (and more "
    "gradient_accumulation), smaller eval_batch_size, gradient_checkpointing, or quantization: 4bit",
    "MemoryError|allocate memory": "memory is full: fewer --jobs, smaller batch_size or eval_batch_size",
    "Kernel died": "killed from outside, by the system for want of memory (fewer --jobs, smaller batch_size), by hand, "
    "by the batch system or by a limit on time",
}


class NotebookError(RuntimeError):
    """A notebook did not run to its end; the message names the cell, the error and its message."""


def main(argv: list[str] | None = None) -> int:
    """Run one notebook; 0 if it finished, else 1 with ``FAILED name: why`` on the last line of stderr."""
    die_with_parent()
    args, started = _arguments(argv), time.time()
    marker = args.output.parent / "run.json" if args.run else None
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with lock_of(args.output).open("w") as lock:  # a second one waits, and `medstudy status` sees the first
            fcntl.flock(lock, fcntl.LOCK_EX)
            for old in filter(None, (args.output, marker)):
                old.unlink(missing_ok=True)
            parameters = run_parameters(*args.run) if args.run else dict(args.set)
            execute(args.notebook, args.output, parameters, args.threads, args.gpus, marker)
    except (NotebookError, ParamsError, OSError) as error:
        message = re.sub(r"\s*\n\s*", "; ", str(error).strip())
        with contextlib.suppress(OSError):  # on a full disk the last word is the one on stderr
            if marker is not None:
                write_json(marker, {"status": "failed", "seconds": time.time() - started, "message": message})
        print(f"FAILED {args.name}: {message}", file=sys.stderr)
        return 1
    return 0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m medstudy.batch.run_notebook", description="Execute one notebook.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--run", nargs=4, metavar=("STUDY", "TASK", "MODEL", "SEED"), help="parameters of a study's run")
    text = "parameters of any other notebook; a decimal number is a number"
    what.add_argument("--set", nargs="*", type=_assigned, default=[], metavar="NAME=VALUE", help=text)
    parser.add_argument("--name", default="notebook", help="what the job is called in logs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=0)
    return parser.parse_args(argv)


def _assigned(text: str) -> tuple[str, str | float]:
    name, _, value = text.partition("=")
    return name, float(value) if re.fullmatch(r"\d*\.\d+", value) else value  # a whole number may be a name


def run_parameters(study: str, task: str, model: str, seed: str) -> dict[str, Any]:
    """What the params files and the command line say of one run, and nothing that they leave to the notebook.

    Raises:
        ParamsError: a value is unknown, missing or not allowed.
    """
    folder = Path(study)
    run = load_study(folder).run(task, model, int(seed))
    given = read_yaml(folder / "shared.yaml") | read_yaml(folder / f"{task}.yaml")
    return given | {"study": run.study, "model": run.model, "seed": run.seed}


def execute(
    notebook: Path, output: Path, parameters: Mapping[str, Any], threads: int, gpus: int, marker: Path | None
) -> None:
    """Execute ``notebook`` into ``output``, which is kept, partly executed, when it fails.

    Args:
        marker: the file that the notebook itself writes last, with ``"status": "ok"``; None if it has none.

    Raises:
        NotebookError: an unknown parameter, a cell raised, the kernel died, or the end marker is missing.
    """
    runs = [output.parent] if marker else run_folders(output.parent)
    try:
        hidden = not load_card(parameters["data"]).shareable if marker else any(map(is_private, runs))
    except (DataError, KeyError):  # a card that cannot be read is taken for a private one
        hidden = True
    private = private_folder(output.parent / "private") if hidden or marker else None
    # of a private source nothing is written outside private/ before it has been looked at
    working = private / output.name if private and hidden else output
    if gpus > len(visible_gpus()):
        raise NotebookError(f"the run asks for {gpus} GPU and this machine shows {len(visible_gpus())}")
    with (
        tempfile.TemporaryDirectory(prefix="medstudy-", ignore_cleanup_errors=True) as folder,
        take_gpus(gpus) as devices,
    ):
        os.environ.update(job_environment(Path(folder), private or Path(folder), threads, devices))
        if gpus:
            _refuse_cpu(gpus)
        try:
            _papermill(notebook, working, parameters, Path(folder), hidden)
        finally:
            if working.is_file():
                _tidy(working)
                if hidden:
                    print(*release(working, output, runs), sep="\n")
    if marker is not None and not finished(marker):
        raise NotebookError(f"all cells ran, but none wrote {marker.name} with status ok")


def _refuse_cpu(gpus: int) -> None:
    """Without CUDA, torch would train on the processor and say nothing of it."""
    import torch  # of a job on a GPU only, as it is slow to import and large

    if (seen := torch.cuda.device_count() if torch.cuda.is_available() else 0) < gpus:
        raise NotebookError(
            f"the run asks for {gpus} GPU and torch {torch.__version__} uses {seen}: install a build of torch for the "
            "CUDA of this machine's driver, or remove gpu from study.yaml to run on the processor"
        )


def _papermill(notebook: Path, working: Path, parameters: Mapping[str, Any], folder: Path, hidden: bool) -> None:
    tagged = [c for c in nbformat.read(notebook, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    known = [name for cell in tagged for name in assigned(cell.source)]
    for name in set(parameters) - set(known):  # papermill itself only warns, and runs the default
        allowed = f"(allowed: {', '.join(known)})"
        raise NotebookError(f"{notebook.name} has no parameter '{name}'{nearest(name, known)} {allowed}")
    try:
        papermill.execute_notebook(
            str(notebook),
            str(working),
            dict(parameters),
            kernel_name="python3",
            language="python",
            progress_bar=False,
            start_timeout=300,
            iopub_timeout=60,
            kernel_manager_class=_kernel_manager(folder),
        )
    except PapermillExecutionError as error:
        told = not hidden or (error.ename == "UnlikeRuns" and ships(error.source))
        said = error.evalue[:500] if told else f"its message is withheld, see {working}"
        help_ = _remedy(f"{error.ename}: {error.evalue}")
        raise NotebookError(f"cell {error.cell_index + 1}: {error.ename}: {said}{help_}") from None
    except Exception as error:  # noqa: BLE001  of papermill and what it uses, whose messages may quote an output
        traceback.print_exc()
        said = "its message is withheld" if hidden else str(error)[:500]
        raise NotebookError(f"{type(error).__name__}: {said}{_remedy(str(error))}") from None


def _remedy(text: str) -> str:
    """`; what is wrong: what helps` for an error that is known, else an empty string; repeats nothing of it."""
    return next((f"; {said}" for words, said in REMEDIES.items() if re.search(words, text)), "")


def _kernel_manager(folder: Path) -> type:
    """A class for kernels of this interpreter, with sockets in ``folder``: many that start race for TCP ports."""

    class LocalKernelManager(AsyncKernelManager):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.transport, self.ip = "ipc", str(folder / "kernel")
            self.connection_file = str(folder / "kernel.json")
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            self._kernel_spec = KernelSpec(argv=argv, display_name="Python 3", language="python")

        async def _async_launch_kernel(self, kernel_cmd: list[str], **options: Any) -> None:
            # ipykernel's own watch of its parent does not see a death below a supervisor, as on Slurm
            await super()._async_launch_kernel(kernel_cmd, preexec_fn=die_with_parent, **options)

    return LocalKernelManager


def job_environment(scratch: Path, private: Path, threads: int, devices: list[str]) -> dict[str, str]:
    """Environment of the kernel. Caches may hold case text and go to ``private``; weights stay shared."""
    cache = private.absolute() / "cache"
    profile = scratch / "ipython" / "profile_default" / "ipython_kernel_config.py"
    profile.parent.mkdir(parents=True, exist_ok=True)
    profile.write_text(FIGURES, encoding="utf-8")
    return {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads)),
        # threads that wait give the core to another job soon, instead of spinning
        "GOMP_SPINCOUNT": "1000",
        # what is compiled for each shape is kept twice, 1024 of each unless told: a fifth of a job's memory
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "24",
        "LRU_CACHE_CAPACITY": "16",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": ",".join(devices),
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_CACHE": constants.HF_HUB_CACHE,  # it knows which variable of several says where they are
        "HF_TOKEN_PATH": constants.HF_TOKEN_PATH,
        "HF_HOME": str(cache),
        "HF_DATASETS_CACHE": str(cache / "datasets"),
        # neither the user's start-up scripts nor a read-only home may decide how a job runs
        "IPYTHONDIR": str(scratch / "ipython"),
    }


def _tidy(output: Path) -> None:
    """Take machine paths and widget state out of an executed notebook; it is replaced whole."""
    notebook = nbformat.read(output, as_version=4)
    notebook.metadata.pop("widgets", None)
    for data in (made.data for cell in notebook.cells for made in cell.get("outputs", []) if "data" in made):
        if "image/svg+xml" in data:  # a line of a figure is a line of JSON: a third of the file
            data["image/svg+xml"] = re.sub(r"\s*\n\s*", " ", data["image/svg+xml"])
    text = re.sub(r"/[\w/.-]*/ipykernel_\d+/\d+\.py", "<cell>", nbformat.writes(notebook))
    places = {Path.cwd(): ".", Path(sys.prefix): "<python>", Path(sys.base_prefix): "<python>", Path.home(): "~"}
    for path, short in places.items():
        if len(path.parts) > 1:
            # what follows is looked at lest a figure's base64 be taken for a path
            written = re.escape(json.dumps(str(path), ensure_ascii=False)[1:-1])
            text = re.sub(written + r"(?=[/\\\"'\s:,)<])", short, text)
    write_whole(output, text)


if __name__ == "__main__":
    sys.exit(main())
