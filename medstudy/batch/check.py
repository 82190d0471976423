"""`medstudy check`: everything about a study that can be found out without loading a model."""

from __future__ import annotations

import math
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from medstudy.batch import study as batch
from medstudy.batch.forecast import Tokens, forecast, processor_rate, read_shape
from medstudy.data.card import DataCard
from medstudy.data.cases import DataError
from medstudy.params import BUILTIN, ParamsError, RunParams, StudyParams, load_study, refuse_missing
from medstudy.runs import from_root

if TYPE_CHECKING:
    import pandas as pd

#: Operations a second that a forecast for a GPU supposes; a card's own figure for bf16 is a multiple of it.
GPU_RATE = 100e12
#: Tokens a word of clinical English, roughly; exact counts need the model's tokenizer, see the notebooks.
TOKENS_A_WORD = 1.4
#: Share of test cases that one of two arms alone answers right; DPO and SFT in the demo: 1 to 41 %, median 7.
DISCORDANT = 0.1


def report_study(folder: Path) -> int:
    """Print what the study holds and what would run; returns 0, or 2 after listing every fault found.

    Raises:
        ParamsError: the parameters are not valid, so nothing else can be checked.
        BatchError: Snakemake cannot plan the study, for example because a notebook is missing.
    """
    study = load_study(folder)
    runs = study.runs()
    shape = f"{len(study.tasks)} tasks x {len(study.models)} models x {len(study.seeds)} seeds"
    print(f"{study.name}: {len(runs)} runs ({shape}), results in {batch.results_of(study)}")
    with ThreadPoolExecutor(1) as planning:
        planned = planning.submit(batch.plan, folder)  # takes Snakemake as long as the data take us
        if not _data_are_there(study, runs):
            return 2
    states = Counter(state for _, state, _ in batch.statuses(study))
    print("runs: " + ", ".join(f"{n} {state}" for state, n in states.items()))
    print(
        "would run: "
        + (", ".join(f"{n} {rule}" for rule, n in planned.result().items()) or "nothing, all is up to date")
    )
    return 0


def _data_are_there(study: StudyParams, runs: list[RunParams]) -> bool:
    """Describe each task, or say what is wrong with it."""
    faults = 0
    for task in study.tasks:
        try:
            gpus = int(study.tasks[task].get("gpu", 0))
            for line in describe_data([r for r in runs if r.task == task], gpus):
                print(line)
        except (DataError, ParamsError) as error:
            faults += 1
            print(f"medstudy: {task}: {error}", file=sys.stderr)
    return not faults


def describe_data(runs: list[RunParams], gpus: int = 0) -> Iterator[str]:
    """Lines about one task: rows, splits, rough token counts, what a run takes, what the audit finds.

    Args:
        runs: the same task and data with one or more models and seeds.
        gpus: that each of them is given.

    Raises:
        DataError: the data cannot be had or split.
    """
    from medstudy.data.audit import audit
    from medstudy.data.load import load_card, load_cases
    from medstudy.data.splits import split_cases
    from medstudy.evaluation.statistics import smallest_detectable
    from medstudy.tasks import get_task
    from medstudy.training.models import context_length

    first = runs[0]
    card = load_card(first.data)
    task = get_task(first.task, card)
    _check_pairs(first, card)
    loaded = load_cases(card, first.data_root)
    # the model does not change the data; every seed has splits of its own
    seeds = [run for run in runs if run.model == first.model]
    splits = [split_cases(loaded.cases, r.n_train, r.n_valid, r.n_test, r.seed, r.split_seed) for r in seeds]
    sizes = f"train {len(splits[0].train)}, validation {len(splits[0].validation)}, test {len(splits[0].test)}"
    yield f"{first.task}: {card.title} ({first.data})"
    yield f"  {loaded.rows_in} rows, {len(loaded.cases)} cases; {sizes}"
    for reason, n in Counter(dropped.reason for dropped in loaded.dropped).most_common():
        yield f"  left out: {n} x {reason}"
    lengths = [_tokens(task.prompt(case)) for case in splits[0].all()]
    answers = sum(_tokens(task.target(case)) for case in splits[0].train)
    yield (
        f"  about {statistics.median(lengths):.0f} tokens a prompt (longest {max(lengths)}),"
        f" {sum(lengths):,} in all prompts, {answers:,} in the answers trained on"
    )
    longest = max(_tokens(task.target(case)) for case in splits[0].train)
    tokens = Tokens(statistics.mean(lengths), answers / len(splits[0].train), max(lengths) + longest)
    for run in {run.model: run for run in runs}.values():
        yield "  " + _foretold(run, tokens, (len(splits[0].train), len(splits[0].test)), gpus)
    units = len({case.group_id for case in splits[0].test})
    least = smallest_detectable(math.sqrt(DISCORDANT / units))
    yield (
        f"  smallest difference that {units} independent test cases show with 80 % power: "
        f"{100 * least:.0f} points of right answers (if {DISCORDANT:.0%} differ; one training)"
    )
    try:
        refuse_missing(first)
    except ParamsError as error:  # on this machine: another may run it
        yield f"  note: {error}"
    table = audit(loaded, splits[0])
    yield from _notes(table, len(loaded.cases))
    unused = len(loaded.cases) - len(splits[0].all())
    if first.n_train == 0 and unused:
        yield f"  note: {unused} cases go unused: the rest of groups that a split was cut through"
    if first.model in BUILTIN and max(lengths) > (holds := context_length(first)):
        yield (
            f"  note: {first.model} holds {holds} tokens, the longest prompt about "
            f"{max(lengths)}: see overlong (here '{first.overlong}')"
        )
    found = table[(table["topic"] == "overlap") & (table[["validation", "test"]].max(axis=1) > 0)]
    for row in found.to_dict("records"):
        yield f"  note: {row['measure']}: {row['validation']} of validation, {row['test']} of test"


def _foretold(run: RunParams, tokens: Tokens, cases: tuple[int, int], gpus: int) -> str:
    """What one run of a model takes: on a core of this machine, or on a GPU at a rate that is named."""
    shape = read_shape(run.model)
    if shape is None:
        return f"{run.model}: no config.json of a kind that is known here: memory and time are not foretold"
    made = forecast(run, shape, tokens, cases, processor_rate(), gpus > 0)
    where = f"{run.model}: {shape.weights / 1e6:,.0f} million weights; a run takes about {made.gigabytes:.1f} GB"
    if gpus:
        minutes = made.operations / GPU_RATE / 60
        return f"{where} of GPU memory and {_minutes(minutes)} at {GPU_RATE / 1e12:.0f} TFLOP/s"
    return f"{where} and {_minutes(made.seconds / 60)} on one core here (within a factor of two)"


def _minutes(minutes: float) -> str:
    return f"{max(1, minutes):.0f} min" if minutes < 100 else f"{minutes / 60:.0f} h"


def _notes(table: pd.DataFrame, n: int) -> Iterator[str]:
    """What of an audit a reader should look at before training."""
    found = {(row["topic"], row["measure"]): row["source"] for row in table.to_dict("records")}
    for (topic, what), count in found.items():
        if topic == "leak?":
            yield f"  note: {what}: {count}; does it give the answer away? See columns.exclude"
        elif topic == "repeats" and count:
            yield f"  note: {what}: {count}; see columns.repeats"
        elif topic == "missing values" and count == n:
            yield f"  note: {what} has no value in any case"
        elif what.startswith("without a row in"):
            yield f"  note: {count} rows {what}"
        elif count == 0 and topic not in {"rows", "size", "repeats", "overlap", "missing values"}:
            yield f"  note: no case has {topic} '{what}'"


def _check_pairs(run: RunParams, card: DataCard) -> None:
    """What `pair_source` needs is there: said here, as the notebook would only after SFT.

    Raises:
        DataError: the file or the card's `columns.rejected` is missing.
    """
    if run.pair_file and not from_root(run.pair_file).is_file():
        raise DataError(f"pair_file = '{run.pair_file}' does not exist (looked for in {Path.cwd()})")
    if run.pair_source == "card" and not (card.columns and card.columns.rejected):
        raise DataError(f"pair_source = 'card', but data card '{card.name}' has no columns.rejected")


def _tokens(text: str) -> int:
    return round(len(text.split()) * TOKENS_A_WORD)
