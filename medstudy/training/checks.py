"""The gates' checks: each returns whether it passed and what was seen; its docstring says what its failing means.

What they measure is far from every threshold in a sound run: exact counts and hashes, or differences of another order
than rounding, so that no gate depends on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from operator import eq
from typing import TYPE_CHECKING, Any

from medstudy.arms import ARMS, TRAINED
from medstudy.data.cases import SMALLEST_COUNT, masked
from medstudy.params import MARGIN
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
#: Stands where the score of few validation cases of a private source would stand.
FEW = f"not told: fewer than {SMALLEST_COUNT} cases"
DRAWN = {"adapter of SFT": True, "sampled": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}

Judged = tuple[Any, Any]
#: Name of a gate -> what must hold, the stages that it reads (samples only of own errors), and its check.
CHECKS: dict[str, tuple[str, tuple[str, ...], Callable[[Seen], Judged]]] = {}


def gate(name: str, expected: str, *stages: str) -> Callable[[Any], Any]:
    """Enter a check in `CHECKS`."""

    def enter(check: Callable[[Seen], Judged]) -> Callable[[Seen], Judged]:
        CHECKS[name] = expected, stages, check
        return check

    return enter


def _sum(measured: dict[str, dict[str, Any]], fact: str) -> int:
    return sum(facts[fact] for facts in measured.values())


def _counts(seen: Seen, value: dict[str, int]) -> dict[str, int | str]:
    """Counts of cases as they may be shown; what is judged stays exact."""
    return {what: masked(n, seen.shareable) for what, n in value.items()}


@gate("reference is the SFT model", "no difference (in plain DPO a loss of ln 2 = 0.6931)", "dpo")
def _reference(seen: Seen) -> Judged:
    """DPO is held to another model than SFT's: start it from the SFT stage, without ref_model or peft_config.

    Where there are no pairs, SFT made no error to learn from: raise n_prefer or samples_per_case.
    """
    dpo = seen.facts["dpo"]
    if not dpo["steps"]:
        return False, "no preference pairs"
    # not the loss alone: the routers of a mixture of experts add one of their own
    value = {"loss": round(dpo["first_loss"], 4), "largest difference in nats": round(dpo["first_log_ratio"], 4)}
    return dpo["first_log_ratio"] <= LOG_RATIO_TOLERANCE, value


@gate("one BOS, trained end token", "BOS at most 1, all rows end", *TRAINED)
def _tokens(seen: Seen) -> Judged:
    """Rows begin twice (leave the BOS to the template), or the model never learns to stop (no loss on their end)."""
    bos = max(facts["bos_at_start"] for facts in seen.trained.values())
    ends, rows = _sum(seen.trained, "rows_ending_with_stop"), _sum(seen.trained, "sequences")
    value = {"BOS at the start of a row": bos, "rows ending with the end token": f"{ends} of {rows}"}
    return bos <= 1 and ends == rows, value


@gate("asked as trained", "every row: the case's prompt, then loss", *TRAINED, *ANSWERED)
def _asked(seen: Seen) -> Judged:
    """Loss lies on other tokens than the answer's, or prompts differ between training and answering.

    Make both by task.messages, and run training and answers again.
    """
    test = [seen.prompt[case.case_id] for case in seen.splits.test]
    # few-shot prompts hold examples besides
    lists = {f"answers of {arm}": (read, test) for arm, read in seen.asked.items() if arm != "few_shot"}
    for arm, learnt in seen.learnt.items():
        lists[arm] = [prompt for prompt, _ in learnt], [seen.prompt[case.case_id] for case, _ in seen.taught[arm]]
    return _agree(lists)


def _agree(lists: dict[str, tuple[list[str], list[str]]]) -> Judged:
    """Whether what was found is what was wanted, and how much of it."""
    value = {name: f"{sum(map(eq, *both))} of {max(map(len, both))}" for name, both in lists.items()}
    return lists and all(found == wanted for found, wanted in lists.values()), value


@gate("trained on its answers", "every sequence, decoded, is the answer of its case or pair", *TRAINED)
def _taught(seen: Seen) -> Judged:
    """The arms learn other answers than their cases and pairs hold.

    Make rows by prompts.sft_row and Pair.row, in the order of the cases.
    """
    said = {arm: (rows, seen.taught[arm]) for arm, rows in seen.learnt.items()}
    return _agree({arm: [[normalise(text) for _, text in rows] for rows in both] for arm, both in said.items()})


@gate("no row lost or cut", "rows in = rows kept", *TRAINED)
def _nothing_lost(seen: Seen) -> Judged:
    """TRL drops or cuts rows that reach max_length with hardly a word: set it to None."""
    good = all(f["rows"] == f["rows_in"] and f["longest"] <= f["max_length"] for f in seen.trained.values())
    return good, {"rows": _shares(seen, "rows", "rows_in"), "tokens": _shares(seen, "longest", "max_length")}


def _shares(seen: Seen, part: str, whole: str) -> dict[str, str]:
    return {arm: f"{facts[part]} of {facts[whole]}" for arm, facts in seen.trained.items()}


@gate("only the adapter moved", "0 frozen changed, every kind of adapter tensor moved", *TRAINED)
def _weights(seen: Seen) -> Judged:
    """The saved adapter is not the model that was trained, or a kind of adapter tensor got no gradient.

    Leave such layers out of target_modules; a first step is warm-up and moves nothing: train longer.
    """
    changed = _sum(seen.trained, "frozen_changed")
    unmoved = sorted({kind for facts in seen.trained.values() for kind in facts["unmoved"]})
    return not (changed or unmoved), {
        "frozen tensors changed": changed,
        "adapter tensors moved": _shares(seen, "adapter_changed", "adapter_tensors"),
        "adapter tensors not moved in any layer": unmoved[:5] or "none",
    }


@gate("no dropout", "two passes in training are the same", *TRAINED)
def _no_dropout(seen: Seen) -> Judged:
    """Policy and reference, or SFT's arms and DPO's, are not alike: set lora_dropout and the config's dropouts to 0."""
    found = {arm: facts["dropout"] for arm, facts in seen.trained.items() if facts["dropout"]}
    return not found, found or "none"


@gate("the controls learnt", f"loss not risen, moved >= {MOVED} x DPO, not below SFT on validation", *TRAINED)
def _controls(seen: Seen) -> Judged:
    """A control hardly moved or was destroyed, and DPO would win against nothing: try other rates and epochs for it."""
    value, good = {}, True
    dpo_moved = seen.trained.get("dpo", {}).get("moved")  # 0 after one step of a warm-up
    for arm in (arm for arm in CONTROLS if arm in seen.trained):
        facts = seen.trained[arm]
        before, after = facts["first_loss"], facts["last_loss"]
        value[arm] = {"loss on its rows": f"{before:.3f} to {after:.3f}"}
        good &= after <= 1.1 * before + 0.05
        if dpo_moved:
            value[arm]["moved as far as DPO"] = f"{facts['moved'] / dpo_moved:.3g} times"
            good &= facts["moved"] / dpo_moved >= MOVED
        chosen = [row for one in (arm, "sft") for row in seen.tried.get(one, []) if row["chosen"]]
        scored = [row for row in chosen if row["score"] is not None]  # of one setting there is no score
        if len(scored) < 2:
            value[arm]["validation"] = "not looked at, as SFT or this arm had one setting"
        else:
            own, sft = (row["score"] for row in scored)
            few = not seen.shareable and scored[0]["n"] < SMALLEST_COUNT
            value[arm]["validation"] = FEW if few else f"{own:.3f}, SFT {sft:.3f}"
            error = math.sqrt(sum(row["score"] * (1 - row["score"]) / row["n"] for row in scored))
            good &= sft - own <= max(MARGIN, 3 * error)
    return good, value


@gate("eval mode, greedy, left padding", "training mode False, greedy True, left or none", *ANSWERED)
def _decoding(seen: Seen) -> Judged:
    """Answers would be others the next time, or begin behind padding: answer by generation.answer_cases."""
    names = ("training_mode", "greedy", "padding")
    value = {name: sorted({str(facts[name]) for facts in seen.decoded.values()}) for name in names}
    return [value["training_mode"], value["greedy"]] == [["False"], ["True"]] and "right" not in value["padding"], value


@gate("each arm answers by its own adapter", "the hash of the trained adapter", *TRAINED, *ANSWERED)
def _adapters(seen: Seen) -> Judged:
    """Answers come from another arm's adapter: give answer_cases the stage that trained the arm."""
    used = {arm: facts["adapter"] for arm, facts in seen.decoded.items()}
    wrong = [arm for arm, adapter in used.items() if adapter != seen.adapters.get(arm, "")]
    value = {arm: (adapter[:8] or "none") + " (another's)" * (arm in wrong) for arm, adapter in used.items()}
    return not wrong, value


@gate("adapter reloads", f"largest logit difference <= {ROUNDING[1]} of the largest logit", *ANSWERED)
def _reload(seen: Seen) -> Judged:
    """The model that answers is not the one trained: the adapter was changed or lies on another base; train again."""
    found = {arm: facts["reload_difference"] for arm, facts in seen.decoded.items() if "reload_difference" in facts}
    value = {arm: float(f"{difference:.1e}") for arm, difference in found.items()}
    return value and max(value.values()) <= ROUNDING[1], value


@gate("batch size does not matter", f"<= {BATCHING_TOLERANCE:.0%}", *ANSWERED)
def _batching(seen: Seen) -> Judged:
    """Answers depend on which cases are answered together, as the model reads padding: set eval_batch_size = 1."""
    changed, n = _sum(seen.decoded, "changed_by_batching"), _sum(seen.decoded, "rechecked")
    return changed <= BATCHING_TOLERANCE * n, f"{changed} of {n} changed"


@gate("samples are the SFT model's", str(DRAWN), *TRAINED, "samples")
def _samples(seen: Seen) -> Judged:
    """Pairs are not the errors that this model makes, and how often: draw by generation.sample_cases from sft."""
    if "samples" not in seen.facts:
        return True, "none drawn"
    facts = seen.facts["samples"]
    own = facts["adapter"] == seen.adapters["sft"]
    value = {"adapter of SFT": own, "sampled": not facts["greedy"], **facts["drawn"]}
    return value == DRAWN, value


@gate("pairs from preference cases only", "0 of each")
def _pairs(seen: Seen) -> Judged:
    """Pairs teach nothing, or DPO has seen cases that it is tested on: make pairs of splits.prefer alone."""
    names = ["identical pairs left", "pairs from other cases", "pairs from groups of other splits"]
    value = {name: int(seen.pairs_audit.loc[name, "value"]) for name in names}
    return not any(value.values()), _counts(seen, value)


@gate("chosen is right, rejected is wrong", "own errors: all; else most", *TRAINED, "samples")
def _sides(seen: Seen) -> Judged:
    """DPO learns to prefer wrong answers, or to avoid text that nobody would write: look at pairs and their source."""
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
        unlike = sum(normalise(text) not in seen.samples.get(case.case_id, ()) for case, text in said[1::2])
        wrong = value["chosen scored wrong"] or value["rejected scored right"] or unlike
        return not wrong, _counts(seen, value | {"rejected is no sample": unlike})
    # raters may prefer what is not right, but not more often the other way round, nor set answers against gibberish
    good = max(value["rejected scored right"], value["rejected is no answer"]) <= max(1, len(both)) / 2
    good &= value["the wrong way round"] <= sum(chosen and not other for chosen, other in both)
    return good, _counts(seen, value)


@gate("splits are disjoint", "0 shared")
def _disjoint(seen: Seen) -> Judged:
    """Test cases, or their patients, were trained on: draw splits by data.splits.split_cases, name group_id."""
    shared = 0
    for key in ("case_id", "group_id"):
        names = [{getattr(case, key) for case in part} for part in vars(seen.splits).values()]
        shared += sum(map(len, names)) - len(set().union(*names))
    return not shared, _counts(seen, {"shared cases or groups": shared})


@gate("no test text is trained on", f"0 the same, near-duplicates <= {NEAR_TOLERANCE:.0%} of the test", *TRAINED)
def _copies(seen: Seen) -> Judged:
    """The model may remember answers of the test: set repeats: drop, or group_id to what such cases share."""
    trained = {prompt for arm in seen.trained for prompt, _ in seen.learnt[arm]}
    same = sum(seen.prompt[case.case_id] in trained for case in seen.splits.test)
    value = {"test prompts that were trained": same, "near-duplicates of test cases in training": seen.near}
    return not same and seen.near <= NEAR_TOLERANCE * len(seen.splits.test), _counts(seen, value)


@gate("the prompt holds no answer", "neither")
def _hidden(seen: Seen) -> Judged:
    """Arms may copy the answer: leave it, and what was written after it, out of the card's text."""
    task, test = seen.task, seen.splits.test
    others = [next((c for c in test if c.gold != case.gold), case) for case in test]
    changed = any(task.prompt(a) != task.prompt(replace(a, gold=b.gold)) for a, b in zip(test, others, strict=True))
    told = any(_names_the_answer(seen, outcome) for outcome in (test[0].gold if test else ()))
    value = {"prompts that change with the answer": changed, "answers that the prompt names": told}
    return not (changed or told), value


def _names_the_answer(seen: Seen, outcome: str) -> bool:
    """Whether most prompts name one label alone, and it is the right one.

    Labels count where a prompt names them more often than all prompts do; options that it sets out count too.
    """
    test, alone = seen.splits.test, []
    prompts, gold = [seen.task.prompt(case).casefold() for case in test], [normalise(c.gold[outcome]) for c in test]
    least = {label: min(prompt.count(label) for prompt in prompts) for label in set(gold)}
    for case, prompt, right in zip(test, prompts, gold, strict=True):
        offered = set(map(normalise, case.details.get("options", {}).values()))
        named = {label for label, n in least.items() if prompt.count(label) > n}
        named |= {option for option in offered if option in prompt}
        alone += [named == {right}] * (len(named) == 1)
    return len(alone) >= NAMED * len(test) and sum(alone) > NAMED_RIGHT * len(alone)
