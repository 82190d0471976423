"""`medstudy check`: everything about a study that can be found out without loading a model's weights."""

from __future__ import annotations

import math
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.batch import forecast
from medstudy.batch import study as batch
from medstudy.data.cases import Case, DataError
from medstudy.params import ParamsError, RunParams, StudyParams, load_study, refuse_missing
from medstudy.runs import from_root

if TYPE_CHECKING:
    from medstudy.data.card import DataCard
    from medstudy.data.load import Loaded
    from medstudy.data.splits import Splits
    from medstudy.tasks.base import Task

#: Tokens a word where the model's tokenizer is not at hand; clinical text had 1.3 to 3.
TOKENS_A_WORD = 2


def report_study(folder: Path) -> int:
    """Print what the study holds and what would run; returns 0, or 2 after listing every fault found.

    Raises:
        ParamsError: study.yaml itself cannot be read, so nothing else can be checked.
    """
    study = load_study(folder)
    shape = f"{len(study.tasks)} tasks x {len(study.models)} models x {len(study.seeds)} seeds"
    print(f"{study.name}: {math.prod(map(len, (study.tasks, study.models, study.seeds)))} runs ({shape})")
    gpus, here = max(int(of.get("gpu", 0)) for of in study.tasks.values()), len(batch.visible_gpus())
    if gpus > here:
        print(f"note: a run asks for gpu: {gpus}, and this machine shows {here}; nodes of a cluster may have more")
    faults: list[str] = []
    for task in study.tasks:
        for line in check_task(study, task, faults):
            print(line)
    if not faults:
        try:
            states = Counter(state for _, state, _ in batch.statuses(study))
            print("runs: " + ", ".join(f"{n} {state}" for state, n in states.items()))
            planned = ", ".join(f"{n} {rule}" for rule, n in batch.plan(folder).items())
            print(f"would run: {planned or 'nothing, all is up to date'}; results in {batch.results_of(study)}")
        except batch.BatchError as error:
            faults.append(str(error))
    for fault in faults:
        print(f"medstudy: {fault}", file=sys.stderr)
    return 2 if faults else 0


def check_task(study: StudyParams, name: str, faults: list[str]) -> Iterator[str]:
    """Lines about one task: rows, then splits, tokens and needs of each model; what cannot run goes to ``faults``."""
    from medstudy.data.card import load_card
    from medstudy.data.load import load_cases
    from medstudy.data.splits import split_cases
    from medstudy.tasks import get_task
    from medstudy.training.chat import load_chat
    from medstudy.training.prompts import worked_examples

    try:
        runs = {model: [study.run(name, model, seed) for seed in study.seeds] for model in study.models}
        first = runs[study.models[0]][0]
        card = load_card(first.data)
        task, loaded = get_task(name, card), load_cases(card, first.data_root)
        _check_pairs(first, card)
    except (DataError, ParamsError) as error:
        if not any(fault.endswith(str(error)) for fault in faults):  # one of shared.yaml is every task's
            faults.append(f"{name}: {error}")
        return
    yield f"{name}: {card.title} ({first.data})"
    yield f"  {loaded.rows_in} rows, {len(loaded.cases)} cases"
    if "urgency" in card.labels:
        yield f"  urgency, from the least to the most urgent: {', '.join(card.labels['urgency'])}"
    for reason, n in Counter(dropped.reason for dropped in loaded.dropped).most_common():
        yield f"  left out: {n} x {reason}"
    for model in study.models:
        cases, lengths = _fitting(runs[model][0], task, loaded.cases, faults)
        try:
            splits = [split_cases(cases, run) for run in runs[model]][0]
            if lengths:  # raises where no worked example fits beside the longest prompt
                worked_examples(splits.train, lengths, task, load_chat(runs[model][0]), runs[model][0])
        except DataError as error:
            faults.append(f"{name}, {model}: {error}")
            continue
        yield f"  {model}: " + ", ".join(f"{part} {len(drawn)}" for part, drawn in vars(splits).items())
        gpus = int(study.tasks[name].get("gpu", 0))
        yield from (f"    {line}" for line in _needs(runs[model][0], lengths, task, vars(splits), gpus))
        if model == study.models[-1]:
            yield f"  {_power(name, splits.test, len(study.models), len(study.seeds))}"
            yield from (f"  {line}" for line in _audited(first, card, loaded, splits))


def _power(task: str, test: list[Case], models: int, seeds: int) -> str:
    """What this size can show, as `medstudy plan` foretells it from the demo's variances; groups count, not rows."""
    from medstudy.evaluation import plan

    units = len({case.group_id for case in test})
    found = plan.shows(plan.earlier_variances(), {task: units}, models, seeds).set_index("scope").loc["task"]
    gain = f"a gain of {found['gain']:g} has 80 % power" if seeds > 1 else "one training is no evidence of a gain"
    return f"{units} independent test cases, {seeds} trainings a model: {gain}, intervals are ±{found['half_width']:g}"


def _audited(run: RunParams, card: DataCard, loaded: Loaded, splits: Splits) -> Iterator[str]:
    """Labels in each split, and what to look at before training."""
    from medstudy.data import audit
    from medstudy.evaluation.views import show_counts
    from medstudy.training.preferences import too_few

    table = audit.audit(loaded, splits)
    shown = show_counts(card, table, list(table.columns[2:]))
    for row in shown[shown["topic"].isin(list(loaded.labels))].to_dict("records"):
        counts = ", ".join(f"{part} {row[part]}" for part in table.columns[3:])
        yield f"{row['topic']} '{row['measure']}': {row['source']} ({counts})"
    yield from (f"note: {note}" for note in audit.notes(card, loaded, table))
    if few := too_few(run, len(splits.prefer) * run.pairs_per_case):
        yield f"note: at most {few}"


def _fitting(run: RunParams, task: Task, cases: list[Case], faults: list[str]) -> tuple[list[Case], Any]:
    """Cases that fit the model's context, and their lengths; None for lengths where its tokenizer is not here.

    What the run would refuse goes to ``faults``, all of it: `fit_context` is asked to leave out, and counted.
    """
    from medstudy.training.chat import load_chat
    from medstudy.training.checkpoint import ModelError
    from medstudy.training.prompts import fit_context

    where, refuses = f"{run.task}, {run.model}: ", run.overlong == "error"
    try:
        if not _is_here(run.model):
            return cases, None
        chat = load_chat(run)
        kept, lengths = fit_context(
            cases, task, chat, run.model_copy(update={"overlong": "exclude"} if refuses else {})
        )
    except (DataError, ModelError) as error:
        faults.append(where + str(error))
        return cases, None
    if refuses and lengths.answer_cut:
        faults.append(
            f"{where}{lengths.answer_cut} gold answers of {len(cases)} need more than max_new_tokens = "
            f"{run.max_new_tokens} and could never be given; the longest needs {max(lengths.answer)}: set that"
        )
    if refuses and lengths.excluded:
        faults.append(
            f"{where}{lengths.excluded} cases of {len(cases)} do not fit, with their answers, into the "
            f"{chat.context} tokens of the model's context; set overlong to truncate (cuts them) or exclude"
        )
    elif lengths.excluded or lengths.truncated:
        print(f"  note: {where}of {len(cases)} cases {lengths.excluded} left out, {lengths.truncated} cut (overlong)")
    return kept, lengths


def _is_here(model: str) -> bool:
    """Whether tokenizer and config can be read without a network.

    Raises:
        DataError: the name is that of a folder, and there is none.
    """
    from huggingface_hub import try_to_load_from_cache

    if model.startswith("builtin/") or from_root(model).exists():
        return True
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise DataError(f"there is no folder {model}; give one, or a hub id (owner/name)")
    return all(isinstance(try_to_load_from_cache(model, f), str) for f in ("config.json", "tokenizer_config.json"))


def _needs(run: RunParams, lengths: Any, task: Task, parts: dict[str, list[Case]], gpus: int) -> Iterator[str]:
    """Tokens, memory and minutes of a run of one model."""
    from medstudy.training.checkpoint import locate

    if lengths is None:
        some = [case for part in parts.values() for case in part]
        prompts = [len(task.prompt(case).split()) * TOKENS_A_WORD for case in some]
        answers = [len(task.target(case).split()) * TOKENS_A_WORD for case in some]
        how = f"estimated from words at {TOKENS_A_WORD} a word, as the model is not on this machine yet"
    else:
        prompts, answers, how = lengths.prompt, lengths.answer, "by the model's tokenizer"
    mean = statistics.mean(prompts)
    yield f"{mean:.0f} tokens a prompt, longest {max(prompts)}, longest answer {max(answers)}: {how}"
    try:
        refuse_missing(run)
        if lengths is None:
            return
        model = forecast.model_without_weights(locate(run))
    except ParamsError as error:  # on this machine: another may run it
        yield f"note: {error}"
        return
    except (OSError, ValueError) as error:
        yield f"memory and time are not foretold: {type(error).__name__}, no config.json of a kind that is known here"
        return
    counts = (len(parts[name]) for name in ("train", "prefer", "test"))
    work = forecast.Work(mean, statistics.mean(answers), max(prompts) + max(answers), *counts)
    gb = forecast.gigabytes(run, model, work, gpus > 0) / max(1, gpus)
    rate = forecast.GPU_RATE if gpus else forecast.CPU_RATE
    minutes = max(1, forecast.seconds(run, model, work, rate) / 60)
    time = f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.0f} h"
    where = f"GPU memory and {time} at {rate / 1e12:.0f} TFLOP/s" if gpus else f"memory and {time} on one idle core"
    weights = f"{model.num_parameters() / 1e6:,.0f} million weights"
    yield f"{weights}; a run takes about {gb:.1f} GB of {where} (up to twice that)"


def _check_pairs(run: RunParams, card: DataCard) -> None:
    """What `pair_source` needs is there: said here, as the notebook would only after SFT."""
    if run.pair_file and not from_root(run.pair_file).is_file():
        raise DataError(f"pair_file = '{run.pair_file}' does not exist (looked for in {Path.cwd()})")
    if run.pair_source == "card" and not (card.columns and card.columns.rejected):
        raise DataError(f"pair_source = 'card', but data card '{card.name}' has no columns.rejected")
