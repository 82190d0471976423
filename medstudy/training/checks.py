"""The gates: each returns whether it passed, what was seen, and what its failing means and what to do.

What they measure is far from every threshold in a sound run: exact counts and hashes, or differences of another order
than rounding, so that no gate depends on the machine.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import zip_longest
from operator import eq
from typing import TYPE_CHECKING, Any

from medstudy.arms import ARMS, TRAINED
from medstudy.data.cases import SMALLEST_COUNT
from medstudy.params import MARGIN
from medstudy.tasks.base import Task
from medstudy.tasks.reading import normalise
from medstudy.training.decoding import ROUNDING

if TYPE_CHECKING:
    from medstudy.training.gates import Seen

#: How far policy and reference may be apart before the first step, in nats an answer. Seen was 0 exactly.
LOG_RATIO_TOLERANCE = 0.01
#: Share of rechecked answers that may differ between batch size 1 and the one used.
BATCHING_TOLERANCE = 0.1
#: Share of test cases with a near-duplicate among the cases that are trained on.
NEAR_TOLERANCE = 0.01
#: An answer stands in the prompt if the cases that name one label name the right one so often, and so many do.
NAMED, NAMED_RIGHT = 0.8, 0.95
#: A control must have moved by this share of what DPO moved: rates that validation chooses lie within a factor of ten.
MOVED = 0.02
#: Arms that answer the question what DPO's gain is worth.
CONTROLS = tuple(arm for arm in TRAINED if ARMS[arm].start == "sft" and ARMS[arm].trainer == "SFTTrainer")
ANSWERED = tuple(f"answers_{arm}" for arm in ("base", *TRAINED))
DRAWN = {"adapter of SFT": True, "sampled": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}

Judged = tuple[Any, Any, str]
#: Name of a gate -> what must hold, the stages that it reads (samples only of own errors), and its check.
CHECKS: dict[str, tuple[str, tuple[str, ...], Callable[[Seen], Judged]]] = {}


def gate(name: str, expected: str, *stages: str) -> Callable[[Any], Any]:
    """Enter a check in `CHECKS`."""

    def enter(check: Callable[[Seen], Judged]) -> Callable[[Seen], Judged]:
        CHECKS[name] = expected, stages, check
        return check

    return enter


@gate("reference is the SFT model", "no difference (in plain DPO a loss of ln 2 = 0.6931)", "dpo")
def _reference(seen: Seen) -> Judged:
    """By log-probabilities before the first step: the routers of a mixture of experts add a loss of their own."""
    dpo = seen.facts["dpo"]
    if not dpo["steps"]:
        reason = "SFT made no error to learn from, so there is no DPO: take more n_prefer or samples_per_case"
        return False, "no preference pairs", reason
    value = {"loss": round(dpo["first_loss"], 4), "largest difference in nats": round(dpo["first_log_ratio"], 4)}
    reason = "DPO is held to another model than SFT's, so it is no DPO after SFT: start it from the SFT stage, without "
    return dpo["first_log_ratio"] <= LOG_RATIO_TOLERANCE, value, reason + "ref_model or peft_config"


@gate("one BOS, trained end token", "BOS at most 1, all rows end", *TRAINED)
def _tokens(seen: Seen) -> Judged:
    """Further in a row BOS may be any token: some checkpoints begin every turn with it, or end turns with it."""
    bos = max(f["bos_at_start"] for f in seen.trained.values())
    ends, rows = (sum(f[name] for f in seen.trained.values()) for name in ("rows_ending_with_stop", "sequences"))
    value = {"BOS at the start of a row": bos, "rows ending with the end token": f"{ends} of {rows}"}
    reasons = ["two beginnings of text, which the model never saw: leave the BOS to the template"] * (bos > 1)
    reasons += ["the model does not learn to stop: rows are cut, or no loss is on their end token"] * (ends != rows)
    return not reasons, value, "; ".join(reasons)


@gate("asked as trained", "every row: the case's prompt, then loss", *TRAINED, *ANSWERED)
def _asked(seen: Seen) -> Judged:
    """Tokens without loss, and tokens read when answering; few-shot prompts hold examples besides."""
    learnt = {arm: [prompt for prompt, _ in seen.learnt[arm]] for arm in seen.trained}
    read = {arm: prompts for arm, prompts in seen.asked.items() if arm != "few_shot"}
    wanted = {arm: [seen.prompt[case.case_id] for case, _ in seen.taught[arm]] for arm in learnt}
    tested = dict.fromkeys(read, [seen.prompt[case.case_id] for case in seen.splits.test])
    value = {"trained": _same(learnt, wanted), "asked": _same(read, tested)}
    reason = "loss lies on other tokens than the answer's, or the prompt was changed between training and answering: "
    reason += "make both by task.messages, and run training and answers again"
    return (learnt, read) == (wanted, tested), value, reason


def _same(found: dict[str, list[str]], wanted: dict[str, list[str]]) -> dict[str, str]:
    lists = {arm: (rows, wanted[arm]) for arm, rows in found.items()}
    return {arm: f"{sum(map(eq, *both))} of {max(map(len, both))}" for arm, both in lists.items()}


@gate("trained on its answers", "every sequence, decoded and parsed, is the answer of its case or pair", *TRAINED)
def _taught(seen: Seen) -> Judged:
    rows = [both for arm in seen.trained for both in zip_longest(seen.learnt[arm], seen.taught[arm])]
    right = sum(bool(row and it) and _says(seen.task, row[1], it[1]) for row, it in rows)
    reason = "the arms learn other answers than their cases and pairs hold, or none that can be read: "
    reason += "make rows by prompts.sft_row and Pair.row, in the order of the cases"
    return rows and right == len(rows), f"{right} of {len(rows)}", reason


def _says(task: Task, text: str, wanted: str | Mapping[str, str]) -> bool:
    if isinstance(wanted, str):
        return normalise(text) == normalise(wanted)
    read = task.parse(text)
    gold = {outcome: normalise(value) for outcome, value in wanted.items()}
    return read.status == "parsed" and {outcome: normalise(value) for outcome, value in read.value.items()} == gold


@gate("no row lost or cut", "rows in = rows kept", *TRAINED)
def _nothing_lost(seen: Seen) -> Judged:
    """TRL drops or cuts rows that reach ``max_length`` with hardly a word."""
    good = all(f["rows"] == f["rows_in"] and f["longest"] <= f["max_length"] for f in seen.trained.values())
    value = {"rows": _shares(seen, "rows", "rows_in"), "tokens": _shares(seen, "longest", "max_length")}
    reason = "max_length is shorter than a row, so that cases or ends of answers are not trained: set it to None"
    return good, value, reason


def _shares(seen: Seen, part: str, whole: str) -> dict[str, str]:
    return {arm: f"{facts[part]} of {facts[whole]}" for arm, facts in seen.trained.items()}


@gate("only the adapter moved", "0 frozen changed, every kind of adapter tensor moved", *TRAINED)
def _weights(seen: Seen) -> Judged:
    """Frozen weights unchanged to the bit; of the adapter every kind of tensor moved, if not in every layer."""
    facts = list(seen.trained.values())
    frozen, still = sum(f["frozen_changed"] for f in facts), sorted({kind for f in facts for kind in f["unmoved"]})
    value = {
        "frozen tensors changed": frozen,
        "adapter tensors moved": _shares(seen, "adapter_changed", "adapter_tensors"),
        "weights without an adapter": sorted({kind for f in facts for kind in f["not_adapted"]}) or "none",
    }
    reasons = ["weights below the adapter were trained too, so that the saved adapter is not the model"] * (frozen > 0)
    if still and any(f["steps"] == 1 for f in facts):
        reasons += ["one step alone moves half of a new adapter: train longer"]
    elif still:
        reasons += [f"no gradient reached {', '.join(still[:5])}: leave these layers out of target_modules"]
    return not reasons, value, "; ".join(reasons)


@gate("no dropout", "two passes in training are the same", *TRAINED)
def _no_dropout(seen: Seen) -> Judged:
    """DPO's reference has none, and SFT's arms would be trained otherwise than DPO's."""
    found = {arm: f["dropout"] for arm, f in seen.trained.items() if f["dropout"]}
    reason = "what is dropped differs from one pass to the next, so that arms, or policy and reference, are not alike: "
    return not found, found or "none", reason + "set lora_dropout and the dropouts of the model's config to 0"


@gate(
    "the controls learnt",
    f"loss not risen, moved at least {MOVED} times as far as DPO, not worse than SFT on validation",
    *TRAINED,
)
def _controls(seen: Seen) -> Judged:
    """SFT that goes on beside DPO was neither left where it was nor destroyed, or DPO would win against nothing."""
    value, reasons = {}, []
    dpo_moved = seen.trained.get("dpo", {}).get("moved")  # 0 after one step of a warm-up
    for arm in (arm for arm in CONTROLS if arm in seen.trained):
        facts = seen.trained[arm]
        before, after = facts["first_loss"], facts["last_loss"]
        value[arm] = {"loss on its rows": f"{before:.3f} to {after:.3f}"}
        if not after <= 1.1 * before + 0.05:
            reasons.append(f"{arm} answers its own rows worse than before it: its learning rate is too high")
        if dpo_moved:
            moved = facts["moved"] / dpo_moved
            value[arm]["moved as far as DPO"] = f"{moved:.2g} times"
            reasons += [f"{arm} hardly moved: its learning rate is too low"] * (moved < MOVED)
        chosen = [[row for row in seen.tried.get(one, []) if row["chosen"]] for one in (arm, "sft")]
        own, sft = (next((row for row in rows if row["score"] is not None), None) for rows in chosen)
        if own and sft:
            value[arm]["validation"] = f"{own['score']:.3f}, SFT {sft['score']:.3f}"
            error = math.sqrt(sum(row["score"] * (1 - row["score"]) / row["n"] for row in (own, sft)))
            if sft["score"] - own["score"] > max(MARGIN, 3 * error):
                reasons.append(f"{arm} is worse than SFT on validation: try other rates and epochs")
    return not reasons, value, "; ".join(reasons)


@gate("eval mode, greedy, left padding", "training mode False, greedy True, left or none", *ANSWERED)
def _decoding(seen: Seen) -> Judged:
    names = ("training_mode", "greedy", "padding")
    value = {name: sorted({str(f[name]) for f in seen.decoded.values()}) for name in names}
    good = value["training_mode"] == ["False"] and value["greedy"] == ["True"] and "right" not in value["padding"]
    reason = "answers would be others the next time, or begin behind padding: answer by generation.answer_cases"
    return good, value, reason


@gate("each arm answers by its own adapter", "the hash of the trained adapter", *TRAINED, *ANSWERED)
def _adapters(seen: Seen) -> Judged:
    used = {arm: f["adapter"] for arm, f in seen.decoded.items()}
    wrong = ", ".join(arm for arm, adapter in used.items() if adapter != seen.adapters.get(arm, ""))
    reason = f"answers of {wrong} come from another arm's adapter: give answer_cases the stage that trained the arm"
    return not wrong, {arm: adapter[:8] or "none" for arm, adapter in used.items()}, reason


@gate("adapter reloads", f"largest logit difference <= {ROUNDING[1]} of the largest logit", *ANSWERED)
def _reload(seen: Seen) -> Judged:
    found = {arm: f["reload_difference"] for arm, f in seen.decoded.items() if "reload_difference" in f}
    value = {arm: float(f"{difference:.1e}") for arm, difference in found.items()}
    reason = "the model that answers is not the one that was trained: the adapter was changed or lies on another base"
    return value and max(value.values()) <= ROUNDING[1], value, f"{reason}; train again"


@gate("batch size does not matter", f"<= {BATCHING_TOLERANCE:.0%}", *ANSWERED)
def _batching(seen: Seen) -> Judged:
    changed, n = (sum(f[name] for f in seen.decoded.values()) for name in ("changed_by_batching", "rechecked"))
    reason = "answers depend on which cases are answered together: this model does not leave padding out of account; "
    return changed <= BATCHING_TOLERANCE * n, f"{changed} of {n} changed", reason + "eval_batch_size = 1"


@gate("samples are the SFT model's", str(DRAWN), *TRAINED, "samples")
def _samples(seen: Seen) -> Judged:
    if "samples" not in seen.facts:
        return True, "none drawn", ""
    drawn = seen.facts["samples"]
    value = {"adapter of SFT": drawn["adapter"] == seen.adapters["sft"], "sampled": not drawn["greedy"]}
    value |= drawn["drawn"]
    reason = "pairs are not the errors that this model makes, and how often: draw by generation.sample_cases from sft"
    return value == DRAWN, value, reason


@gate("pairs from preference cases only", "0 of each")
def _pairs(seen: Seen) -> Judged:
    names = ["identical pairs left", "pairs from other cases", "pairs from groups of other splits"]
    value = {name: int(seen.pairs_audit.loc[name, "value"]) for name in names}
    reason = "pairs teach nothing, or DPO has seen cases that it is tested on: make pairs of splits.prefer alone"
    return not any(value.values()), value, reason


@gate("chosen is right, rejected is wrong", "own errors: all; else most", *TRAINED, "samples")
def _sides(seen: Seen) -> Judged:
    """What DPO was given as chosen is right and as rejected wrong, by the task's own scorer.

    Of own errors all, and each rejected side is a sample of the model's. Raters may prefer what is not right, but not
    more often the other way round, nor set answers against text that is none.
    """
    said = [(case, text) for (case, _), (_, text) in zip(seen.taught["dpo"], seen.learnt.get("dpo", []), strict=False)]
    read = [seen.task.parse(text) for _, text in said]
    right = [seen.task.score(answer, case)["correct"] == 1.0 for (case, _), answer in zip(said, read, strict=True)]
    both = list(zip(right[::2], right[1::2], strict=False))
    value = {
        "pairs": len(both),
        "chosen scored wrong": sum(not chosen for chosen, _ in both),
        "rejected scored right": sum(other for _, other in both),
        "the wrong way round": sum(other and not chosen for chosen, other in both),
        "rejected is no answer": sum(answer.status != "parsed" for answer in read[1::2]),
    }
    if seen.own_errors:
        no_sample = [normalise(text) not in seen.samples.get(case.case_id, ()) for case, text in said[1::2]]
        value["rejected is no sample"] = sum(no_sample)
        good = not any(value[k] for k in ("chosen scored wrong", "rejected scored right", "rejected is no sample"))
    else:
        good = max(value["rejected scored right"], value["rejected is no answer"]) <= max(1, len(both)) / 2
        good &= value["the wrong way round"] <= sum(chosen and not other for chosen, other in both)
    reason = "DPO learns to prefer wrong answers, or to avoid text that nobody would write: "
    return good, value, reason + "look at pairs and their source"


@gate("splits are disjoint", "0 shared")
def _disjoint(seen: Seen) -> Judged:
    """No case and no group in two splits."""
    parts, shared = list(vars(seen.splits).values()), 0
    for key in ("case_id", "group_id"):
        found = Counter(name for part in parts for name in {getattr(case, key) for case in part})
        shared += sum(math.comb(n, 2) for n in found.values())
    reason = "test cases, or their patients, were trained on: draw splits by data.splits.split_cases, name group_id"
    return not shared, {"shared cases or groups": shared}, reason


@gate(
    "no test text is trained on",
    f"0 the same, near-duplicates of at most {NEAR_TOLERANCE:.0%} of the test cases",
    *TRAINED,
)
def _copies(seen: Seen) -> Judged:
    """No test prompt was trained, and hardly a test text is like one that was; small counts of patients are hidden."""
    trained = {prompt for arm in seen.trained for prompt, _ in seen.learnt[arm]}
    same = sum(seen.prompt[case.case_id] in trained for case in seen.splits.test)
    value = {"test prompts that were trained": same, "near-duplicates of test cases in training": seen.near}
    if not seen.shareable:
        value = {k: f"< {SMALLEST_COUNT}" if 0 < n < SMALLEST_COUNT else n for k, n in value.items()}
    reason = "the model may remember answers of the test: set repeats: drop, or group_id to what such cases share"
    return not same and seen.near <= NEAR_TOLERANCE * len(seen.splits.test), value, reason


@gate("the prompt holds no answer", "neither")
def _hidden(seen: Seen) -> Judged:
    """A prompt stays the same when its case's answer is another, and does not name the right label alone.

    Labels count where a prompt names them more often than all prompts do; options that it sets out count too.
    """
    task, test = seen.task, seen.splits.test
    others = [next((c for c in test if c.gold != case.gold), case) for case in test]
    changed = any(task.prompt(a) != task.prompt(replace(a, gold=b.gold)) for a, b in zip(test, others, strict=True))
    prompts, told = [task.prompt(case).casefold() for case in test], 0.0
    options = [set(map(normalise, case.details.get("options", {}).values())) for case in test]
    for outcome in test[0].gold if test else ():
        gold = [normalise(case.gold[outcome]) for case in test]
        least = {label: min(prompt.count(label) for prompt in prompts) for label in set(gold)}
        alone = []
        for prompt, offered, right in zip(prompts, options, gold, strict=True):
            named = {label for label, n in least.items() if prompt.count(label) > n}
            named |= {option for option in offered if option in prompt}
            alone += [named == {right}] * (len(named) == 1)
        if len(alone) >= NAMED * len(test):
            told = max(told, sum(alone) / len(alone))
    value = {"prompts that change with the answer": changed, "answers that the prompt names": told > NAMED_RIGHT}
    reason = "arms may copy the answer: leave it, and what was written after it, out of the card's text"
    return not any(value.values()), value, reason
