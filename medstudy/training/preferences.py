"""Preference pairs, from the SFT model's own errors or from elsewhere, and their audit."""

import math
import random
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from medstudy.data.cases import Case, DataError
from medstudy.data.splits import Splits
from medstudy.files import from_root
from medstudy.params import RunParams
from medstudy.runs import Run, Stage
from medstudy.show import ENOUGH_PAIRS, ENOUGH_STEPS, TOO_FEW, own
from medstudy.tasks.base import Task
from medstudy.tasks.reading import normalise
from medstudy.training.chat import Row, turn
from medstudy.training.generation import sample_cases


@dataclass(frozen=True)
class Pair:
    """Two answers to one preference case; ``source`` says where the chosen one comes from."""

    case_id: str
    group_id: str
    prompt: list[dict[str, str]]
    chosen: str
    rejected: str
    source: str

    def row(self) -> Row:
        """The form that `DPOTrainer` reads."""
        return {"prompt": self.prompt, "chosen": turn(self.chosen), "rejected": turn(self.rejected)}

    def chosen_row(self) -> Row:
        """The chosen side alone, in the form that `SFTTrainer` reads."""
        return {"prompt": self.prompt, "completion": turn(self.chosen)}


@dataclass(frozen=True)
class Pairs:
    """Pairs and what was counted while they were made."""

    pairs: list[Pair]
    counts: dict[str, int]


#: What a source finds: case id -> its pairs (chosen, rejected, source of the chosen one), and what was counted.
Found = tuple[dict[str, list[tuple[str, str, str]]], dict[str, int]]


def pairs_of(run: Run, task: Task, cases: list[Case], sft: Stage) -> Pairs:
    """Pairs for the preference cases; whether they are enough to learn from is kept for run.json."""
    own = run.params.pair_source == "own_errors"
    made = make_pairs(run.params, task, cases, sample_cases(run, task, cases, sft) if own else None)
    paired = len({pair.case_id for pair in made.pairs})
    run.facts |= {"enough_pairs": not too_few(run.params, len(made.pairs)), "paired_cases": paired}
    return made


def make_pairs(params: RunParams, task: Task, cases: list[Case], samples: list[list[str]] | None = None) -> Pairs:
    """Pairs from the source ``pair_source``, at most ``pairs_per_case`` a case; none whose sides say the same.

    ``samples`` are the SFT model's, for ``own_errors``. A `DataError` says what is wrong with a file.
    """
    found, told = SOURCES[params.pair_source](params, task, cases, samples or [])
    pairs, counts = [], Counter({"preference prompts": len(cases), **told})
    for case in cases:
        offered = found.get(case.case_id, [])
        sides = {(normalise(pair[0]), normalise(pair[1])): pair for pair in reversed(offered)}
        different = [pair for (chosen, rejected), pair in reversed(sides.items()) if chosen != rejected]
        kept = different[: params.pairs_per_case]
        counts["identical or repeated pairs dropped"] += len(offered) - len(different)
        counts["pairs beyond pairs_per_case dropped"] += len(different) - len(kept)
        counts["chosen scored wrong"] += sum(not _is_right(task, case, chosen) for chosen, _, _ in kept)
        counts["rejected scored right"] += sum(_is_right(task, case, rejected) for _, rejected, _ in kept)
        pairs += [Pair(case.case_id, case.group_id, task.messages(case), *pair) for pair in kept]
    return Pairs(pairs, dict(counts))


def from_own_errors(params: RunParams, task: Task, cases: list[Case], samples: list[list[str]]) -> Found:
    """The model's own most frequent right answer, else gold, against its distinct wrong ones, in order of frequency."""
    counts, found = Counter(), {}
    for case, outputs in zip(cases, samples, strict=True):
        right = [text for text in outputs if _is_right(task, case, text)]
        wrong = [text for text in outputs if text not in right]
        distinct = _most_frequent_first(wrong)
        counts["samples drawn"] += len(outputs)
        counts["samples that were wrong"] += len(wrong)
        counts["repeated wrong samples dropped"] += len(wrong) - len(distinct)
        chosen, source = (_most_frequent_first(right)[0], "own") if right else (task.target(case), "gold")
        found[case.case_id] = [(chosen, rejected, source) for rejected in distinct]
    return found, dict(counts)


def from_labels(params: RunParams, task: Task, cases: list[Case], samples: list[list[str]]) -> Found:
    """Gold against wrong answers in the right form, which the task makes up."""
    rng = random.Random(params.seed)
    return {c.case_id: [(task.target(c), w, "gold") for w in task.wrong_answers(c, cases, rng)] for c in cases}, {}


def from_card(params: RunParams, task: Task, cases: list[Case], samples: list[list[str]]) -> Found:
    """Gold against the worse answer that the source holds (`Columns.rejected`)."""
    worse = [(c, replace(c, gold=c.details["rejected"])) for c in cases if "rejected" in c.details]
    if not worse:
        told = f"no preference case of '{task.card.name}' has an answer that is worse than gold"
        raise DataError(f"pair_source = 'card': {told}; see columns.rejected of the data card")
    return {case.case_id: [(task.target(case), task.target(other), "gold")] for case, other in worse}, {}


def from_table(params: RunParams, task: Task, cases: list[Case], samples: list[list[str]]) -> Found:
    """Pairs as a table has them, or the best-rated answer (mean of all raters) against the worse ones, worst first."""
    rated = params.pair_source == "ratings"
    columns = ["case_id", "text", "rating"] if rated else ["case_id", "chosen", "rejected"]
    rows = _read_rows(from_root(params.pair_file), columns)
    by_case = dict(tuple(rows.groupby(rows["case_id"].astype(str))))
    found = {}
    for case_id in [c.case_id for c in cases if c.case_id in by_case]:
        if rated:
            means = by_case[case_id].groupby("text")["rating"].mean().sort_values()
            found[case_id] = [(means.index[-1], text, "ratings") for text in means.index[means < means.iloc[-1]]]
        else:
            sides = by_case[case_id][["chosen", "rejected"]].astype(str)
            found[case_id] = list(sides.assign(source="file").itertuples(index=False, name=None))
    if not found:
        told = f"{params.pair_file}: none of its {len(by_case)} case ids is a preference case"
        raise DataError(f"{told}; see the card's columns.case_id")
    others = len(by_case) - len(found)
    return found, {"rows in the file": len(rows), "cases of the file that are no preference cases": others}


#: pair_source -> where its pairs come from; another one is a function above and a line here.
SOURCES = {"own_errors": from_own_errors, "labels": from_labels, "card": from_card}
SOURCES |= {"ratings": from_table, "file": from_table}


def _read_rows(file: Path, columns: list[str]) -> pd.DataFrame:
    # as text: neither 0012 nor the answer "None" is to be taken for something else
    text = {"dtype": str, "keep_default_na": False}
    readers = {".csv": partial(pd.read_csv, **text), ".xlsx": partial(pd.read_excel, **text)}
    readers |= {".parquet": pd.read_parquet, ".jsonl": partial(pd.read_json, lines=True, dtype=False)}
    if file.suffix not in readers or not file.is_file():
        raise DataError(f"pair_file = '{file}': give an existing file that ends in {', '.join(readers)}")
    rows = readers[file.suffix](file)
    if missing := [name for name in columns if name not in rows]:
        raise DataError(f"{file} has no column {', '.join(missing)} (columns: {', '.join(map(str, rows))})")
    wrong = (rows[columns].isna() | rows[columns].eq("")).any(axis=1)
    if "rating" in columns:
        rows["rating"] = pd.to_numeric(rows["rating"], errors="coerce")
        wrong |= rows["rating"].isna()
    if wrong.any():
        raise DataError(f"{file}, row {wrong.idxmax() + 1}: empty cell or no number in {', '.join(columns)}")
    return rows


def audit_pairs(made: Pairs, splits: Splits) -> pd.DataFrame:
    """One row a fact about the pairs; those from other cases or groups must be 0. Holds no text."""
    pairs = pd.DataFrame(map(vars, made.pairs), columns=list(Pair.__dataclass_fields__))
    words = pairs[["chosen", "rejected"]].map(lambda text: len(text.split()))
    said = pairs[["chosen", "rejected"]].map(normalise).assign(prompt=pairs["prompt"].map(str))
    others = {c.group_id for c in [*splits.train, *splits.validation, *splits.test]}
    facts = {
        "pairs": len(pairs),
        **made.counts,
        "prompts covered": pairs["case_id"].nunique(),
        "identical pairs left": (said["chosen"] == said["rejected"]).sum(),
        "pairs that another case has too": said.duplicated().sum(),
        "chosen is the model's own answer": (pairs["source"] == "own").sum(),
        "chosen is longer": (words["chosen"] > words["rejected"]).sum(),
        "rejected is longer": (words["chosen"] < words["rejected"]).sum(),
        "words of chosen / words of rejected": round(words["chosen"].sum() / max(1, words["rejected"].sum()), 2),
        "pairs from other cases": (~pairs["case_id"].isin([c.case_id for c in splits.prefer])).sum(),
        "pairs from groups of other splits": pairs["group_id"].isin(others).sum(),
    }
    return own(pd.DataFrame({"value": facts}).rename_axis("pairs audit"))


def too_few(params: RunParams, n: int) -> str:
    """In a sentence, why ``n`` pairs are too few to expect that DPO learns from them; empty where they are not."""
    steps = math.ceil(params.dpo_epochs * math.ceil(n / (params.batch_size * params.gradient_accumulation)))
    enough = n >= ENOUGH_PAIRS and steps >= ENOUGH_STEPS
    return "" if enough else TOO_FEW.format(n, steps, ENOUGH_PAIRS, ENOUGH_STEPS)


def _is_right(task: Task, case: Case, text: str) -> bool:
    return task.score(task.parse(text), case)["correct"] == 1.0


def _most_frequent_first(texts: list[str]) -> list[str]:
    """Distinct texts after normalisation; an empty answer cannot be a completion and is left out."""
    first = {normalise(text): text for text in reversed(texts)}
    return [first[key] for key, _ in Counter(map(normalise, texts)).most_common() if key]
