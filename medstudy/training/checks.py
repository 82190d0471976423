"""The gates: each compares what was seen of a run with what must hold, and says what its failing means.

What they measure is far from every threshold in a sound run: exact counts and hashes, or differences of another order
than rounding, so that no gate depends on the machine.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from medstudy.arms import ARMS
from medstudy.data.cases import SMALLEST_COUNT, Case
from medstudy.params import MARGIN
from medstudy.tasks.base import Task
from medstudy.tasks.reading import normalise
from medstudy.training.decoding import ROUNDING
from medstudy.training.evidence import Facts, Gate, Seen, judge

if TYPE_CHECKING:
    import pandas as pd

    from medstudy.data.splits import Splits

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
CONTROLS = ("sft_more", "sft_chosen")


def reference(dpo: Mapping[str, Any]) -> Gate:
    """Before the first step policy and reference say the same, only if the reference is the SFT model.

    Judged by their log-probabilities: the routers of a mixture of experts add a loss of their own.
    """
    judged = partial(
        judge, "reference is the SFT model", expected="no difference (in plain DPO a loss of ln 2 = 0.6931)"
    )
    if not dpo.get("steps"):
        reason = "SFT made no error to learn from, so there is no DPO: take more n_prefer or samples_per_case"
        return judged(False, "no preference pairs", reason=reason)
    value = {"loss": round(dpo["first_loss"], 4), "largest difference in nats": round(dpo["first_log_ratio"], 4)}
    reason = "DPO is held to another model than SFT's, so it is no DPO after SFT: start it from the SFT stage, without "
    return judged(dpo["first_log_ratio"] <= LOG_RATIO_TOLERANCE, value, reason=f"{reason}ref_model or peft_config")


def tokens(trained: Facts) -> Gate:
    """A row begins with one BOS at most, and each answer ends with the token that ends a turn, on which is loss.

    Further in a row it may be any token: some checkpoints begin every turn with it, or end turns with it.
    """
    bos = max(n for f in trained.values() for n in f["bos_at_start"])
    ends, rows = (sum(f[name] for f in trained.values()) for name in ("rows_ending_with_stop", "sequences"))
    value = {"BOS at the start of a row": bos, "rows ending with the end token": f"{ends} of {rows}"}
    reasons = ["two beginnings of text, which the model never saw: leave the BOS to the template"] * (bos > 1)
    reasons += ["the model does not learn to stop: rows are cut, or no loss is on their end token"] * (ends != rows)
    expected = "BOS at most 1, all rows end"
    return judge("one BOS, trained end token", not reasons, value, expected, "; ".join(reasons))


def asked(seen: Seen) -> Gate:
    """What is asked is what was trained: tokens without loss, and tokens read when answering, are the case's prompt.

    Few-shot prompts hold examples besides, and are not compared.
    """
    trained = {arm: seen.prompts[arm] for arm in seen.trained}
    read = {arm: prompts for arm, prompts in seen.asked.items() if arm != "few_shot"}
    value = {
        "trained": {arm: _same(prompts, seen.wanted[arm]) for arm, prompts in trained.items()},
        "asked": {arm: _same(prompts, seen.wanted["test"]) for arm, prompts in read.items()},
    }
    whole = all(list(prompts) == list(seen.wanted[arm]) for arm, prompts in trained.items())
    whole &= all(list(prompts) == list(seen.wanted["test"]) for prompts in read.values())
    reason = "loss lies on other tokens than the answer's, or the prompt was changed between training and answering: "
    reason += "make both by task.messages, and run training and answers again"
    return judge("asked as trained", whole, value, "every row: the case's prompt, then loss", reason)


def _same(found: Sequence[Any], wanted: Sequence[Any]) -> str:
    return f"{sum(a == b for a, b in zip(found, wanted, strict=False))} of {max(len(found), len(wanted))}"


def taught(task: Task, seen: Seen) -> Gate:
    """What was trained, read back from its tokens, is the answer of its case, or the side of its pair."""
    wrong: Counter[str] = Counter()
    for arm in seen.trained:
        wanted = seen.sides.get(arm) or [case.gold for case in seen.cases[arm]]
        wrong["missing"] += abs(len(seen.said[arm]) - len(wanted))
        wrong.update(_says(task, *both) for both in zip(seen.said[arm], wanted, strict=False))
    rows, right = sum(wrong.values()), wrong.pop("", 0)
    wrong = +wrong
    reason = f"read back as {', '.join(f'{what} ({n})' for what, n in wrong.items())}: the arms learn other answers "
    reason += "than their cases and pairs hold; make rows by prompts.sft_row and Pair.row, in the order of the cases"
    value, expected = f"{right} of {rows}", "every sequence, decoded and parsed, is the answer of its case or pair"
    return judge("trained on its answers", right and not wrong, value, expected, reason)


def _says(task: Task, text: str, wanted: str | Mapping[str, str]) -> str:
    """What is wrong with a text that should say this; empty where nothing is."""
    if isinstance(wanted, str):
        return "" if normalise(text) == normalise(wanted) else "another side"
    read = task.parse(text)
    if read.status != "parsed":
        return read.status
    values = ({outcome: normalise(value) for outcome, value in one.items()} for one in (read.value, wanted))
    return "" if next(values) == next(values) else "another answer"


def nothing_lost(trained: Facts) -> Gate:
    """TRL drops or cuts rows that reach ``max_length`` with hardly a word."""
    kept = {arm: f"{f['rows']} of {f['rows_in']}" for arm, f in trained.items()}
    whole = all(f["rows"] == f["rows_in"] and f["longest"] <= f["max_length"] for f in trained.values())
    value = {"rows": kept, "tokens": {arm: f"{f['longest']} of {f['max_length']}" for arm, f in trained.items()}}
    reason = "max_length is shorter than a row, so that cases or ends of answers are not trained: set it to None"
    return judge("no row lost or cut", whole, value, "rows in = rows kept", reason)


def weights(trained: Facts) -> Gate:
    """Frozen weights unchanged to the bit; of the adapter every kind of tensor moved, if not in every layer."""
    frozen = sum(f["frozen_changed"] for f in trained.values())
    value = {
        "frozen tensors changed": frozen,
        "adapter tensors moved": {
            arm: f"{f['adapter_changed']} of {f['adapter_tensors']}" for arm, f in trained.items()
        },
        "weights without an adapter": sorted({kind for f in trained.values() for kind in f["not_adapted"]}) or "none",
    }
    still = sorted({kind for f in trained.values() for kind in f["unmoved"]})
    reasons = ["weights below the adapter were trained too, so that the saved adapter is not the model"] * (frozen > 0)
    if still and any(f["steps"] == 1 for f in trained.values()):
        reasons += ["one step alone moves half of a new adapter: train longer"]
    elif still:
        reasons += [f"no gradient reached {', '.join(still[:5])}: leave these layers out of target_modules"]
    expected = "0 frozen changed, every kind of adapter tensor moved"
    return judge("only the adapter moved", not reasons, value, expected, "; ".join(reasons))


def no_dropout(trained: Facts) -> Gate:
    """DPO's reference has none, and SFT's arms would be trained otherwise than DPO's."""
    found = {arm: f["dropout"] for arm, f in trained.items() if f["dropout"]}
    reason = "what is dropped differs from one pass to the next, so that arms, or policy and reference, are not alike: "
    reason += "set lora_dropout and the dropouts of the model's config to 0"
    return judge("no dropout", not found, found or "none", "two passes in training are the same", reason)


def controls(seen: Seen) -> Gate:
    """SFT that goes on beside DPO was neither left where it was nor destroyed, or DPO would win against nothing."""
    trained, dpo, reasons = seen.trained, seen.trained.get("dpo"), []
    score = {
        arm: [row for row in seen.tried.get(arm, []) if row["chosen"] and row["score"] is not None] for arm in ARMS
    }
    value = {}
    for arm in (arm for arm in CONTROLS if arm in trained):
        facts = trained[arm]
        before, after = facts["first_loss"], facts["last_loss"]
        value[arm] = {"loss on its rows": f"{before:.3f} to {after:.3f}"}
        if not after <= 1.1 * before + 0.05:
            reasons.append(f"{arm} answers its own rows worse than before it: its learning rate is too high")
        if dpo and dpo["moved"]:  # one step of a warm-up moves nothing
            moved = facts["moved"] / dpo["moved"]
            value[arm]["moved as far as DPO"] = f"{moved:.2g} times"
            if moved < MOVED:
                reasons.append(f"{arm} hardly moved: its learning rate is too low")
        if score[arm] and score["sft"]:
            value[arm]["validation"], worse = _worse(score[arm][0], score["sft"][0])
            reasons += [f"{arm} is worse than SFT on validation: try other rates and epochs"] * worse
    expected = f"loss not risen, moved at least {MOVED} times as far as DPO, not worse than SFT on validation"
    return judge("the controls learnt", not reasons, value, expected, "; ".join(reasons))


def _worse(one: Mapping[str, Any], sft: Mapping[str, Any]) -> tuple[str, bool]:
    """An arm's score beside SFT's; worse by more than the margin, and by more than three standard errors."""
    error = math.sqrt(sum(row["score"] * (1 - row["score"]) / row["n"] for row in (one, sft)))
    words = f"{one['score']:.3f}, SFT {sft['score']:.3f}"
    return words, sft["score"] - one["score"] > max(MARGIN, 3 * error)


def decoding(decoded: Facts) -> Gate:
    """Every arm answered in eval mode, greedily, with padding nowhere but on the left."""
    good = all(f["greedy"] and not f["training_mode"] and f["padding"] != "right" for f in decoded.values())
    value = {k: sorted({str(f[k]) for f in decoded.values()}) for k in ("training_mode", "greedy", "padding")}
    reason = "answers would be others the next time, or begin behind padding: answer by generation.answer_cases"
    expected = "training mode False, greedy True, left or none"
    return judge("eval mode, greedy, left padding", good, value, expected, reason)


def adapters(seen: Seen) -> Gate:
    """The weights that an arm's answers were made with are those that it was trained to."""
    used = {arm: f["adapter"] for arm, f in seen.decoded.items()}
    wrong = {arm: next((a for a, h in seen.adapters.items() if h == used[arm]), "none") for arm in used}
    wrong = {arm: other for arm, other in wrong.items() if used[arm] != seen.adapters.get(arm, "")}
    reason = f"{', '.join(f'answers of {a} come from the adapter of {b}' for a, b in wrong.items())}, so that they are "
    reason += "another arm's: give answer_cases the stage that trained the arm"
    value = {arm: adapter[:8] or "none" for arm, adapter in used.items()}
    return judge("each arm answers by its own adapter", not wrong, value, "the hash of the trained adapter", reason)


def reload(decoded: Facts) -> Gate:
    """The saved adapter, loaded on the plain base, gives the logits of the model that was trained."""
    value = {arm: float(f"{f['reload_difference']:.1e}") for arm, f in decoded.items() if "reload_difference" in f}
    good = value and max(value.values()) <= ROUNDING[1]
    expected = f"largest logit difference <= {ROUNDING[1]} of the largest logit"
    reason = "the model that answers is not the one that was trained: the adapter was changed or lies on another base"
    return judge("adapter reloads", good, value, expected, f"{reason}; train again")


def batching(decoded: Facts) -> Gate:
    """Share of answers that change, by more than rounding, when a case is answered alone."""
    changed = sum(f["changed_by_batching"] for f in decoded.values())
    n = sum(f["rechecked"] for f in decoded.values())
    reason = "answers depend on which cases are answered together: this model does not leave padding out of account; "
    expected = f"<= {BATCHING_TOLERANCE:.0%}"
    good = changed <= BATCHING_TOLERANCE * n
    return judge(
        "batch size does not matter", good, f"{changed} of {n} changed", expected, reason + "eval_batch_size = 1"
    )


def samples(seen: Seen) -> Gate:
    """How they were drawn, as told by the generation itself: from all that the SFT model may say."""
    if "samples" not in seen.facts:
        return Gate("samples are the SFT model's", True, "none drawn", "of own errors, from all that it may say")
    drawn = seen.facts["samples"]
    value = {
        "adapter of SFT": drawn["adapter"] == seen.adapters["sft"],
        "sampled": not drawn["greedy"],
        **drawn["drawn"],
    }
    expected = {"adapter of SFT": True, "sampled": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    reason = "pairs are not the errors that this model makes, and how often: draw by generation.sample_cases from sft"
    return judge("samples are the SFT model's", value == expected, value, str(expected), reason)


def pairs(audit: pd.DataFrame) -> Gate:
    """No identical pair, none from other cases."""
    names = ["identical pairs left", "pairs from other cases", "pairs from groups of other splits"]
    value = {name: int(audit.loc[name, "value"]) for name in names}
    reason = "pairs teach nothing, or DPO has seen cases that it is tested on: make pairs of splits.prefer alone"
    return judge("pairs from preference cases only", not any(value.values()), value, "0 of each", reason)


def sides(task: Task, seen: Seen, source: str) -> Gate:
    """What DPO was given as chosen is right and as rejected wrong, by the task's own scorer.

    Of own errors all, and each rejected side is a sample of the model's. Raters may prefer what is not right, but not
    more often the other way round, nor set answers against text that is none.
    """
    said = list(zip(seen.cases["dpo"], seen.said.get("dpo", []), strict=False))
    read = [(case, text, task.parse(text)) for case, text in said]
    right = [task.score(answer, case)["correct"] == 1.0 for case, _, answer in read]
    both = list(zip(right[::2], right[1::2], strict=False))
    rejected, n = read[1::2], max(1, len(both))
    value = {
        "pairs": len(both),
        "chosen scored wrong": sum(not chosen for chosen, _ in both),
        "rejected scored right": sum(other for _, other in both),
        "the wrong way round": sum(other and not chosen for chosen, other in both),
        "rejected is no answer": sum(answer.status != "parsed" for _, _, answer in rejected),
    }
    if source == "own_errors":
        value["rejected is no sample"] = sum(
            normalise(t) not in seen.samples.get(c.case_id, ()) for c, t, _ in rejected
        )
        good = not any(value[k] for k in ("chosen scored wrong", "rejected scored right", "rejected is no sample"))
    else:
        good = max(value["rejected scored right"], value["rejected is no answer"]) <= n / 2
        good &= value["the wrong way round"] <= sum(chosen and not other for chosen, other in both)
    reason = (
        "DPO learns to prefer wrong answers, or to avoid text that nobody would write: look at pairs and their source"
    )
    return judge("chosen is right, rejected is wrong", good, value, "own errors: all; else most", reason)


def disjoint(splits: Splits) -> Gate:
    """No case and no group in two splits."""
    parts = list(vars(splits).values())
    shared = sum(
        len({getattr(c, key) for c in a} & {getattr(c, key) for c in b})
        for key in ("case_id", "group_id")
        for i, a in enumerate(parts)
        for b in parts[i + 1 :]
    )
    reason = "test cases, or their patients, were trained on: draw splits by data.splits.split_cases, name group_id"
    return judge("splits are disjoint", not shared, {"shared cases or groups": shared}, "0 shared", reason)


def copies(seen: Seen, near: int, shown: Any) -> Gate:
    """No test prompt was trained, and hardly a test text is like one that was."""
    test = seen.wanted["test"]
    trained = set().union(*(seen.prompts[arm] for arm in seen.trained))
    same = sum(prompt in trained for prompt in test)
    value = {"test prompts that were trained": shown(same), "near-duplicates of test cases in training": shown(near)}
    expected = f"0 the same, near-duplicates of at most {NEAR_TOLERANCE:.0%} of the test cases"
    reason = "the model may remember answers of the test: set repeats: drop, or group_id to what such cases share"
    good = not same and near <= NEAR_TOLERANCE * len(test)
    return judge("no test text is trained on", good, value, expected, reason)


def hidden(task: Task, test: Sequence[Case]) -> Gate:
    """A prompt stays the same when its case's answer is another, and does not name the right label alone.

    Labels count where a prompt names them more often than all prompts do.
    """
    others = [next((c for c in test if c.gold != case.gold), case) for case in test]
    changed = sum(task.prompt(a) != task.prompt(replace(a, gold=b.gold)) for a, b in zip(test, others, strict=True))
    prompts, told = [task.prompt(case).casefold() for case in test], 0.0
    for outcome in test[0].gold if test else ():
        gold = [normalise(case.gold[outcome]) for case in test]
        named = [_offered(case, prompt) for case, prompt in zip(test, prompts, strict=True)]
        for label in set(gold):
            count = [prompt.count(label) for prompt in prompts]
            for labels in (labels for labels, n in zip(named, count, strict=True) if n > min(count)):
                labels.add(label)
        alone = [labels == {right} for labels, right in zip(named, gold, strict=True) if len(labels) == 1]
        if len(alone) >= NAMED * len(test):
            told = max(told, sum(alone) / len(alone))
    value = {"prompts that change with the answer": bool(changed), "answers that the prompt names": told > NAMED_RIGHT}
    reason = "arms may copy the answer: leave it, and what was written after it, out of the card's text"
    return judge("the prompt holds no answer", not any(value.values()), value, "neither", reason)


def _offered(case: Case, prompt: str) -> set[str]:
    """Options that a prompt sets out, the right one among others."""
    options = map(normalise, case.details.get("options", {}).values())
    return {option for option in options if option in prompt}


def shown(count: int, shareable: bool) -> int | str:
    """A count of patients; a small one of a private source is not told."""
    return f"< {SMALLEST_COUNT}" if 0 < count < SMALLEST_COUNT and not shareable else count
