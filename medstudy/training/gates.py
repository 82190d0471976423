"""Checks without which the arms' numbers mean nothing. A failed one marks the run and its verdict.

What is merely a result (DPO learnt little, the chosen answers became less likely) is no gate: see `notes`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medstudy.arms import TRAINED
from medstudy.data.audit import near_duplicates
from medstudy.data.cases import SMALLEST_COUNT, Case
from medstudy.runs import Run
from medstudy.show import aggregate
from medstudy.tasks.base import Task
from medstudy.tasks.reading import normalise
from medstudy.training.fit import TEXTS

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

    from medstudy.data.splits import Splits

Facts = Mapping[str, Mapping[str, Any]]

#: Largest reward before the first step. Policy and reference go through the same arithmetic: seen was 0 exactly.
REWARD_TOLERANCE = 0.001
#: Largest logit difference after a reload; bf16 weights on a GPU are not bit-exact between kernels.
RELOAD_TOLERANCE = 0.05
#: Share of rechecked answers that may differ between batch size 1 and the one used.
BATCHING_TOLERANCE = 0.1

#: How many checks a run must have behind it.
GATES = 11


@dataclass(frozen=True)
class Gate:
    """One check: what was seen (``value``) against what must hold (``expected``), and why it failed if known."""

    gate: str
    passed: bool
    value: Any
    expected: str
    reason: str = ""


def check_gates(
    run: Run, task: Task, splits: Splits, data_audit: pd.DataFrame, pairs_audit: pd.DataFrame
) -> list[Gate]:
    """All gates of a run, from what its stages measured; one whose stage was not run fails.

    Args:
        run: with the stages of the arms and their answers.
        task: reads what SFT was taught.
        splits: the cases of the splits.
        data_audit: `data.audit.audit`; near-duplicates of test cases in training are counted, not failed.
        pairs_audit: `preferences.audit_pairs`.
    """
    facts = {name: stage.facts for name, stage in run.stages.items() if stage.done}
    trained = {arm: facts[arm] for arm in TRAINED if facts.get(arm, {}).get("steps")}
    decoded = {name: f for name, f in facts.items() if name.startswith("answers_")}
    answered = [f"answers_{arm}" for arm in ("base", *TRAINED)]
    expected = {"sft": [case.recorded() for case in splits.train], "sft_more": splits.prefer}
    texts = {arm: run.stages[arm].folder / TEXTS for arm in trained if arm in expected}
    taught = {arm: json.loads(file.read_text(encoding="utf-8")) for arm, file in texts.items()}

    def of(name: str, stages: Sequence[str], check: Callable[[], Gate]) -> Gate:
        lacking = [stage for stage in stages if stage not in facts]
        return Gate(name, False, f"not run: {', '.join(lacking)}", "every stage run") if lacking else check()

    return [
        of("reference is the SFT model", ["dpo"], lambda: reference(facts["dpo"])),
        of("one BOS, trained end token", TRAINED, lambda: tokens(trained)),
        of("asked as trained", TRAINED, lambda: asked(trained)),
        of("trained on gold", ["sft"], lambda: gold(task, expected, taught)),
        of("no row lost or cut", TRAINED, lambda: nothing_lost(trained)),
        of("only the adapter moved", TRAINED, lambda: weights(trained)),
        of("eval mode, greedy, left padding", answered, lambda: decoding(decoded)),
        disjoint(splits, _shown(near_duplicates(data_audit), run)),
        pairs(pairs_audit, run.params.pair_source),
        of("adapter reloads", answered, lambda: reload(decoded)),
        of("batch size does not matter", answered, lambda: batching(decoded)),
    ]


def notes(run: Run) -> pd.DataFrame:
    """What of a training is a result and no gate, a row a fact: what DPO gained, what carries no adapter."""
    import pandas as pd

    dpo, sft = (run.stages[arm].facts if arm in run.stages else {} for arm in ("dpo", "sft"))
    rows = {"weights without an adapter": ", ".join(sft.get("not_adapted", [])) or "none"}
    if "last_margin" in dpo:
        rows["reward margin of DPO on its own pairs, after"] = f"{dpo['last_margin']:.3f}"
        rows["log p(chosen) before and after DPO"] = f"{dpo['first_log_p']:.2f}, {dpo['last_log_p']:.2f}"
    return aggregate(pd.DataFrame({"value": rows}).rename_axis("told, not judged"), ["value"])


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


def reference(dpo: Mapping[str, Any]) -> Gate:
    """Before the first step every reward is 0, only if the reference is the SFT model (plain DPO's loss is ln 2).

    Judged by the rewards: the routers of a mixture of experts add a loss of their own.
    """
    name, expected = "reference is the SFT model", "rewards 0 (and so, in plain DPO, a loss of ln 2 = 0.6931)"
    if not dpo.get("steps"):
        return Gate(name, False, "no preference pairs", "at least one pair", "SFT made no error to learn from")
    value = {"loss": round(dpo["first_loss"], 4), "largest reward": round(dpo["first_reward"], 4)}
    good = dpo["first_reward"] <= REWARD_TOLERANCE
    return Gate(name, good, value, expected, "" if good else "policy and reference are two models")


def tokens(trained: Facts) -> Gate:
    """A row begins with one BOS at most, and each answer ends with the token that ends a turn, on which is loss.

    Further in a row it may be any token: some checkpoints begin every turn with it, or end turns with it.
    """
    bos = max(n for f in trained.values() for n in f["bos_at_start"])
    ends, rows = (sum(f[name] for f in trained.values()) for name in ("rows_ending_with_stop", "sequences"))
    value = {"BOS at the start of a row": bos, "rows ending with the end token": f"{ends} of {rows}"}
    reasons = ["the tokenizer adds a BOS to the template's"] * (bos > 1) + ["rows are cut, or end otherwise"] * (
        ends != rows
    )
    return Gate("one BOS, trained end token", not reasons, value, "BOS at most 1, all rows end", "; ".join(reasons))


def asked(trained: Facts) -> Gate:
    """What is asked is the beginning of each row, and loss is on all that follows and nothing else."""
    begun, rows = (sum(f[name] for f in trained.values()) for name in ("rows_begun_as_asked", "sequences"))
    reason = "" if begun == rows else "loss is on other tokens than the answer's, or prompts differ from those asked"
    return Gate("asked as trained", begun == rows, f"{begun} of {rows}", "every row: prompt, then loss", reason)


def gold(task: Task, expected: Mapping[str, Sequence[Case]], taught: Mapping[str, list[str]]) -> Gate:
    """What SFT trains, read back from its tokens and parsed, is the answer of its cases."""
    name, must = "trained on gold", "every training row, decoded and parsed, is its case's answer"
    wrong: Counter[str] = Counter()
    for arm, texts in taught.items():
        if len(texts) != len(expected[arm]):
            return Gate(name, False, f"{len(texts)} rows of {len(expected[arm])} cases", must, "rows are missing")
        for case, text in zip(expected[arm], texts, strict=True):
            answer = task.parse(text)
            said = {outcome: normalise(value) for outcome, value in answer.value.items()}
            if answer.status != "parsed":
                wrong[answer.status] += 1
            elif said != {outcome: normalise(value) for outcome, value in case.gold.items()}:
                wrong["another answer"] += 1
    rows = sum(map(len, taught.values()))
    reason = f"read back as {', '.join(f'{what} ({n})' for what, n in wrong.items())}" if wrong else ""
    return Gate(name, not wrong and rows > 0, f"{rows - wrong.total()} of {rows}", must, reason)


def nothing_lost(trained: Facts) -> Gate:
    """TRL drops or cuts rows that reach ``max_length`` with hardly a word."""
    kept = {arm: f"{f['rows']} of {f['rows_in']}" for arm, f in trained.items()}
    whole = all(f["rows"] == f["rows_in"] and f["longest"] <= f["max_length"] for f in trained.values())
    longest = {arm: f"{f['longest']} of {f['max_length']}" for arm, f in trained.items()}
    value = {"rows": kept, "tokens": longest}
    reason = "" if whole else "max_length is shorter than a row"
    return Gate("no row lost or cut", whole, value, "rows in = rows kept", reason)


def weights(trained: Facts) -> Gate:
    """Frozen weights unchanged to the bit, every adapter tensor moved."""
    frozen = sum(f["frozen_changed"] for f in trained.values())
    moved = {arm: f"{f['adapter_changed']} of {f['adapter_tensors']}" for arm, f in trained.items()}
    all_moved = all(f["adapter_changed"] == f["adapter_tensors"] > 0 for f in trained.values())
    value = {"frozen tensors changed": frozen, "adapter tensors moved": moved}
    still = sorted({kind for f in trained.values() for kind in f["unmoved"]})
    reason = f"no gradient reached {', '.join(still)}" if still else ""
    if still and any(f["steps"] == 1 for f in trained.values()):
        reason = "one step alone moves half of a new adapter: train longer"
    expected = "0 frozen changed, all adapter moved"
    return Gate("only the adapter moved", frozen == 0 and all_moved, value, expected, reason)


def decoding(decoded: Facts) -> Gate:
    """Every arm answered in eval mode, greedily, with padding nowhere but on the left."""
    good = all(f["greedy"] and not f["training_mode"] and f["padding"] != "right" for f in decoded.values())
    value = {k: sorted({str(f[k]) for f in decoded.values()}) for k in ("training_mode", "greedy", "padding")}
    return Gate("eval mode, greedy, left padding", good, value, "training mode False, greedy True, left or none")


def _shown(count: int, run: Run) -> int | str:
    """A count of patients; a small one of a private source is not told."""
    few = 0 < count < SMALLEST_COUNT and not run.facts.get("shareable", False)
    return f"< {SMALLEST_COUNT}" if few else count


def disjoint(splits: Splits, near: int | str) -> Gate:
    """No case and no group in two splits; near-duplicates of test cases in training are counted beside it."""
    parts = list(vars(splits).values())
    shared = sum(
        len({getattr(c, key) for c in a} & {getattr(c, key) for c in b})
        for key in ("case_id", "group_id")
        for i, a in enumerate(parts)
        for b in parts[i + 1 :]
    )
    value = {"shared cases or groups": shared, "near-duplicates of test cases in training": near}
    return Gate("splits are disjoint", shared == 0, value, "0 shared (near-duplicates are only counted)")


def pairs(audit: pd.DataFrame, source: str) -> Gate:
    """No identical pair, none from other cases; of own errors the chosen side is right, the other wrong."""
    names = ["identical pairs left", "pairs from other cases", "pairs from groups of other splits"]
    names += ["chosen scored wrong", "rejected scored right"] if source == "own_errors" else []
    value = {name: int(audit.loc[name, "value"]) for name in names}
    return Gate("pairs from preference cases only", not any(value.values()), value, "0 of each")


def reload(decoded: Facts) -> Gate:
    """The saved adapter, loaded on the plain base, gives the logits of the model that was trained."""
    value = {
        name.removeprefix("answers_"): f["reload_difference"] for name, f in decoded.items() if "reload_difference" in f
    }
    good = bool(value) and max(value.values()) <= RELOAD_TOLERANCE
    shown = {arm: float(f"{difference:.1e}") for arm, difference in value.items()}
    return Gate("adapter reloads", good, shown, f"largest logit difference <= {RELOAD_TOLERANCE}")


def batching(decoded: Facts) -> Gate:
    """Share of answers that change when a case is answered alone."""
    changed = sum(f["changed_by_batching"] for f in decoded.values())
    n = sum(f["rechecked"] for f in decoded.values())
    good = changed <= BATCHING_TOLERANCE * n
    reason = "" if good else "padding is not left out of account, or weights are few bits: set eval_batch_size = 1"
    return Gate("batch size does not matter", good, f"{changed} of {n} changed", f"<= {BATCHING_TOLERANCE:.0%}", reason)
