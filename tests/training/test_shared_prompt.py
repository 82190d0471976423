"""A prompt that is read once for both answers of a pair: the same hidden states, gradients and trainings."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fit import dpo_stage, sft_stage
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from medstudy.data.card import DataCard
from medstudy.data.cases import Case
from medstudy.params import RunParams
from medstudy.runs import Run
from medstudy.training import arguments, shared_prompt
from medstudy.training.fit import training_log
from medstudy.training.shared_prompt import pack, share_prompts

SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPE |= {"intermediate_size": 128, "vocab_size": 100}
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}


def batch(pairs: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask as TRL's collator makes them: chosen, then rejected, padded on the right."""
    rows = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def drawn_pairs() -> list[tuple[list[int], list[int]]]:
    """Many lengths; answers that begin alike, are the same, or one within the other."""
    rng = random.Random(0)
    some = lambda n: [rng.randint(1, 99) for _ in range(n)]  # noqa: E731
    pairs = [((p := some(3 + 4 * i)) + some(2 + i), p + some(7 - i)) for i in range(5)]
    return [*pairs, ([1, 2, 3, 4, 5], [1, 2, 3, 4, 6]), ([1, 2, 3], [1, 2, 3]), ([1, 2, 3], [1, 2, 3, 4, 5])]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_gradients_are_those_of_separate_rows(kind: str, attention: str) -> None:
    torch.manual_seed(0)
    config, model_type = KINDS[kind]
    model = model_type(config(**SHAPE, attn_implementation=attention))
    ids, mask = batch(drawn_pairs())
    weights = torch.randn(*ids.shape, SHAPE["hidden_size"]) * mask[..., None]

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        trained = [p for name, p in model.named_parameters() if "lm_head" not in name]
        return hidden.detach() * mask[..., None], list(torch.autograd.grad((hidden * weights).sum(), trained))

    alone = run()
    take_back = share_prompts(model)
    shared = run()
    take_back()
    again = run()
    assert torch.allclose(shared[0], alone[0], atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(shared[1], alone[1], strict=True))
    assert torch.equal(again[0], alone[0])


def test_what_two_answers_share_is_computed_once() -> None:
    prompt = list(range(1, 41))
    ids, mask = batch([([*prompt, 50, 51, 52], [*prompt, 60, 61])] * 4)
    rows = pack(ids, mask)
    assert rows.ids.shape == (4, 48)  # 40 + 3 + 2 in one row of 48 instead of two of 43
    assert rows.ids[0, :45].tolist() == [*prompt, 50, 51, 52, 60, 61]
    assert rows.positions[0, 40:45].tolist() == [40, 41, 42, 40, 41]
    assert not rows.allowed[0, 0, 43:45, 40:43].any()  # the rejected answer does not see the chosen one
    assert rows.allowed[0, 0, 43:45, :40].all()


def test_rows_beyond_a_sliding_window_are_left_alone() -> None:
    model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=8, attn_implementation="eager"))
    ids, mask = batch(drawn_pairs())
    given = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    alone = model.model(**given).last_hidden_state
    share_prompts(model)
    assert torch.equal(model.model(**given).last_hidden_state, alone)


def test_dpo_is_the_same_training_with_and_without(
    params: RunParams, card: DataCard, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "train_in_bf16", lambda params: False)
    sft = sft_stage(Run(params), card, cases)
    logs = []
    for how in ("shared", "alone"):
        run = Run(params.model_copy(update={"results": str(tmp_path / how)}))
        with monkeypatch.context() as patched:
            if how == "alone":
                patched.setattr(shared_prompt, "share_prompts", not_itself)
            stage = dpo_stage(run, card, cases, sft)
        assert stage.facts["shared_prompts"] == (how == "shared")
        logs.append(training_log(stage))
    for column in ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "grad_norm"):
        assert logs[0][column].tolist() == pytest.approx(logs[1][column].tolist(), rel=1e-3, abs=1e-5), column


def test_a_model_that_cannot_share_is_trained_as_by_trl(
    params: RunParams, card: DataCard, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    sft = sft_stage(run := Run(params), card, cases)
    monkeypatch.setattr(shared_prompt, "share_prompts", refuses)
    stage = dpo_stage(run, card, cases, sft)
    assert not stage.facts["shared_prompts"]
    assert training_log(stage)["loss"].notna().all()


def test_a_mixture_of_experts_does_not_share() -> None:
    trainer = type("Trainer", (), {"aux_loss_enabled": True})()
    assert shared_prompt.share_prompts_if_equal(trainer) is None


def refuses(model: Any) -> Any:
    """As where a model unpacks the shape of its mask."""
    backbone = model.get_base_model().base_model
    forward = backbone.forward

    def wrong(**given: Any) -> Any:
        raise ValueError("too many values to unpack (expected 2)")

    backbone.forward = wrong
    return lambda: setattr(backbone, "forward", forward)


def not_itself(model: Any) -> Any:
    """As where a model takes no mask from outside: its hidden states come out otherwise."""
    backbone = model.get_base_model().base_model
    forward = backbone.forward

    def wrong(**given: Any) -> Any:
        made = forward(**given)
        made.last_hidden_state = made.last_hidden_state.roll(1, dims=1)
        return made

    backbone.forward = wrong
    return lambda: setattr(backbone, "forward", forward)
