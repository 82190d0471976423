"""Preference pairs, from the SFT model's own errors or from elsewhere, and their audit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.data.cases import Case, DataError
from medstudy.data.splits import Splits
from medstudy.params import RunParams
from medstudy.runs import from_root
from medstudy.show import OWN
from medstudy.tasks.base import Task, normalise
from medstudy.training.chat import Row

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Pair:
    """Two answers to one preference case; ``source`` says where the chosen one comes from."""

    case_id: str
    group_id: str
    prompt: list[dict[str, str]]
    chosen: str
    rejected: str
    source: str

    def chosen_row(self) -> Row:
        """The chosen side alone, in the form that `SFTTrainer` reads."""
        return {"prompt": self.prompt, "completion": [{"role": "assistant", "content": self.chosen}]}

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


#: Case id -> its pairs (chosen, rejected, where the chosen one comes from), and what was counted on the way.
Found = tuple[dict[str, list[tuple[str, str, str]]], dict[str, int]]


def make_pairs(params: RunParams, task: Task, cases: list[Case], samples: list[list[str]] | None = None) -> Pairs:
    """Pairs for the preference cases from the source ``pair_source``; those whose sides say the same are dropped.

    ``own_errors`` takes the SFT model's ``samples``; ``labels`` sets gold against wrong answers that the
    task makes up, ``card`` against a worse answer that the source holds (`Columns.rejected`); ``ratings``
    reads a table with case_id, text and rating (several raters: their mean); ``file`` reads one with
    case_id, chosen and rejected. Files: csv, jsonl, xlsx or parquet. Another source is a function here and a line
    in `SOURCES`.

    Raises:
        DataError: the file or a column is missing, a cell is empty, or no row is about a preference case.
    """
    found, counts = SOURCES[params.pair_source](params, task, cases, samples or [])
    pairs: list[Pair] = []
    counts = {"preference prompts": len(cases), **counts}
    counts |= dict.fromkeys(("identical pairs dropped", "pairs beyond pairs_per_case dropped"), 0)
    counts |= dict.fromkeys(("chosen scored wrong", "rejected scored right"), 0)
    for case in cases:
        offered = found.get(case.case_id, [])
        different = [pair for pair in offered if normalise(pair[0]) != normalise(pair[1])]
        kept = different[: params.pairs_per_case]
        counts["identical pairs dropped"] += len(offered) - len(different)
        counts["pairs beyond pairs_per_case dropped"] += len(different) - len(kept)
        counts["chosen scored wrong"] += sum(not _is_right(task, case, chosen) for chosen, _, _ in kept)
        counts["rejected scored right"] += sum(_is_right(task, case, rejected) for _, rejected, _ in kept)
        pairs += [Pair(case.case_id, case.group_id, task.messages(case), *pair) for pair in kept]
    return Pairs(pairs, counts)


def from_own_errors(params: RunParams, task: Task, cases: list[Case], samples: list[list[str]]) -> Found:
    """A right answer against the model's distinct wrong ones, the most frequent of these first.

    Chosen is the model's own most frequent right answer where it has one, else gold: its own is likely
    under it already, so that the pair teaches what is wrong and not another way of writing.
    """
    names = ("samples drawn", "samples that were wrong", "repeated wrong samples dropped")
    counts, found = dict.fromkeys(names, 0), {}
    for case, outputs in zip(cases, samples, strict=True):
        right = [text for text in outputs if _is_right(task, case, text)]
        wrong = [text for text in outputs if text not in right]
        distinct = _most_frequent_first(wrong)
        for name, n in zip(names, (len(outputs), len(wrong), len(wrong) - len(distinct)), strict=True):
            counts[name] += n
        chosen, source = (_most_frequent_first(right)[0], "own") if right else (task.target(case), "gold")
        found[case.case_id] = [(chosen, rejected, source) for rejected in distinct]
    return found, counts


def from_labels(params: RunParams, task: Task, cases: list[Case], samples: list[list[str]]) -> Found:
    """Gold against wrong answers in the right form."""
    rng = random.Random(params.seed)
    wrong = {case.case_id: task.wrong_answers(case, cases, rng) for case in cases}
    return {c.case_id: [(task.target(c), text, "gold") for text in wrong[c.case_id]] for c in cases}, {}


def from_card(params: RunParams, task: Task, cases: list[Case], samples: list[list[str]]) -> Found:
    """Gold against the worse answer that the source holds."""
    worse = [(c, replace(c, gold=c.details["rejected"])) for c in cases if "rejected" in c.details]
    if not worse:
        raise DataError(
            f"pair_source = 'card': no preference case of '{task.card.name}' has an answer that is worse than "
            "gold; see columns.rejected of the data card"
        )
    return {case.case_id: [(task.target(case), task.target(other), "gold")] for case, other in worse}, {}


def from_ratings(params: RunParams, task: Task, cases: list[Case], samples: list[list[str]]) -> Found:
    """The best-rated answer to one case against the worse ones, the worst first."""

    def pick(rows: pd.DataFrame) -> list[tuple[str, str, str]]:
        means = rows.groupby("text")["rating"].mean().sort_values()
        return [(means.index[-1], text, "ratings") for text in means.index[means < means.iloc[-1]]]

    return _from_file(params, task, cases, ("case_id", "text", "rating"), pick)


def from_file(params: RunParams, task: Task, cases: list[Case], samples: list[list[str]]) -> Found:
    """Pairs as a table gives them."""

    def pick(rows: pd.DataFrame) -> list[tuple[str, str, str]]:
        sides = zip(rows["chosen"].astype(str), rows["rejected"].astype(str), strict=True)
        return [(chosen, rejected, "file") for chosen, rejected in sides]

    return _from_file(params, task, cases, ("case_id", "chosen", "rejected"), pick)


#: pair_source -> where its pairs come from.
SOURCES: dict[str, Callable[[RunParams, Task, list[Case], list[list[str]]], Found]] = {
    "own_errors": from_own_errors,
    "labels": from_labels,
    "card": from_card,
    "ratings": from_ratings,
    "file": from_file,
}


def _from_file(
    params: RunParams, task: Task, cases: list[Case], columns: Sequence[str], pick: Callable[..., Any]
) -> Found:
    rows = _read_rows(from_root(params.pair_file), columns)
    by_case = dict(tuple(rows.groupby(rows["case_id"].astype(str))))
    found = {c.case_id: pick(by_case[c.case_id]) for c in cases if c.case_id in by_case}
    if not found:
        example = f", e.g. '{next(iter(by_case), '')}' against '{cases[0].case_id}'" if task.card.shareable else ""
        raise DataError(
            f"{params.pair_file}: none of its {len(by_case)} case ids is a preference case{example}; see the card's "
            "columns.case_id"
        )
    counts = {
        "rows in the file": len(rows),
        "cases in the file outside the preference cases": len(by_case) - len(found),
    }
    return found, counts


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


def audit_pairs(made: Pairs, splits: Splits) -> pd.DataFrame:
    """One row a fact about the pairs; those from other cases or groups must be 0. Holds no text."""
    import pandas as pd

    pairs, n = made.pairs, len(made.pairs)
    covered = len({pair.case_id for pair in pairs})
    words = [(len(p.chosen.split()), len(p.rejected.split())) for p in pairs]
    others = [*splits.train, *splits.validation, *splits.test]
    prefer, groups = {c.case_id for c in splits.prefer}, {c.group_id for c in others}
    longer = sum(chosen > rejected for chosen, rejected in words)
    facts = {
        "pairs": n,
        **made.counts,
        "prompts covered": covered,
        "identical pairs left": sum(normalise(p.chosen) == normalise(p.rejected) for p in pairs),
        "chosen is the model's own answer": sum(p.source == "own" for p in pairs),
        "chosen is longer": longer,
        "words of chosen / words of rejected": round(_ratio(words), 2),
        "pairs from other cases": sum(p.case_id not in prefer for p in pairs),
        "pairs from groups of other splits": sum(p.group_id in groups for p in pairs),
    }
    table = pd.DataFrame({"value": facts}).rename_axis("pairs audit")
    table.attrs[OWN] = True
    return table


def _ratio(words: list[tuple[int, int]]) -> float:
    rejected = sum(r for _, r in words)
    return sum(c for c, _ in words) / rejected if rejected else float("nan")


def _is_right(task: Task, case: Case, text: str) -> bool:
    return task.score(task.parse(text), case)["correct"] == 1.0


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
