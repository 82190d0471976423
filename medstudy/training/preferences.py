"""Preference pairs, from the SFT model's own errors or from elsewhere, and their audit."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medstudy.data.cases import Case, DataError
from medstudy.params import RunParams
from medstudy.runs import from_root
from medstudy.show import OWN
from medstudy.tasks.base import Task, normalise
from medstudy.training.prompts import Row

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Pair:
    """Two answers to one training case; ``source`` says where the chosen one comes from."""

    case_id: str
    group_id: str
    prompt: list[dict[str, str]]
    chosen: str
    rejected: str
    source: str

    def row(self) -> Row:
        """The form that `DPOTrainer` reads."""
        return {
            "prompt": self.prompt,
            "chosen": [{"role": "assistant", "content": self.chosen}],
            "rejected": [{"role": "assistant", "content": self.rejected}],
        }


@dataclass(frozen=True)
class Pairs:
    """Pairs and what was counted while they were made."""

    pairs: list[Pair]
    counts: dict[str, int]

    def save(self, file: Path) -> None:
        """One JSON line a pair; holds case text, so it belongs into ``private/``."""
        lines = (json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in self.pairs)
        file.write_text("".join(lines), encoding="utf-8")


def make_pairs(params: RunParams, task: Task, cases: list[Case], samples: list[list[str]] | None = None) -> Pairs:
    """Pairs for the training cases from the source ``pair_source``.

    ``own_errors`` takes the SFT model's ``samples``; ``labels`` sets gold against wrong answers that the
    task makes up, ``card`` against a worse answer that the source holds (`Columns.rejected`); ``ratings``
    reads a table with case_id, text and rating (several raters: their mean); ``file`` reads one with
    case_id, chosen and rejected. Files: csv, jsonl, xlsx or parquet.

    Raises:
        DataError: the file or a column is missing, a cell is empty, or no row is about a training case.
    """
    if params.pair_source == "own_errors":
        return pairs_from_own_errors(task, cases, samples or [], params.pairs_per_case)
    if params.pair_source == "labels":
        return _pairs_from_labels(task, cases, params.pairs_per_case, params.seed)
    if params.pair_source == "card":
        return _pairs_from_card(task, cases)
    rated = params.pair_source == "ratings"
    columns = ("case_id", "text", "rating") if rated else ("case_id", "chosen", "rejected")
    rows = _read_rows(from_root(params.pair_file), columns)
    by_case = dict(tuple(rows.groupby(rows["case_id"].astype(str))))
    pick = _rated if rated else _given
    found = {c.case_id: pick(by_case[c.case_id]) for c in cases if c.case_id in by_case}
    if not found:
        raise DataError(
            f"{params.pair_file}: none of its {len(by_case)} case ids is a training case, e.g. "
            f"'{next(iter(by_case), '')}' against '{cases[0].case_id}'; see the card's columns.case_id"
        )
    counts = {
        "training prompts": len(cases),
        "rows in the file": len(rows),
        "cases in the file outside training": len(by_case) - len(found),
    }
    chosen = {case: [(c, r, params.pair_source) for c, r in pairs] for case, pairs in found.items()}
    return _assemble(task, cases, chosen, counts, params.pairs_per_case)


def pairs_from_own_errors(task: Task, cases: list[Case], samples: list[list[str]], pairs_per_case: int) -> Pairs:
    """Pairs of a right answer and the model's distinct wrong ones, the most frequent of these first.

    Chosen is the model's own most frequent right answer where it has one, else gold: its own is likely
    under it already, so that the pair teaches what is wrong and not another way of writing.

    Args:
        task: scores the samples (``correct``).
        cases: training cases, in the order of ``samples``.
        samples: per case, the answers that the SFT model gave at temperature 1.
        pairs_per_case: at most so many rejected answers a case.
    """
    counts = {
        "training prompts": len(cases),
        "samples drawn": 0,
        "samples that were wrong": 0,
        "repeated wrong samples dropped": 0,
    }
    found: dict[str, list[tuple[str, str, str]]] = {}
    for case, outputs in zip(cases, samples, strict=True):
        right, wrong = _split_by_score(task, case, outputs)
        distinct = _most_frequent_first(wrong)
        counts["samples drawn"] += len(outputs)
        counts["samples that were wrong"] += len(wrong)
        counts["repeated wrong samples dropped"] += len(wrong) - len(distinct)
        chosen, source = (_most_frequent_first(right)[0], "own") if right else (task.target(case), "gold")
        found[case.case_id] = [(chosen, rejected, source) for rejected in distinct]
    return _assemble(task, cases, found, counts, pairs_per_case)


def _pairs_from_labels(task: Task, cases: list[Case], pairs_per_case: int, seed: int) -> Pairs:
    rng = random.Random(seed)
    found = {
        case.case_id: [(task.target(case), text, "gold") for text in task.wrong_answers(case, cases, rng)]
        for case in cases
    }
    return _assemble(task, cases, found, {"training prompts": len(cases)}, pairs_per_case)


def _pairs_from_card(task: Task, cases: list[Case]) -> Pairs:
    worse = {case.case_id: case.details["rejected"] for case in cases if "rejected" in case.details}
    if not worse:
        raise DataError(
            f"pair_source = 'card': no training case of '{task.card.name}' has an answer that is worse than "
            "gold; see columns.rejected of the data card"
        )
    found = {
        case.case_id: [(task.target(case), task.target(replace(case, gold=worse[case.case_id])), "gold")]
        for case in cases
        if case.case_id in worse
    }
    return _assemble(task, cases, found, {"training prompts": len(cases)})


def _assemble(
    task: Task,
    cases: list[Case],
    found: Mapping[str, list[tuple[str, str, str]]],
    counts: dict[str, int],
    pairs_per_case: int | None = None,
) -> Pairs:
    """Pairs in the order of the cases; those whose sides say the same, or are too many, are counted."""
    pairs: list[Pair] = []
    identical = beyond = 0
    for case in cases:
        offered = found.get(case.case_id, [])
        different = [pair for pair in offered if normalise(pair[0]) != normalise(pair[1])]
        identical += len(offered) - len(different)
        kept = different[:pairs_per_case]
        beyond += len(different) - len(kept)
        pairs += [Pair(case.case_id, case.group_id, task.messages(case), *pair) for pair in kept]
    dropped = {"identical pairs dropped": identical, "pairs beyond pairs_per_case dropped": beyond}
    return Pairs(pairs, counts | dropped)


def _read_rows(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    # as text: neither 0012 nor the answer "None" is to be taken for something else
    text = {"dtype": str, "keep_default_na": False}
    readers = {".csv": partial(pd.read_csv, **text), ".xlsx": partial(pd.read_excel, **text)}
    readers |= {".parquet": pd.read_parquet, ".jsonl": partial(pd.read_json, lines=True, dtype=False)}
    if file.suffix not in readers or not file.is_file():
        raise DataError(f"pair_file = '{file}': give an existing file that ends in {', '.join(readers)}")
    rows = readers[file.suffix](file)
    missing = [name for name in columns if name not in rows]
    if missing:
        raise DataError(f"{file} has no column {', '.join(missing)} (columns: {', '.join(map(str, rows))})")
    empty = rows[(rows[list(columns)].isna() | rows[list(columns)].eq("")).any(axis=1)]
    if len(empty):
        raise DataError(f"{file}, row {empty.index[0] + 1}: empty cell in {', '.join(columns)}")
    if "rating" in columns:
        rows["rating"] = pd.to_numeric(rows["rating"], errors="coerce")
        if rows["rating"].isna().any():
            raise DataError(f"{file}, row {rows['rating'].isna().idxmax() + 1}: the rating is not a number")
    return rows


def _rated(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """The best-rated answer to one case against the worse ones, the worst first."""
    means = rows.groupby("text")["rating"].mean().sort_values()
    best = means.index[-1]
    return [(best, text) for text in means.index[means < means[best]]]


def _given(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(rows["chosen"].astype(str), rows["rejected"].astype(str), strict=True))


def audit_pairs(made: Pairs, test: list[Case]) -> pd.DataFrame:
    """One row a fact about the pairs; ``pairs from test cases`` and ``… groups`` must be 0. Holds no text."""
    import pandas as pd

    pairs, n = made.pairs, len(made.pairs)
    covered = len({pair.case_id for pair in pairs})
    words = [(len(p.chosen.split()), len(p.rejected.split())) for p in pairs]
    test_cases, test_groups = {c.case_id for c in test}, {c.group_id for c in test}
    longer = sum(chosen > rejected for chosen, rejected in words)
    facts = {
        "pairs": n,
        **made.counts,
        "prompts covered": covered,
        "identical pairs left": sum(normalise(p.chosen) == normalise(p.rejected) for p in pairs),
        "chosen is the model's own answer": sum(p.source == "own" for p in pairs),
        "chosen is longer": longer,
        "words of chosen / words of rejected": round(_ratio(words), 2),
        "pairs from test cases": sum(p.case_id in test_cases for p in pairs),
        "pairs from test groups": sum(p.group_id in test_groups for p in pairs),
    }
    table = pd.DataFrame({"value": facts}).rename_axis("pairs audit")
    table.attrs[OWN] = True
    return table


def _ratio(words: list[tuple[int, int]]) -> float:
    rejected = sum(r for _, r in words)
    return sum(c for c, _ in words) / rejected if rejected else float("nan")


def _split_by_score(task: Task, case: Case, outputs: list[str]) -> tuple[list[str], list[str]]:
    right: list[str] = []
    wrong: list[str] = []
    for text in outputs:
        (right if task.score(task.parse(text), case)["correct"] == 1.0 else wrong).append(text)
    return right, wrong


def _most_frequent_first(texts: list[str]) -> list[str]:
    """Distinct texts after normalisation; an empty answer cannot be a completion and is left out."""
    count: dict[str, int] = {}
    first: dict[str, str] = {}
    for text in texts:
        key = normalise(text)
        if key:
            first.setdefault(key, text)
            count[key] = count.get(key, 0) + 1
    return [first[key] for key in sorted(count, key=lambda k: -count[k])]
