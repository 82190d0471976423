"""Made-up predictions and a made-up card: no model, known answers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd

from medstudy.data.card import DataCard


def asked(n_train: int, n_valid: int, n_test: int, seed: int, split_seed: int, n_prefer: int = 1) -> SimpleNamespace:
    """The parameters that splits are drawn by."""
    return SimpleNamespace(**locals())


def ward_card(columns=None, files=({"path": "ward.csv"},), task="text_classification", shareable=True, **load):
    """A card on the files of a ward; `load` and `columns` override parts."""
    base = {"text": "{note}", "gold": {"label": {"column": "uti", "map": {"0": "no", "1": "yes"}}}}
    labels = {"label": ["no", "yes"]} if task == "text_classification" else {}
    return DataCard.model_validate(
        {"name": "ward", "title": "A ward", "task": task, "question": "Infection?", "shareable": shareable,
         "labels": labels, "load": {"kind": "files", "files": list(files)} | load, "columns": base | (columns or {})}
    )  # fmt: skip


def rows(arm: str, gold: list[dict[str, str]], said: list[dict[str, str]], group: int = 1, **scores) -> pd.DataFrame:
    """One arm's rows; an empty answer is unparsed. ``group`` cases share a group."""
    right = [float(bool(s) and s == g) for g, s in zip(gold, said, strict=True)]
    table = pd.DataFrame(
        {
            "case_id": [f"case-{i}" for i in range(len(gold))],
            "group_id": [f"group-{i // group}" for i in range(len(gold))],
            "arm": arm,
            "output": "x",
            "status": ["parsed" if s else "unparsed" for s in said],
            "answer": [json.dumps(s) for s in said],
            "gold": [json.dumps(g) for g in gold],
            "score_correct": right,
            **scores,
        }
    )
    table.attrs["shareable"] = True
    return table


def labelled(outcome: str, gold: list[str], said: list[str], arm: str = "sft", group: int = 1) -> pd.DataFrame:
    """One arm, one outcome; "" is unparsed."""
    return rows(arm, [{outcome: g} for g in gold], [{outcome: s} if s else {} for s in said], group)


def study(shares: dict[str, float], n: int = 120, seed: int = 0, labels: str = "abcd", group: int = 1) -> pd.DataFrame:
    """All arms on ``n`` cases with about the given shares right; hard cases are hard for every arm."""
    gold = list(np.random.default_rng(5).choice(list(labels), n))
    hardness = np.random.default_rng(6).random(n)
    rng = np.random.default_rng(seed)
    parts = []
    for arm, share in shares.items():
        effort = 0.6 * hardness + 0.4 * rng.random(n)
        right = effort <= (np.quantile(effort, share) if share else -1)
        wrong = [labels[(labels.index(g) + 1) % len(labels)] for g in gold]
        said = [g if ok else w for g, w, ok in zip(gold, wrong, right, strict=True)]
        parts.append(labelled("label", gold, said, arm, group))
    return pd.concat(parts, ignore_index=True)
