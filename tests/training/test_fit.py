"""A real SFT and a real DPO of a tiny model: something moved, the reference is right, every gate can fail."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState
from trl import DPOTrainer, SFTTrainer

from medstudy.data.card import DataCard
from medstudy.data.cases import Case, DataError
from medstudy.data.splits import Splits
from medstudy.params import RunParams
from medstudy.runs import Run, Stage
from medstudy.tasks import get_task
from medstudy.training import gates, preferences
from medstudy.training.arguments import arguments_table, control_config, dpo_config, lora_config, sft_config
from medstudy.training.callbacks import beside
from medstudy.training.chat import load_chat
from medstudy.training.fit import TEXTS, fit, training_log
from medstudy.training.generation import (
    Decoding,
    answer_cases,
    changed_alone,
    decode,
    reload_difference,
    sample_cases,
)
from medstudy.training.models import load_model
from medstudy.training.preferences import Pair, Pairs, audit_pairs, make_pairs
from medstudy.training.prompts import fit_context, sft_row, token_table


def sft_stage(run: Run, card: DataCard, cases: list[Case], trainer: Any = SFTTrainer) -> Stage:
    """Train the SFT arm on ``cases``."""
    task = get_task("text_classification", card)
    rows = [sft_row(task, case) for case in cases]
    return fit(run, "sft", trainer, sft_config(run.params, run), rows, start=lora_config(run.params))


def pair_rows(card: DataCard, cases: list[Case]) -> list[Any]:
    """The right label against the other."""
    task, other = get_task("text_classification", card), {"yes": "no", "no": "yes"}
    pairs = [
        Pair(c.case_id, c.group_id, task.messages(c), c.gold["label"], other[c.gold["label"]], "gold") for c in cases
    ]
    return [pair.row() for pair in pairs]


def dpo_stage(run: Run, card: DataCard, cases: list[Case], sft: Stage, trainer: Any = DPOTrainer) -> Stage:
    """Train DPO from ``sft`` on."""
    return fit(run, "dpo", trainer, dpo_config(run.params, run), pair_rows(card, cases), start=sft)


def spoilt_by(spoil: Callable[[Any], None], kind: type = DPOTrainer) -> type:
    """A trainer in which something is wrong before it trains."""

    class Spoilt(kind):
        def __init__(self, *args: Any, **given: Any) -> None:
            super().__init__(*args, **given)
            spoil(self)

    return Spoilt


@pytest.fixture
def trained(params: RunParams, card: DataCard, cases: list[Case]) -> tuple[Run, Stage, Stage]:
    """A run with its SFT and DPO stages."""
    run = Run(params)
    sft = sft_stage(run, card, cases)
    return run, sft, dpo_stage(run, card, cases, sft)


def test_dpo_goes_on_from_sft_and_its_reference_is_the_sft_model(trained: tuple[Run, Stage, Stage]) -> None:
    run, sft, dpo = trained
    assert dpo.facts["first_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert gates.reference(dpo.facts).passed
    assert dpo.facts["last_margin"] != 0
    for arm, stage in (("sft", sft), ("dpo", dpo)):
        log = pd.read_csv(run.folder / "training" / f"{arm}.csv")
        assert log["loss"].notna().all()
        assert len(log) == stage.facts["steps"] == 4
        assert log.equals(training_log(stage))
    assert {"rewards/margins", "logps/chosen", "logps/rejected"} <= set(training_log(dpo).columns)
    checked = [gates.tokens, gates.weights]
    assert all(gate({"sft": sft.facts, "dpo": dpo.facts}).passed for gate in checked)
    assert not (dpo.folder / "adapter" / "ref").exists()


def test_arguments_are_those_of_the_parameters_and_shown_with_them(params: RunParams) -> None:
    params = params.model_copy(update={"dpo_beta": 0.7, "dpo_learning_rate": 1e-4, "gradient_accumulation": 3})
    args = dpo_config(params, Run(params))
    args.lr_scheduler_type = "cosine"
    shown = arguments_table(args, lora_config(params)).reset_index("argument").set_index("argument")
    assert shown.loc["beta", ["value", "default", "parameter"]].tolist() == [0.7, 0.1, "dpo_beta"]
    assert shown.loc["gradient_accumulation_steps", "value"] == 3
    assert (shown.loc["r", "value"], shown.loc["lora_alpha", "value"]) == (2, 4)
    assert shown.loc["lr_scheduler_type", "value"] == "cosine"
    assert {"loss_type", "learning_rate", "num_train_epochs", "per_device_train_batch_size", "bf16"} <= set(shown.index)
    # as many steps as DPO at the least, and its own epochs over its rows
    params = params.model_copy(update={"sft_more_epochs": 2.0, "sft_more_learning_rate": 1e-5})
    for rows, steps, want in ((12, 7, 7), (24, 7, 8)):  # 6 rows a step
        more = control_config(params, Run(params), "sft_more", rows, steps)
        assert (more.max_steps, more.learning_rate) == (want, 1e-5)


def test_one_kernel_never_spreads_over_several_gpus(params: RunParams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", property(lambda self: 4))
    assert sft_config(params, Run(params))._n_gpu == dpo_config(params, Run(params))._n_gpu == 1


@pytest.mark.parametrize("arm", ["sft", "dpo"])
def test_batches_are_of_similar_length(arm: str, params: RunParams, card: DataCard, cases: list[Case]) -> None:
    """Without the column of lengths DPO's batches would be drawn without regard to them, with no word."""
    many = [dataclasses.replace(cases[i % 8], case_id=f"c{i}", text="dysuria " * (1 + 13 * i % 89)) for i in range(96)]
    params = params.model_copy(update={"batch_size": 4})
    seen: list[list[int]] = []

    def look(trainer: Any) -> None:
        step = trainer.training_step
        trainer.training_step = lambda model, inputs, *others: (
            seen.append(inputs["attention_mask"].sum(1).tolist()) or step(model, inputs, *others)
        )

    run = Run(params)
    if arm == "sft":
        sft_stage(run, card, many, spoilt_by(look, SFTTrainer))
    else:
        dpo_stage(run, card, many, sft_stage(run, card, cases), spoilt_by(look))
    whole = [length for lengths in seen for length in lengths]
    assert len(seen) == 24
    assert np.mean([max(lengths) - min(lengths) for lengths in seen]) < 0.25 * (max(whole) - min(whole))


def test_a_trainer_of_ones_own_trains_and_another_one_trains_anew(
    trained: tuple[Run, Stage, Stage], card: DataCard, cases: list[Case]
) -> None:
    run, sft, dpo = trained

    class Doubled(DPOTrainer):
        def compute_loss(self, *args: Any, **given: Any) -> Any:
            return 2 * super().compute_loss(*args, **given)

    own = dpo_stage(Run(run.params), card, cases, sft, Doubled)
    assert own.key != dpo.key and own.facts["trainer"].endswith("Doubled")
    assert training_log(own)["loss"][0] == pytest.approx(2 * training_log(dpo)["loss"][0], rel=1e-4)
    assert dpo_stage(Run(run.params), card, cases, sft).key == dpo.key  # and is found again


def test_going_back_to_an_earlier_value_finds_its_training(
    trained: tuple[Run, Stage, Stage], card: DataCard, cases: list[Case]
) -> None:
    run, sft, dpo = trained
    saved = (dpo.folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    other = Run(run.params.model_copy(update={"dpo_beta": 0.5}))
    again = dpo_stage(other, card, cases, sft)
    assert again.folder != dpo.folder and again.facts["arguments"]["beta"] == "0.5"
    assert training_log(again)["rewards/margins"].tolist() != training_log(dpo)["rewards/margins"].tolist()
    back = dpo_stage(Run(run.params), card, cases, sft)
    assert (back.folder / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == saved


def test_an_adapter_that_was_rounded_is_the_reference_again_before_it_trains(
    params: RunParams, card: DataCard, cases: list[Case]
) -> None:
    run, kept = Run(params), {}

    def round_off(trainer: Any) -> None:  # as TRL does on quantized weights, for which see the next test
        kept.update({name: w for name, w in trainer.model.named_parameters() if w.requires_grad})
        for weight in kept.values():
            weight.data = weight.data.to(torch.bfloat16)

    dpo = dpo_stage(run, card, cases, sft_stage(run, card, cases), spoilt_by(round_off))
    assert dpo.facts["first_reward"] == 0 and gates.reference(dpo.facts).passed
    assert kept and {weight.dtype for weight in kept.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_4bit_weights_pass_the_same_gates(params: RunParams, card: DataCard, cases: list[Case], dtype: str) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install -e '.[gpu]'")
    change = {"model": "builtin/llama", "quantization": "4bit", "dtype": dtype}
    run = Run(params.model_copy(update=change))
    sft = sft_stage(run, card, cases)
    model = load_model(run.params, sft.folder / "adapter")
    assert any(type(module).__name__ == "Linear4bit" for module in model.modules())
    assert reload_difference(model, sft.folder) < gates.RELOAD_TOLERANCE
    dpo = dpo_stage(run, card, cases, sft)
    assert gates.reference(dpo.facts).passed
    assert gates.weights({"sft": sft.facts, "dpo": dpo.facts}).passed


def test_a_base_weight_that_trains_along_is_seen(
    trained: tuple[Run, Stage, Stage], card: DataCard, cases: list[Case]
) -> None:
    run, sft, _ = trained
    assert gates.weights({"sft": sft.facts}).passed

    def free(trainer: Any) -> None:
        next(p for name, p in trainer.model.named_parameters() if "lora_" not in name).requires_grad_(True)

    dpo = dpo_stage(run, card, cases, sft, spoilt_by(free))
    assert dpo.facts["frozen_changed"] == 1
    assert not gates.weights({"dpo": dpo.facts}).passed


def test_a_wrong_reference_is_seen(trained: tuple[Run, Stage, Stage], card: DataCard, cases: list[Case]) -> None:
    run, sft, _ = trained

    def move(trainer: Any) -> None:
        for name, weight in trainer.model.named_parameters():
            if ".ref." in name and "lora_B" in name:
                weight.data.add_(0.5)  # the reference is no longer the SFT model

    assert not gates.reference(dpo_stage(run, card, cases, sft, spoilt_by(move)).facts).passed


def test_rows_that_trl_cuts_are_seen(params: RunParams, card: DataCard, cases: list[Case]) -> None:
    run, task = Run(params), get_task("text_classification", card)
    chat = load_chat(params)
    longest = max(len(token_table(chat, task.messages(c), task.target(c))) for c in cases)
    args = sft_config(params, run)
    args.max_length = longest - 1
    stage = fit(run, "sft", SFTTrainer, args, [sft_row(task, case) for case in cases])
    seen = {"sft": stage.facts}
    assert not (gates.nothing_lost(seen).passed and gates.tokens(seen).passed)


@pytest.mark.parametrize(
    ("spoil", "gate"),
    [
        (lambda row, bos, end: {"labels": row["input_ids"]}, gates.asked),
        (lambda row, bos, end: {"labels": [-100] + row["labels"][1:-2] + [-100] + row["labels"][-1:]}, gates.asked),
        (lambda row, bos, end: {"labels": [bos] + row["labels"][1:]}, gates.asked),
        (lambda row, bos, end: {"input_ids": row["input_ids"][:-1], "labels": row["labels"][:-1]}, gates.tokens),
        (lambda row, bos, end: {name: [bos] + ids for name, ids in row.items()}, gates.tokens),
    ],
    ids=["loss on the prompt", "a gap", "loss on the first token", "end token not trained", "two BOS"],
)
def test_rows_that_are_not_as_asked_are_seen(
    spoil: Any, gate: Any, params: RunParams, card: DataCard, cases: list[Case]
) -> None:
    chat, bos = load_chat(params), load_chat(params).tokenizer.bos_token_id

    def rewrite(trainer: Any) -> None:
        trainer.train_dataset = trainer.train_dataset.map(lambda row: spoil(row, bos, chat.end))

    good = sft_stage(Run(params), card, cases)
    assert gate({"sft": good.facts}).passed
    bad = sft_stage(Run(params), card, cases, spoilt_by(rewrite, SFTTrainer))
    assert not gate({"sft": bad.facts}).passed


def test_what_sft_was_taught_is_kept_and_held_against_gold(
    params: RunParams, card: DataCard, cases: list[Case]
) -> None:
    task, run = get_task("text_classification", card), Run(params)
    stage = sft_stage(run, card, cases)
    taught = json.loads((stage.folder / TEXTS).read_text())
    assert gates.gold(task, {"sft": cases}, {"sft": taught}).passed
    assert not gates.gold(task, {"sft": cases[::-1]}, {"sft": taught}).passed
    assert "texts" not in stage.facts  # run.json leaves the private folder


def test_a_gate_whose_stage_was_not_run_fails_and_says_so(params: RunParams, card: DataCard, cases: list[Case]) -> None:
    run, task = Run(params), get_task("text_classification", card)
    sft_stage(run, card, cases)
    found = pd.DataFrame({"topic": [], "measure": [], "train": [], "validation": [], "test": []})
    audit = audit_pairs(make_pairs(params, task, cases, [[] for _ in cases]), Splits([], cases, [], []))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gates, "near_duplicates", lambda audit: 0)
        checked = gates.check_gates(run, task, Splits(cases, cases, [], []), found, audit)
    assert len(checked) == gates.GATES
    failed = {gate.gate: gate.value for gate in checked if not gate.passed}
    assert failed["reference is the SFT model"] == "not run: dpo"
    assert failed["adapter reloads"].startswith("not run: answers_base")
    assert "trained on gold" not in failed


def test_an_adapter_that_does_not_reload_is_seen(trained: tuple[Run, Stage, Stage]) -> None:
    run, sft, dpo = trained
    model = load_model(run.params, sft.folder / "adapter")
    assert reload_difference(model, sft.folder) <= gates.RELOAD_TOLERANCE
    with torch.no_grad():  # as if another adapter had been saved
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight += 1.0
    spoilt = {"reload_difference": reload_difference(model, sft.folder)}
    assert not gates.reload({"answers_sft": spoilt}).passed


def test_the_saved_adapter_answers_as_the_trained_model_did(
    trained: tuple[Run, Stage, Stage], card: DataCard, cases: list[Case]
) -> None:
    run, sft, dpo = trained
    task = get_task("text_classification", card)
    answers = {arm: answer_cases(run, arm, task, cases, stage) for arm, stage in (("sft", sft), ("dpo", dpo))}
    facts = {name: s.facts for name, s in run.stages.items() if name.startswith("answers_")}
    assert gates.reload(facts).passed
    assert gates.decoding(facts).passed
    assert gates.batching(facts).passed
    assert all(len(texts) == len(cases) for texts in answers.values())
    swapped = {"answers_dpo": facts["answers_dpo"] | {"reload_difference": 0.3}}
    assert not gates.reload(swapped).passed
    assert Run(run.params).stage  # a second start reads the answers back
    again = answer_cases(Run(run.params), "sft", task, cases, sft)
    assert again == answers["sft"]


def test_generation_refuses_a_model_in_training_mode(params: RunParams) -> None:
    with pytest.raises(RuntimeError, match="training mode"):
        decode(load_model(params, trainable=True), load_chat(params), [[]], Decoding(2, 1))


def test_batches_padding_and_shared_prompts_change_no_answer(
    params: RunParams, card: DataCard, cases: list[Case]
) -> None:
    task, model, chat = get_task("text_classification", card), load_model(params), load_chat(params)
    prompts = [task.messages(case) for case in cases]
    alone = decode(model, chat, prompts, Decoding(6, 1))
    assert decode(model, chat, prompts, Decoding(6, 8)).ids == alone.ids
    model.generation_config.do_sample, model.generation_config.repetition_penalty = True, 5.0
    # the checkpoint's settings are not obeyed
    assert decode(model, chat, prompts, Decoding(6, 3), ["yes", "no"]).texts == alone.texts
    near_greedy = decode(model, chat, prompts, Decoding(6, 8, samples=4, temperature=1e-4))
    assert [set(texts) for texts in near_greedy.texts] == [set(texts) for texts in alone.texts]


def test_what_prompts_begin_with_is_shared_only_where_every_layer_sees_it(params: RunParams) -> None:
    model, chat = load_model(params), load_chat(params)
    start = "The same worked example stands before every one of these questions. " * 6
    prompts = [[{"role": "user", "content": f"{start}{text}"}] for text in ("a", "b c d e f", "g " * 30)]
    expected = [decode(model, chat, [prompt], Decoding(6, 1)).ids[0] for prompt in prompts]
    read: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    assert decode(model, chat, prompts, Decoding(6, 8)).ids == expected
    shared = sum(read)
    read.clear()
    model.config.sliding_window = 64
    assert decode(model, chat, prompts, Decoding(6, 8)).ids == expected
    assert sum(read) > 1.5 * shared
    assert decode(model, chat, [], Decoding(6, 8)).ids == []


def test_answers_that_a_batch_has_changed_are_counted(params: RunParams, card: DataCard, cases: list[Case]) -> None:
    """It must agree with greedy decoding as transformers does it, a prompt at a time, without padding."""
    task, model, chat = get_task("text_classification", card), load_model(params), load_chat(params)
    prompts = [task.messages(case) for case in cases]
    alone = []
    for messages in prompts:
        ids = torch.tensor([chat.prompt(messages)])
        made = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
        alone.append(made[0, ids.shape[1] :].tolist())
    assert [ids for (ids,) in decode(model, chat, prompts, Decoding(6, 8)).ids] == alone
    assert changed_alone(model, chat, prompts, alone) == 0
    other = [[*ids[:-1], ids[-1] + 1] for ids in alone[:3]] + alone[3:]
    assert changed_alone(model, chat, prompts, other) == 3


def test_a_merged_adapter_is_the_adapter(trained: tuple[Run, Stage, Stage]) -> None:
    run, sft, _ = trained
    apart = load_model(run.params, sft.folder / "adapter")
    merged = load_model(run.params, sft.folder / "adapter", merged=True)
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    assert reload_difference(merged, sft.folder) == pytest.approx(reload_difference(apart, sft.folder), abs=1e-4)
    rounded = run.params.model_copy(update={"dtype": "bfloat16"})
    kept = load_model(rounded, sft.folder / "adapter", merged=True)
    assert any("lora_" in name for name, _ in kept.named_parameters())


def test_log_probabilities_are_of_the_labels_alone_and_the_same(
    trained: tuple[Run, Stage, Stage], params: RunParams, card: DataCard, cases: list[Case], tmp_path: Path
) -> None:
    """A training by TRL as it is, which scores every position, has the same losses to the last digit."""
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    assert utils._use_triton is not chunked_logprob._use_triton
    losses = []
    for way in (utils._use_triton, chunked_logprob._use_triton):
        run = Run(params.model_copy(update={"results": str(tmp_path / str(len(losses)))}))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("medstudy.training.measure.score_labels_only", lambda: None)
            patched.setattr(utils, "_use_triton", way)
            losses.append(training_log(sft_stage(run, card, cases))["loss"].tolist())
    assert losses[0] == losses[1]


def test_label_probabilities_are_those_of_the_whole_sequences(
    params: RunParams, card: DataCard, cases: list[Case]
) -> None:
    """Against the plain way: each prompt with each label, one by one, no cache and no padding."""
    task, model, chat = get_task("text_classification", card), load_model(params), load_chat(params)
    labels, prompts = ["yes", "no", "not at all"], [task.messages(case) for case in cases]
    expected = []
    for messages in prompts:
        start = len(chat.prompt(messages))
        log_p = []
        for label in labels:
            turns = [*messages, {"role": "assistant", "content": label}]
            ids = torch.tensor([chat.tokenizer.apply_chat_template(turns, return_dict=False)])
            with torch.inference_mode():
                logits = model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
            log_p.append(logits.gather(1, ids[0, start:, None]).sum())
        expected.append(torch.stack(log_p).softmax(0).tolist())
    for batch_size in (1, 4, 64):
        found = decode(model, chat, prompts, Decoding(2, batch_size), labels).probabilities
        assert found == pytest.approx(np.array(expected), abs=1e-5)


@pytest.mark.parametrize("arm", ["sft", "dpo"])
def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_been(
    arm: str,
    params: RunParams,
    card: DataCard,
    cases: list[Case],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = params.model_copy(update={"sft_epochs": 3, "dpo_epochs": 3})
    cases = [dataclasses.replace(case, text="dysuria " * (i + 1)) for i, case in enumerate(cases)]
    sft = sft_stage(Run(params.model_copy(update={"results": str(tmp_path / "sft")})), card, cases)

    def trained(results: str) -> Stage:
        run = Run(params.model_copy(update={"results": str(tmp_path / results)}))
        if arm == "sft":
            return sft_stage(run, card, cases)
        return dpo_stage(run, card, cases, sft)

    whole = trained("whole")
    monkeypatch.setattr("medstudy.training.fit.CHECKPOINT_MINUTES", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr("medstudy.training.fit.beside", killed_in_step_8)
        with pytest.raises(KeyboardInterrupt):
            trained("killed")
    [kept] = (tmp_path / "killed").rglob("checkpoint-*")
    (kept.parent / "checkpoint-9").mkdir()  # half-written: its state is missing
    again = trained("killed")
    assert again.facts["resumed_at_step"] == 7
    assert whole.facts["resumed_at_step"] == 0
    assert not kept.parent.exists()
    assert training_log(again)["loss"].tolist() == training_log(whole)["loss"].tolist()
    assert again.facts.get("first_loss") == whole.facts.get("first_loss")
    saved = [load_file(stage.folder / "adapter" / "adapter_model.safetensors") for stage in (again, whole)]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[1])


def killed_in_step_8(stage: Stage, minutes: float) -> Any:
    """A kill in the middle of a training, as it looks from inside."""

    def on_step_begin(args: Any, state: TrainerState, control: Any, **others: Any) -> None:
        if state.global_step == 7:
            raise KeyboardInterrupt

    callback = beside(stage, minutes)
    callback.on_step_begin = on_step_begin
    return callback


def test_samples_are_the_same_for_the_same_seed(
    trained: tuple[Run, Stage, Stage], card: DataCard, cases: list[Case]
) -> None:
    run, sft, _ = trained
    task = get_task("text_classification", card)
    first = sample_cases(run, task, cases, sft)
    assert all(len(texts) == run.params.samples_per_case for texts in first)
    model, chat = load_model(run.params, sft.folder / "adapter"), load_chat(run.params)
    how = Decoding(4, 4, run.params.samples_per_case, 1.0, run.params.seed)
    assert decode(model, chat, [task.messages(c) for c in cases], how).texts == first


def test_an_arm_without_pairs_is_the_sft_model_and_says_so(trained: tuple[Run, Stage, Stage]) -> None:
    run, sft, _ = trained
    idle = fit(run, "idle", DPOTrainer, dpo_config(run.params, run), [], start=sft)
    assert idle.facts["steps"] == 0
    assert (idle.folder / "adapter" / "adapter_config.json").is_file()
    assert training_log(idle).empty


def test_loss_is_on_the_answer_and_its_end_token_only(params: RunParams, card: DataCard, cases: list[Case]) -> None:
    task, chat = get_task("text_classification", card), load_chat(params)
    table = token_table(chat, task.messages(cases[0]), "yes")
    assert "".join(table.loc[table["in_loss"], "token"]) == "yes<|end|>"
    prompt = chat.prompt(task.messages(cases[0]))
    assert prompt.count(chat.tokenizer.bos_token_id) == 1
    assert chat.tokenizer.eos_token_id in chat.stops


def test_what_does_not_fit_the_context_is_an_error_or_counted(
    params: RunParams, card: DataCard, cases: list[Case]
) -> None:
    task, chat = get_task("text_classification", card), copy.copy(load_chat(params))
    chat.context = 300
    long = dataclasses.replace(cases[0], case_id="long", text="dysuria " * 400)
    both = [*cases, long]
    with pytest.raises(DataError, match="case long needs .* set overlong to truncate or exclude"):
        fit_context(both, task, chat, params)
    kept, lengths = fit_context(both, task, chat, params.model_copy(update={"overlong": "exclude"}))
    assert (len(kept), lengths.excluded) == (len(cases), 1)
    kept, lengths = fit_context(both, task, chat, params.model_copy(update={"overlong": "truncate"}))
    assert (len(kept), lengths.truncated) == (len(both), 1)
    assert lengths.longest <= 300
    assert kept[-1].text.startswith("dysuria dysuria")
    assert task.prompt(kept[-1]).endswith("no, yes.")


def test_a_gold_answer_that_could_never_be_given_is_an_error_or_counted(
    params: RunParams, card: DataCard, cases: list[Case]
) -> None:
    """Seen once: max_new_tokens = 4 cut "malignant" to "malign", and every such answer counted as wrong."""
    task, chat = get_task("text_classification", card), load_chat(params)
    short = params.model_copy(update={"max_new_tokens": 1})
    with pytest.raises(
        DataError, match=r"gold answers could never .* case case\d+, needs (\d) tokens .* set max_new_tokens = \1"
    ):
        fit_context(cases, task, chat, short)
    _, lengths = fit_context(cases, task, chat, short.model_copy(update={"overlong": "exclude"}))
    assert lengths.answer_cut == len(cases)
    assert lengths.table()["gold answer too long"].iloc[0] == len(cases)


def test_pairs_come_from_own_errors_and_are_counted(params: RunParams, card: DataCard, cases: list[Case]) -> None:
    task = get_task("text_classification", card)
    samples = [["yes", "yes"], ["yes", "no"], ["maybe", "maybe"], ["", "no"]]
    made = make_pairs(params, task, cases[:4], samples)
    seen = [(p.case_id, p.chosen, p.rejected, p.source) for p in made.pairs]
    assert seen == [("case1", "no", "yes", "own"), ("case2", "yes", "maybe", "gold")]
    audit = audit_pairs(made, Splits([], cases[:4], [], cases[4:]))["value"]
    assert audit["pairs"] == 2
    assert audit["samples that were wrong"] == 4
    assert audit["repeated wrong samples dropped"] == 2
    assert audit["pairs from other cases"] == 0
    assert gates.pairs(audit_pairs(made, Splits([], cases[:4], [], cases[4:])), "own_errors").passed
    assert not gates.pairs(
        audit_pairs(made, Splits([], [], [], cases)), "own_errors"
    ).passed  # test cases among the pairs
    same = Pair("c", "g", [], "yes", "Yes.", "gold")
    assert not gates.pairs(audit_pairs(Pairs([same], made.counts), Splits([], cases, [], [])), "labels").passed
    for side in ("chosen scored wrong", "rejected scored right"):
        audit = audit_pairs(Pairs(made.pairs, made.counts | {side: 1}), Splits([], cases, [], []))
        assert not gates.pairs(audit, "own_errors").passed
        assert gates.pairs(audit, "ratings").passed  # whom raters prefer need not be right


def test_sides_are_scored_as_they_will_be_trained(params: RunParams, card: DataCard, cases: list[Case]) -> None:
    """A source that gives the sides the wrong way round is counted."""

    def exchanged(*given: Any) -> Any:
        found, counts = preferences.from_labels(*given)
        return {
            case: [(rejected, chosen, "gold") for chosen, rejected, _ in sides] for case, sides in found.items()
        }, counts

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(preferences.SOURCES, "own_errors", exchanged)
        made = make_pairs(params, get_task("text_classification", card), cases, [])
    assert made.counts["chosen scored wrong"] == made.counts["rejected scored right"] == len(cases)


def test_gates_go_red_on_what_they_guard(cases: list[Case]) -> None:
    good = {"rows": 4, "rows_in": 4, "longest": 9, "max_length": 16, "bos_at_start": [1], "sequences": 4}
    good |= {"rows_ending_with_stop": 4, "frozen_changed": 0, "adapter_changed": 6, "adapter_tensors": 6, "steps": 4}
    good |= {"rows_begun_as_asked": 4, "unmoved": []}
    assert gates.tokens({"sft": good}).passed
    assert not gates.tokens({"sft": good | {"bos_at_start": [1, 2]}}).passed
    assert not gates.tokens({"sft": good | {"rows_ending_with_stop": 3}}).passed
    assert gates.nothing_lost({"sft": good, "sft_more": good}).passed
    assert not gates.nothing_lost({"sft": good | {"rows": 3}}).passed
    assert not gates.weights({"sft": good | {"frozen_changed": 1}}).passed
    assert not gates.weights({"sft": good | {"adapter_changed": 5}}).passed
    decoded = {
        "training_mode": False,
        "greedy": True,
        "padding": "left",
        "changed_by_batching": 0,
        "rechecked": 10,
    }
    assert not gates.decoding({"answers_sft": decoded | {"training_mode": True}}).passed
    assert not gates.batching({"answers_sft": decoded | {"changed_by_batching": 2}}).passed
    assert gates.disjoint(Splits(cases[:4], [], cases[4:6], cases[6:]), 0).passed
    assert not gates.disjoint(Splits(cases[:4], [], cases[4:6], cases[3:]), 0).passed
    assert not gates.asked({"sft": good | {"rows_begun_as_asked": 3}}).passed
    assert not gates.decoding({"answers_sft": decoded | {"padding": "right"}}).passed
    still = gates.weights({"sft": good | {"adapter_changed": 5, "unmoved": ["layers.*.experts.lora_A"]}})
    assert not still.passed and "experts" in still.reason
