"""Checks without which the arms' numbers mean nothing. A failed one marks the run and its verdict.

What is merely a result (DPO learnt little, the chosen answers became less likely) is no gate: see `margins`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from medstudy.arms import TRAINED
from medstudy.data.audit import near_duplicates
from medstudy.runs import Run
from medstudy.show import aggregate
from medstudy.tasks.base import Task
from medstudy.training import checks
from medstudy.training.evidence import Gate, see

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

    from medstudy.data.splits import Splits

#: How many checks a run must have behind it.
GATES = 18


def check_gates(
    run: Run, task: Task, splits: Splits, data_audit: pd.DataFrame, pairs_audit: pd.DataFrame
) -> list[Gate]:
    """All gates of a run, from what its stages measured and kept; one whose stage was not run fails.

    Args:
        run: with the stages of the arms and their answers, and the pairs.
        task: words the prompts and reads what was taught.
        splits: the cases of the splits.
        data_audit: `data.audit.audit`.
        pairs_audit: `preferences.audit_pairs`.
    """
    seen, source = see(run, task, splits), run.params.pair_source
    shown = partial(checks.shown, shareable=run.facts.get("shareable", False))
    answered = [f"answers_{arm}" for arm in ("base", *TRAINED)]
    sampled = [*TRAINED, "samples"] if source == "own_errors" else TRAINED
    named = [
        ("reference is the SFT model", ["dpo"], lambda: checks.reference(seen.facts["dpo"])),
        ("one BOS, trained end token", TRAINED, lambda: checks.tokens(seen.trained)),
        ("asked as trained", [*TRAINED, *answered], lambda: checks.asked(seen)),
        ("trained on its answers", TRAINED, lambda: checks.taught(task, seen)),
        ("no row lost or cut", TRAINED, lambda: checks.nothing_lost(seen.trained)),
        ("only the adapter moved", TRAINED, lambda: checks.weights(seen.trained)),
        ("no dropout", TRAINED, lambda: checks.no_dropout(seen.trained)),
        ("the controls learnt", TRAINED, lambda: checks.controls(seen)),
        ("eval mode, greedy, left padding", answered, lambda: checks.decoding(seen.decoded)),
        ("each arm answers by its own adapter", [*TRAINED, *answered], lambda: checks.adapters(seen)),
        ("adapter reloads", answered, lambda: checks.reload(seen.decoded)),
        ("batch size does not matter", answered, lambda: checks.batching(seen.decoded)),
        ("samples are the SFT model's", sampled, lambda: checks.samples(seen)),
        ("pairs from preference cases only", [], lambda: checks.pairs(pairs_audit)),
        ("chosen is right, rejected is wrong", sampled, lambda: checks.sides(task, seen, source)),
        ("splits are disjoint", [], lambda: checks.disjoint(splits)),
        ("no test text is trained on", TRAINED, lambda: checks.copies(seen, near_duplicates(data_audit), shown)),
        ("the prompt holds no answer", [], lambda: checks.hidden(task, splits.test)),
    ]
    judged = []
    for name, stages, check in named:
        lacking = ", ".join(stage for stage in stages if stage not in seen.facts)
        reason = f"nothing can be said of it without {lacking}: run these cells, and this one again"
        judged.append(Gate(name, False, f"not run: {lacking}", "every stage run", reason) if lacking else check())
    return judged


def gates_table(gates: Sequence[Gate]) -> Styler:
    """What was seen and what must hold, whole, a row a gate."""
    import pandas as pd

    def words(value: Any) -> str:
        if isinstance(value, Mapping):
            return "; ".join(f"{name}: {words(one)}" for name, one in value.items())
        return ", ".join(map(words, value)) if isinstance(value, list) else str(value)

    rows = [
        (g.gate, "passed" if g.passed else "FAILED", words(g.value) + f" ({g.reason})" * bool(g.reason), g.expected)
        for g in gates
    ]
    table = pd.DataFrame(rows, columns=["gate", "passed", "seen", "must hold"])
    return aggregate(table.style.hide(axis="index"), ["", *table])  # unlike a plain table, it cuts no text off
