"""Eleven checks without which the arms' numbers mean nothing. A failed one marks the run and its verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medstudy.data.audit import near_duplicates
from medstudy.data.cases import SMALLEST_COUNT
from medstudy.runs import Run
from medstudy.show import aggregate

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

    from medstudy.data.splits import Splits

#: Tolerance of the first DPO loss. Policy and reference go through the same arithmetic: seen was 0 exactly.
FIRST_LOSS_TOLERANCE = 0.001
#: Largest logit difference after a reload; bf16 weights on a GPU are not bit-exact between kernels.
RELOAD_TOLERANCE = 0.05
#: Share of rechecked answers that may differ between batch size 1 and the one used.
BATCHING_TOLERANCE = 0.1
#: How far log p(chosen) may fall, in nats and as a share of where it began, before it counts as displaced.
DISPLACEMENT_NATS, DISPLACEMENT_SHARE = 2.0, 0.5
#: Below this reward margin on its own pairs DPO "did not move".
MOVED_MARGIN = 0.01

#: How many checks a run must have behind it.
GATES = 11
TRAINED = ("sft", "sft_more", "dpo")


@dataclass(frozen=True)
class Gate:
    """One check: what was seen (``value``) against what must hold (``expected``)."""

    gate: str
    passed: bool
    value: Any
    expected: str


def check_gates(
    run: Run,
    splits: Splits,
    data_audit: pd.DataFrame,
    pairs_audit: pd.DataFrame,
    answers: Mapping[str, list[str]],
) -> list[Gate]:
    """All gates of a run, from what its stages measured.

    Args:
        run: with the stages sft, sft_more, dpo and answers_<arm> finished.
        splits: the cases of the three splits.
        data_audit: `data.audit.audit`; near-duplicates of test cases in training are counted, not failed.
        pairs_audit: `preferences.audit_pairs`.
        answers: arm -> its outputs on the test cases.
    """
    facts = {name: stage.facts for name, stage in run.stages.items()}
    trained = {arm: facts[arm] for arm in TRAINED if facts[arm].get("steps")}
    decoded = {name: f for name, f in facts.items() if name.startswith("answers_")}
    moved = "dpo" in trained
    return [
        first_loss(facts["dpo"]) if moved else _no_pairs("reference is the SFT model"),
        tokens(trained),
        nothing_lost(trained, facts),
        weights(trained),
        decoding(decoded),
        disjoint(splits, _shown(near_duplicates(data_audit), run)),
        pairs(pairs_audit),
        dpo_moved(facts["dpo"], answers) if moved else _no_pairs("DPO moved"),
        displacement(facts["dpo"]) if moved else _no_pairs("likelihood displacement"),
        reload(decoded),
        batching(decoded),
    ]


def gates_table(gates: Sequence[Gate]) -> Styler:
    """What was seen and what must hold, whole, a row a gate."""
    import pandas as pd

    def words(value: Any) -> str:
        if isinstance(value, Mapping):
            return "; ".join(f"{name}: {words(one)}" for name, one in value.items())
        return ", ".join(map(words, value)) if isinstance(value, list) else str(value)

    rows = [(g.gate, "passed" if g.passed else "FAILED", words(g.value), g.expected) for g in gates]
    table = pd.DataFrame(rows, columns=["gate", "passed", "seen", "must hold"])
    return aggregate(table.style.hide(axis="index"), ["", *table])  # unlike a plain table, it cuts no text off


def first_loss(dpo: Mapping[str, Any]) -> Gate:
    """The first DPO loss is ln 2 and no reward differs from 0 only if the reference is the SFT model."""
    good = abs(dpo["first_loss"] - math.log(2)) <= FIRST_LOSS_TOLERANCE
    good &= dpo["first_reward"] <= FIRST_LOSS_TOLERANCE
    value = {"loss": round(dpo["first_loss"], 4), "largest reward": round(dpo["first_reward"], 4)}
    return Gate("reference is the SFT model", good, value, "loss 0.6931 (ln 2), rewards 0")


def tokens(trained: Mapping[str, Mapping[str, Any]]) -> Gate:
    """One BOS in each row at most, and each answer ends with a token that generation stops at."""
    bos = sorted({n for f in trained.values() for n in f["bos_per_row"]})
    ends = sum(f["rows_ending_with_stop"] for f in trained.values())
    rows = sum(f["sequences"] for f in trained.values())
    value = {"BOS in a row": bos, "rows ending with a stop token": f"{ends} of {rows}"}
    return Gate("one BOS, trained end token", max(bos) <= 1 and ends == rows, value, "BOS at most 1, all rows end")


def nothing_lost(trained: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Mapping[str, Any]]) -> Gate:
    """TRL drops or cuts rows that reach ``max_length`` with hardly a word."""
    kept = {arm: f"{f['rows']} of {f['rows_in']}" for arm, f in trained.items()}
    whole = all(f["rows"] == f["rows_in"] and f["longest"] <= f["max_length"] for f in trained.values())
    same = facts["sft"]["rows"] == facts["sft_more"]["rows"] if "sft_more" in trained else True
    longest = {arm: f"{f['longest']} of {f['max_length']}" for arm, f in trained.items()}
    return Gate("no row lost or cut", whole and same, {"rows": kept, "tokens": longest}, "rows in = rows kept")


def weights(trained: Mapping[str, Mapping[str, Any]]) -> Gate:
    """Frozen weights unchanged to the bit, every adapter tensor moved."""
    frozen = sum(f["frozen_changed"] for f in trained.values())
    moved = {arm: f"{f['adapter_changed']} of {f['adapter_tensors']}" for arm, f in trained.items()}
    all_moved = all(f["adapter_changed"] == f["adapter_tensors"] > 0 for f in trained.values())
    value = {"frozen tensors changed": frozen, "adapter tensors moved": moved}
    return Gate("only the adapter moved", frozen == 0 and all_moved, value, "0 frozen changed, all adapter moved")


def decoding(decoded: Mapping[str, Mapping[str, Any]]) -> Gate:
    """Every arm answered in eval mode, greedily, with left padding."""
    good = all(f["greedy"] and not f["training_mode"] and f["padding"] == "left" for f in decoded.values())
    value = {k: sorted({str(f[k]) for f in decoded.values()}) for k in ("training_mode", "greedy", "padding")}
    return Gate("eval mode, greedy, left padding", good, value, "training mode False, greedy True, left")


def _shown(count: int, run: Run) -> int | str:
    """A count of patients; a small one of a private source is not told."""
    few = 0 < count < SMALLEST_COUNT and not run.facts.get("shareable", False)
    return f"< {SMALLEST_COUNT}" if few else count


def disjoint(splits: Splits, near: int | str) -> Gate:
    """No case and no group in two splits; near-duplicates of test cases in training are counted beside it."""
    parts = [splits.train, splits.validation, splits.test]
    shared = sum(
        len({getattr(c, key) for c in a} & {getattr(c, key) for c in b})
        for key in ("case_id", "group_id")
        for i, a in enumerate(parts)
        for b in parts[i + 1 :]
    )
    value = {"shared cases or groups": shared, "near-duplicates of test cases in training": near}
    return Gate("splits are disjoint", shared == 0, value, "0 shared (near-duplicates are only counted)")


def pairs(audit: pd.DataFrame) -> Gate:
    """No identical pair and none from outside the training split."""
    names = ("identical pairs left", "pairs from test cases", "pairs from test groups")
    value = {name: int(audit.loc[name, "value"]) for name in names}
    return Gate("pairs from training only", not any(value.values()), value, "0 of each")


def dpo_moved(dpo: Mapping[str, Any], answers: Mapping[str, list[str]]) -> Gate:
    """DPO learnt: a reward margin on pairs it was trained on, measured afterwards.

    The log's margins would not do: in a single epoch every pair is logged before it is learnt from. How many
    answers changed is told beside it and asks for nothing: a DPO that learnt its pairs and answers as SFT did
    is a result. That the answers are DPO's own is seen in *adapter reloads*.
    """
    margin = dpo["last_margin"]
    changed = sum(a != b for a, b in zip(answers["sft"], answers["dpo"], strict=True)) / len(answers["dpo"])
    value = {"margin after training": round(margin, 3), "changed outputs": f"{changed:.1%}"}
    return Gate("DPO moved", margin >= MOVED_MARGIN, value, f"margin >= {MOVED_MARGIN}")


def displacement(dpo: Mapping[str, Any]) -> Gate:
    """The chosen answers must not become much less likely than they were (likelihood displacement).

    On the same pairs before and after: the log's steps are of different pairs.
    """
    start, end = dpo["first_log_p"], dpo["last_log_p"]
    limit = start - max(DISPLACEMENT_NATS, DISPLACEMENT_SHARE * abs(start))
    value = {"log p(chosen) before": round(start, 2), "after": round(end, 2)}
    return Gate("likelihood displacement", end >= limit, value, f"after >= {limit:.2f}")


def reload(decoded: Mapping[str, Mapping[str, Any]]) -> Gate:
    """The saved adapter, loaded on the plain base, gives the logits of the model that was trained."""
    value = {
        name.removeprefix("answers_"): f["reload_difference"] for name, f in decoded.items() if "reload_difference" in f
    }
    good = bool(value) and max(value.values()) <= RELOAD_TOLERANCE
    shown = {arm: float(f"{difference:.1e}") for arm, difference in value.items()}
    return Gate("adapter reloads", good, shown, f"largest logit difference <= {RELOAD_TOLERANCE}")


def batching(decoded: Mapping[str, Mapping[str, Any]]) -> Gate:
    """Share of answers that change when a case is answered alone."""
    changed = sum(f["changed_by_batching"] for f in decoded.values())
    n = sum(f["rechecked"] for f in decoded.values())
    good = changed <= BATCHING_TOLERANCE * n
    return Gate("batch size does not matter", good, f"{changed} of {n} changed", f"<= {BATCHING_TOLERANCE:.0%}")


def _no_pairs(name: str) -> Gate:
    return Gate(name, False, "no preference pairs: the model made no error to learn from", "at least one pair")
