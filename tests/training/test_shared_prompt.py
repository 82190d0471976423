"""A prompt that is read once for both answers of a pair: the same hidden states, gradients and trainings."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from test_fit import dpo_stage, sft_stage
from transformers import AutoConfig, AutoModelForCausalLM

from medstudy.data.card import DataCard
from medstudy.data.cases import Case
from medstudy.params import RunParams
from medstudy.runs import Run
from medstudy.training import arguments, shared_prompt
from medstudy.training.fit import training_log
from medstudy.training.shared_prompt import share_prompts


def small(kind: str, attention: str = "eager", **others: Any) -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape |= {"intermediate_size": 128, "vocab_size": 100} | others
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape), attn_implementation=attention)


def batch(pairs: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """As TRL's collator makes it: chosen, then rejected, padded on the right."""
    rows = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def drawn_pairs() -> list[tuple[list[int], list[int]]]:
    """Many lengths; answers that begin alike, are the same, or one within the other."""
    rng = random.Random(0)
    some = lambda n: [rng.randint(1, 99) for _ in range(n)]  # noqa: E731
    pairs = [((p := some(3 + 4 * i)) + some(2 + i), p + some(7 - i)) for i in range(5)]
    return [*pairs, ([1, 2, 3, 4, 5], [1, 2, 3, 4, 6]), ([1, 2, 3], [1, 2, 3]), ([1, 2, 3], [1, 2, 3, 4, 5])]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_hidden_states_and_gradients_are_those_of_separate_rows(kind: str, attention: str) -> None:
    model, given = small(kind, attention), batch(drawn_pairs())
    mask = given["attention_mask"][..., None]
    weights = torch.randn(*mask.shape[:2], 64) * mask

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        hidden = model.model(**given, use_cache=False).last_hidden_state
        trained = [p for name, p in model.named_parameters() if "lm_head" not in name]
        return hidden.detach() * mask, list(torch.autograd.grad((hidden * weights).sum(), trained))

    alone = run()
    take_back = share_prompts(model)
    shared = run()
    take_back()
    assert torch.allclose(shared[0], alone[0], atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(shared[1], alone[1], strict=True))
    assert torch.equal(run()[0], alone[0])


def test_rows_beyond_a_sliding_window_are_left_alone() -> None:
    model, given = small("mistral", sliding_window=8), batch(drawn_pairs())
    alone = model.model(**given, use_cache=False).last_hidden_state
    share_prompts(model)
    assert torch.equal(model.model(**given, use_cache=False).last_hidden_state, alone)


def wrongly_shared(model: Any) -> Any:
    """A `share_prompts` for a model that takes no such mask and so gives other hidden states."""
    backbone = model.get_base_model().base_model
    forward = backbone.forward

    def wrong(**given: Any) -> Any:
        made = forward(**given)
        made.last_hidden_state = made.last_hidden_state.roll(1, dims=1)
        return made

    backbone.forward = wrong
    return lambda: setattr(backbone, "forward", forward)


def test_dpo_is_the_same_training_with_and_without(
    params: RunParams, card: DataCard, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "train_in_bf16", lambda params: False)
    sft, logs = sft_stage(Run(params), card, cases), []
    for how in ("shared", "differs"):
        run = Run(params.model_copy(update={"results": str(tmp_path / how)}))
        with monkeypatch.context() as patched:
            if how != "shared":
                patched.setattr(shared_prompt, "share_prompts", wrongly_shared)
            stage = dpo_stage(run, card, cases, sft)
        assert stage.facts["shared_prompts"] == (how == "shared")
        logs.append(training_log(stage))
    for column in ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "grad_norm"):
        assert logs[1][column].tolist() == pytest.approx(logs[0][column].tolist(), rel=1e-3, abs=1e-5), column


def test_a_mixture_of_experts_does_not_share() -> None:
    trainer = type("Trainer", (), {"aux_loss_enabled": True})()
    assert shared_prompt.share_prompts_if_equal(trainer) is None
