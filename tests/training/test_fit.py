"""A real SFT and a real DPO of a tiny model: something moved, the reference is right, every gate can fail."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerState
from trl import DPOTrainer, SFTTrainer

from medstudy.data.card import DataCard
from medstudy.data.cases import Case, DataError
from medstudy.data.splits import Splits
from medstudy.params import RunParams
from medstudy.runs import Run, Stage
from medstudy.tasks import get_task
from medstudy.training import gates
from medstudy.training.fit import CODE, dpo_config, keep_adapter, lora_config, sft_config, train, training_log
from medstudy.training.generation import (
    Decoding,
    answer_cases,
    changed_alone,
    decode,
    reload_difference,
    sample_cases,
)
from medstudy.training.models import ModelError, load_model, load_tokenizer, stop_tokens
from medstudy.training.preferences import Pair, Pairs, audit_pairs, pairs_from_own_errors
from medstudy.training.prompts import fit_context, prompt_ids, sft_row, token_table
from medstudy.training.search import choose, tried


def sft_stage(run: Run, card: DataCard, cases: list[Case], name: str = "sft", params: RunParams | None = None) -> Stage:
    """Train the SFT arm on ``cases``."""
    task, tokenizer = get_task("text_classification", card), load_tokenizer(run.params)
    rows = [sft_row(task, case) for case in cases]
    args, lora = sft_config(params or run.params, run, 200), lora_config(params or run.params)
    stage = run.stage(name, CODE, args=args, lora=lora, rows=rows)
    model = load_model(run.params, trainable=True)
    trainer = SFTTrainer(
        model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=lora
    )
    train(trainer, stage, rows_in=len(rows))
    return stage


def dpo_trainer(run: Run, card: DataCard, cases: list[Case], sft: Stage) -> tuple[DPOTrainer, list]:
    """A DPO trainer that goes on from ``sft``."""
    task = get_task("text_classification", card)
    other = {"yes": "no", "no": "yes"}
    pairs = [
        Pair(c.case_id, c.group_id, task.messages(c), c.gold["label"], other[c.gold["label"]], "gold") for c in cases
    ]
    rows = [pair.row() for pair in pairs]
    policy = load_model(run.params, sft.folder / "adapter", trainable=True)
    args = dpo_config(run.params, run, 200)
    data = Dataset.from_list(rows)
    return DPOTrainer(policy, args=args, train_dataset=data, processing_class=load_tokenizer(run.params)), rows


@pytest.fixture
def trained(params: RunParams, card: DataCard, cases: list[Case]) -> tuple[Run, Stage, Stage]:
    """A run with its SFT and DPO stages."""
    run = Run(params)
    sft = sft_stage(run, card, cases)
    dpo = run.stage("dpo", CODE, adapter=sft.key)
    trainer, rows = dpo_trainer(run, card, cases, sft)
    train(trainer, dpo, rows_in=len(rows))
    return run, sft, dpo


def test_dpo_goes_on_from_sft_and_its_reference_is_the_sft_model(trained: tuple[Run, Stage, Stage]) -> None:
    run, sft, dpo = trained
    assert dpo.facts["first_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert gates.first_loss(dpo.facts).passed
    assert dpo.facts["last_margin"] != 0
    for arm, stage in (("sft", sft), ("dpo", dpo)):
        log = training_log(stage)
        assert log["loss"].notna().all()
        assert len(log) == stage.facts["steps"] == 4
        assert (run.folder / "training" / f"{arm}.csv").is_file()
    assert {"rewards/margins", "logps/chosen", "logps/rejected"} <= set(training_log(dpo).columns)
    checked = [gates.tokens, gates.weights]
    assert all(gate({"sft": sft.facts, "dpo": dpo.facts}).passed for gate in checked)
    assert not (dpo.folder / "adapter" / "ref").exists()


def test_an_adapter_that_was_rounded_is_the_reference_again_before_it_trains(
    params: RunParams, card: DataCard, cases: list[Case]
) -> None:
    run = Run(params)
    sft = sft_stage(run, card, cases)
    trainer, rows = dpo_trainer(run, card, cases, sft)
    weights = dict(trainer.model.named_parameters())
    rounded = [name for name, weight in weights.items() if weight.requires_grad]
    for name in rounded:  # as TRL does on quantized weights, for which see the next test
        weights[name].data = weights[name].data.to(torch.bfloat16)
    assert rounded and all(weights[n.replace(".default.", ".ref.")].dtype == torch.float32 for n in rounded)
    dpo = run.stage("dpo", CODE, adapter=sft.key)
    train(trainer, dpo, rows_in=len(rows))
    assert dpo.facts["first_reward"] == 0 and gates.first_loss(dpo.facts).passed
    assert {weights[name].dtype for name in rounded} == {torch.float32}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_4bit_weights_pass_the_same_gates(params: RunParams, card: DataCard, cases: list[Case], dtype: str) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install -e '.[gpu]'")
    change = {"model": "builtin/llama", "quantization": "4bit", "dtype": dtype}
    run = Run(params.model_copy(update=change))
    sft = sft_stage(run, card, cases)
    model = load_model(run.params, sft.folder / "adapter")
    assert any(type(module).__name__ == "Linear4bit" for module in model.modules())
    assert reload_difference(model, sft.folder) < gates.RELOAD_TOLERANCE
    trainer, rows = dpo_trainer(run, card, cases, sft)
    dpo = run.stage("dpo", CODE, adapter=sft.key)
    train(trainer, dpo, rows_in=len(rows))
    assert gates.first_loss(dpo.facts).passed
    assert gates.weights({"sft": sft.facts, "dpo": dpo.facts}).passed


def test_a_base_weight_that_trains_along_is_seen(params: RunParams, card: DataCard, cases: list[Case]) -> None:
    run = Run(params)
    sft = sft_stage(run, card, cases)
    assert gates.weights({"sft": sft.facts}).passed
    trainer, rows = dpo_trainer(run, card, cases, sft)
    next(p for name, p in trainer.model.named_parameters() if "lora_" not in name).requires_grad_(True)
    dpo = run.stage("dpo", CODE, adapter=sft.key)
    train(trainer, dpo, rows_in=len(rows))
    assert dpo.facts["frozen_changed"] == 1
    assert not gates.weights({"dpo": dpo.facts}).passed


def test_answers_without_a_stop_token_are_seen(params: RunParams, card: DataCard, cases: list[Case]) -> None:
    """A chat template that ends no turn: the model would learn to go on for ever."""
    run, task, tokenizer = Run(params), get_task("text_classification", card), load_tokenizer(params)
    tokenizer.chat_template = tokenizer.chat_template.replace("+ '<|end|>'", "")
    rows = [sft_row(task, case) for case in cases]
    args, lora = sft_config(params, run, 200), lora_config(params)
    stage = run.stage("sft", CODE, rows=rows)
    data, model = Dataset.from_list(rows), load_model(params, trainable=True)
    trainer = SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer, peft_config=lora)
    with pytest.raises(ModelError, match="does not end an answer with a special token"):
        train(trainer, stage, rows_in=len(rows))


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


def test_a_wrong_reference_is_seen(params: RunParams, card: DataCard, cases: list[Case]) -> None:
    run = Run(params)
    sft = sft_stage(run, card, cases)
    trainer, rows = dpo_trainer(run, card, cases, sft)
    for name, weight in trainer.model.named_parameters():
        if ".ref." in name and "lora_B" in name:
            weight.data.add_(0.5)  # the reference is no longer the SFT model
    dpo = run.stage("dpo", CODE, adapter=sft.key)
    train(trainer, dpo, rows_in=len(rows))
    assert not gates.first_loss(dpo.facts).passed


def test_rows_that_trl_cuts_or_drops_are_seen(params: RunParams, card: DataCard, cases: list[Case]) -> None:
    run = Run(params)
    stage = run.stage("sft", CODE, rows=1)
    task = get_task("text_classification", card)
    rows = [sft_row(task, case) for case in cases]
    args = sft_config(params, run, 16)
    trainer = SFTTrainer(
        load_model(params, trainable=True),
        dataclasses.replace(args, max_length=task_length(params, task, cases) - 1),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(params),
        peft_config=lora_config(params),
    )
    train(trainer, stage, rows_in=len(rows))
    seen = {"sft": stage.facts}
    assert not (gates.nothing_lost(seen, seen).passed and gates.tokens(seen).passed)


def task_length(params: RunParams, task: object, cases: list[Case]) -> int:
    """Tokens of the longest whole row."""
    tokenizer = load_tokenizer(params)
    return max(len(token_table(tokenizer, task.messages(c), task.target(c))) for c in cases)


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
        decode(load_model(params, trainable=True), load_tokenizer(params), [[]], Decoding(2, 1))


def test_batches_padding_and_shared_prompts_change_no_answer(
    params: RunParams, card: DataCard, cases: list[Case]
) -> None:
    task, model, tokenizer = get_task("text_classification", card), load_model(params), load_tokenizer(params)
    prompts = [task.messages(case) for case in cases]
    alone = decode(model, tokenizer, prompts, Decoding(6, 1))
    assert decode(model, tokenizer, prompts, Decoding(6, 8)).ids == alone.ids
    model.generation_config.do_sample, model.generation_config.repetition_penalty = True, 5.0
    # the checkpoint's settings are not obeyed
    assert decode(model, tokenizer, prompts, Decoding(6, 3), ["yes", "no"]).texts == alone.texts
    near_greedy = decode(model, tokenizer, prompts, Decoding(6, 8, samples=4, temperature=1e-4))
    assert [set(texts) for texts in near_greedy.texts] == [set(texts) for texts in alone.texts]


def test_what_prompts_begin_with_is_shared_only_where_every_layer_sees_it(params: RunParams) -> None:
    model, tokenizer = load_model(params), load_tokenizer(params)
    start = "The same worked example stands before every one of these questions. " * 6
    prompts = [[{"role": "user", "content": f"{start}{text}"}] for text in ("a", "b c d e f", "g " * 30)]
    expected = [decode(model, tokenizer, [prompt], Decoding(6, 1)).ids[0] for prompt in prompts]
    read: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    assert decode(model, tokenizer, prompts, Decoding(6, 8)).ids == expected
    shared = sum(read)
    read.clear()
    model.config.sliding_window = 64
    assert decode(model, tokenizer, prompts, Decoding(6, 8)).ids == expected
    assert sum(read) > 1.5 * shared
    assert decode(model, tokenizer, [], Decoding(6, 8)).ids == []


def test_answers_that_a_batch_has_changed_are_counted(params: RunParams, card: DataCard, cases: list[Case]) -> None:
    """It must agree with greedy decoding as transformers does it, a prompt at a time, without padding."""
    task, model, tokenizer = get_task("text_classification", card), load_model(params), load_tokenizer(params)
    prompts = [task.messages(case) for case in cases]
    alone = []
    for messages in prompts:
        ids = torch.tensor([prompt_ids(tokenizer, messages)])
        made = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
        alone.append(made[0, ids.shape[1] :].tolist())
    assert [ids for (ids,) in decode(model, tokenizer, prompts, Decoding(6, 8)).ids] == alone
    assert changed_alone(model, tokenizer, prompts, alone) == 0
    other = [[*ids[:-1], ids[-1] + 1] for ids in alone[:3]] + alone[3:]
    assert changed_alone(model, tokenizer, prompts, other) == 3


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
            patched.setattr("medstudy.training.fit.score_labels_only", lambda: None)
            patched.setattr(utils, "_use_triton", way)
            losses.append(training_log(sft_stage(run, card, cases, "sft", params))["loss"].tolist())
    assert losses[0] == losses[1]


def test_label_probabilities_are_those_of_the_whole_sequences(
    params: RunParams, card: DataCard, cases: list[Case]
) -> None:
    """Against the plain way: each prompt with each label, one by one, no cache and no padding."""
    task, model, tokenizer = get_task("text_classification", card), load_model(params), load_tokenizer(params)
    labels, prompts = ["yes", "no", "not at all"], [task.messages(case) for case in cases]
    expected = []
    for messages in prompts:
        start = len(prompt_ids(tokenizer, messages))
        log_p = []
        for label in labels:
            turns = [*messages, {"role": "assistant", "content": label}]
            ids = torch.tensor([tokenizer.apply_chat_template(turns, return_dict=False)])
            with torch.inference_mode():
                logits = model(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
            log_p.append(logits.gather(1, ids[0, start:, None]).sum())
        expected.append(torch.stack(log_p).softmax(0).tolist())
    for batch_size in (1, 4, 64):
        found = decode(model, tokenizer, prompts, Decoding(2, batch_size), labels).probabilities
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
    sft = sft_stage(Run(params.model_copy(update={"results": str(tmp_path / "sft")})), card, cases)

    def trained(results: str) -> Stage:
        run = Run(params.model_copy(update={"results": str(tmp_path / results)}))
        if arm == "sft":
            return sft_stage(run, card, cases)
        trainer, rows = dpo_trainer(run, card, cases, sft)
        stage = run.stage("dpo", CODE, adapter=sft.key)
        train(trainer, stage, rows_in=len(rows))
        return stage

    whole = trained("whole")
    monkeypatch.setattr("medstudy.training.fit.CHECKPOINT_MINUTES", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr("medstudy.training.fit.progress", lambda stage: Killed())
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


class Killed(TrainerCallback):
    """In place of the progress line: a kill in the middle of a training, as it looks from inside."""

    def on_step_begin(self, args: object, state: TrainerState, control: object, **kwargs: object) -> None:
        if state.global_step == 7:
            raise KeyboardInterrupt


def test_settings_are_chosen_on_validation_and_written_down(
    params: RunParams, card: DataCard, cases: list[Case]
) -> None:
    task = get_task("text_classification", card)
    # the tiny model cannot learn eight cases
    some = {"model": "builtin/llama", "sft_learning_rate": [1e-9, 3e-3], "sft_epochs": 15, "lora_rank": 8}
    listed = params.model_copy(update=some)
    run, asked = Run(listed), []

    def fit(name: str, trial: RunParams) -> Stage:
        asked.append((name, trial.sft_learning_rate))
        return sft_stage(run, card, cases, name, trial)

    chosen, stage = choose(run, "sft", listed, task, cases, fit)
    assert asked == [("sft-1", 1e-9), ("sft-2", 3e-3)]
    table = tried(run, "sft")
    assert chosen.sft_learning_rate == 3e-3
    assert list(table["chosen"]) == [False, True]
    assert table["validation_score"][1] > table["validation_score"][0]
    assert (stage.name, run.stages["sft"]) == ("sft", stage)
    assert run.facts["chosen"]["sft_learning_rate"] == 3e-3
    choose(run, "sft", chosen, task, cases, lambda name, trial: stage)
    assert tried(run, "sft") is None


def test_samples_are_the_same_for_the_same_seed(
    trained: tuple[Run, Stage, Stage], card: DataCard, cases: list[Case]
) -> None:
    run, sft, _ = trained
    task = get_task("text_classification", card)
    first = sample_cases(run, task, cases, sft)
    assert all(len(texts) == run.params.samples_per_case for texts in first)
    model, tokenizer = load_model(run.params, sft.folder / "adapter"), load_tokenizer(run.params)
    how = Decoding(4, 4, run.params.samples_per_case, 1.0, run.params.seed)
    assert decode(model, tokenizer, [task.messages(c) for c in cases], how).texts == first


def test_an_arm_without_pairs_is_the_sft_model_and_says_so(trained: tuple[Run, Stage, Stage]) -> None:
    run, sft, _ = trained
    idle = run.stage("idle", CODE, adapter=sft.key)
    keep_adapter(idle, sft)
    assert idle.facts["steps"] == 0
    assert (idle.folder / "adapter" / "adapter_config.json").is_file()
    assert training_log(idle).empty


def test_loss_is_on_the_answer_and_its_end_token_only(params: RunParams, card: DataCard, cases: list[Case]) -> None:
    task, tokenizer = get_task("text_classification", card), load_tokenizer(params)
    table = token_table(tokenizer, task.messages(cases[0]), "yes")
    assert "".join(table.loc[table["in_loss"], "token"]) == "yes<|end|>"
    prompt = prompt_ids(tokenizer, task.messages(cases[0]))
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id in stop_tokens(load_model(params), tokenizer)


def test_what_does_not_fit_the_context_is_an_error_or_counted(
    params: RunParams, card: DataCard, cases: list[Case]
) -> None:
    task, tokenizer = get_task("text_classification", card), load_tokenizer(params)
    long = dataclasses.replace(cases[0], case_id="long", text="dysuria " * 400)
    both = [*cases, long]
    with pytest.raises(DataError, match="case long needs .* set overlong to truncate or exclude"):
        fit_context(both, task, tokenizer, params, 300)
    kept, lengths = fit_context(both, task, tokenizer, params.model_copy(update={"overlong": "exclude"}), 300)
    assert (len(kept), lengths.excluded) == (len(cases), 1)
    kept, lengths = fit_context(both, task, tokenizer, params.model_copy(update={"overlong": "truncate"}), 300)
    assert (len(kept), lengths.truncated) == (len(both), 1)
    assert lengths.longest <= 300
    assert kept[-1].text.startswith("dysuria dysuria")
    assert task.prompt(kept[-1]).endswith("no, yes.")


def test_a_gold_answer_that_could_never_be_given_is_an_error_or_counted(
    params: RunParams, card: DataCard, cases: list[Case]
) -> None:
    """Seen once: max_new_tokens = 4 cut "malignant" to "malign", and every such answer counted as wrong."""
    task, tokenizer = get_task("text_classification", card), load_tokenizer(params)
    short = params.model_copy(update={"max_new_tokens": 1})
    with pytest.raises(DataError, match="gold answer of case case0 needs . tokens .* raise max_new_tokens"):
        fit_context(cases, task, tokenizer, short, 300)
    _, lengths = fit_context(cases, task, tokenizer, short.model_copy(update={"overlong": "exclude"}), 300)
    assert lengths.answer_cut == len(cases)
    assert lengths.table()["gold answer too long"].iloc[0] == len(cases)


def test_pairs_come_from_own_errors_and_are_counted(card: DataCard, cases: list[Case]) -> None:
    task = get_task("text_classification", card)
    samples = [["yes", "yes"], ["yes", "no"], ["maybe", "maybe"], ["", "no"]]
    made = pairs_from_own_errors(task, cases[:4], samples, pairs_per_case=4)
    seen = [(p.case_id, p.chosen, p.rejected, p.source) for p in made.pairs]
    assert seen == [("case1", "no", "yes", "own"), ("case2", "yes", "maybe", "gold")]
    audit = audit_pairs(made, cases[4:])["value"]
    assert audit["pairs"] == 2
    assert audit["samples that were wrong"] == 4
    assert audit["repeated wrong samples dropped"] == 2
    assert audit["pairs from test cases"] == 0
    assert gates.pairs(audit_pairs(made, cases[4:])).passed
    assert not gates.pairs(audit_pairs(made, cases)).passed  # test cases among the pairs
    same = Pair("c", "g", [], "yes", "Yes.", "gold")
    assert not gates.pairs(audit_pairs(Pairs([same], made.counts), [])).passed


def test_gates_go_red_on_what_they_guard(cases: list[Case]) -> None:
    good = {"rows": 4, "rows_in": 4, "longest": 9, "max_length": 16, "bos_per_row": [1], "sequences": 4}
    good |= {"rows_ending_with_stop": 4, "frozen_changed": 0, "adapter_changed": 6, "adapter_tensors": 6}
    assert gates.tokens({"sft": good}).passed
    assert not gates.tokens({"sft": good | {"bos_per_row": [1, 2]}}).passed
    assert not gates.tokens({"sft": good | {"rows_ending_with_stop": 3}}).passed
    assert gates.nothing_lost({"sft": good, "sft_more": good}, {"sft": good, "sft_more": good}).passed
    assert not gates.nothing_lost({"sft": good | {"rows": 3}}, {"sft": good}).passed
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
    assert gates.disjoint(Splits(cases[:4], cases[4:6], cases[6:]), 0).passed
    assert not gates.disjoint(Splits(cases[:4], cases[4:6], cases[3:]), 0).passed
    assert not gates.dpo_moved({"last_margin": 0.0}, {"sft": ["a"] * 4, "dpo": ["b"] * 4}).passed
    same = gates.dpo_moved({"last_margin": 1.0}, {"sft": ["a"], "dpo": ["a"]})
    assert same.passed and same.value["changed outputs"] == "0.0%"  # a result, not a fault
    assert gates.dpo_moved({"last_margin": 1.0}, {"sft": ["a"], "dpo": ["b"]}).passed
    assert not gates.displacement({"first_log_p": -5.0, "last_log_p": -9.0}).passed
    assert gates.displacement({"first_log_p": -5.0, "last_log_p": -5.0}).passed
