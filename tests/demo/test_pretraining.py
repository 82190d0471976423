"""The built-in models' recipe: small, reproducible, built once, taken for whole only when it is."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import itertools
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from demo import chats, pretraining
from demo.pretraining import (
    ASSISTANT,
    END,
    PAD,
    RECIPES,
    USER,
    batches,
    builtin_path,
    ensure_built,
    is_built,
    new_model,
    pretrain,
    train_tokenizer,
)
from medstudy.batch.run_notebook import lock_of
from medstudy.params import ParamsError, RunParams, resolve
from medstudy.runs import results_root
from medstudy.training.models import ModelError, load_tokenizer, model_fingerprint

SMALL = {
    "vocabulary": 400,
    "hidden": 16,
    "layers": 1,
    "heads": 2,
    "key_value_heads": 1,
    "intermediate": 32,
    "head_size": 8,
    "tokens_per_batch": 600,
    "tokens": 30_000,
    "tokenizer_documents": 100,
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both recipes, made tiny, so that the weights that ship are not theirs."""
    tiny = {name: dataclasses.replace(recipe, **SMALL) for name, recipe in RECIPES.items()}
    monkeypatch.setattr(pretraining, "RECIPES", tiny)


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_loss_falls_and_the_same_recipe_gives_the_same_weights(name: str) -> None:
    recipe = dataclasses.replace(RECIPES[name], **SMALL)
    made = []
    for _ in range(2):
        tokenizer = train_tokenizer(recipe)
        model = new_model(recipe, tokenizer)
        log = list(pretrain(model, tokenizer, recipe))
        made.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert 30_000 <= log[-1]["tokens"] < 30_600
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    assert torch.equal(*made)


def test_a_row_is_one_document_and_what_users_say_counts_little() -> None:
    recipe = dataclasses.replace(RECIPES["builtin/llama"], **SMALL)
    tokenizer = train_tokenizer(recipe)
    ids, weights = next(batches(recipe, tokenizer))
    assert ids.shape == weights.shape
    assert ids.numel() <= 600
    for row, counts in zip(ids.tolist(), weights.tolist(), strict=True):
        weight, expected = 1.0, []
        for token in tokenizer.convert_ids_to_tokens(row):
            weight = {USER: recipe.user_weight, ASSISTANT: 1.0, END: 1.0, PAD: 0.0}.get(token, weight)
            expected.append(weight)
        assert counts == pytest.approx(expected)
        assert row.count(tokenizer.bos_token_id) == 1
    spoken = [row for row in ids.tolist() if tokenizer.convert_tokens_to_ids(USER) in row]
    assert len(spoken) > 0


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_weights_that_ship_are_those_of_todays_recipe(name: str, tmp_path: Path) -> None:
    """Red after a change of corpus or recipe: make them anew with `make base-models`."""
    folder = builtin_path(name, tmp_path)
    assert folder.is_relative_to(pretraining.SHIPPED)
    made = json.loads((folder / "recipe.json").read_text())
    assert made["sha256"] == hashlib.sha256((folder / pretraining.WEIGHTS).read_bytes()).hexdigest()
    recipe = RECIPES[name]
    tokenizer = train_tokenizer(recipe)
    steps = pretrain(new_model(recipe, tokenizer), tokenizer, recipe)
    again = [row["loss"] for row in itertools.islice(steps, 3)]
    logged = pd.read_csv(folder / "pretraining.csv")["loss"].head(3)
    assert again == pytest.approx(list(logged), abs=0.05)
    assert train_tokenizer(recipe).get_vocab() == AutoTokenizer.from_pretrained(folder).get_vocab()


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_real_recipes_are_small_and_of_their_architecture(name: str) -> None:
    recipe = dataclasses.replace(RECIPES[name], tokenizer_documents=200)
    model = new_model(recipe, train_tokenizer(recipe))
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 3e6
    assert model.config.model_type == name.removeprefix("builtin/")


def test_it_is_built_once_and_rebuilt_when_the_recipe_changes(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ensure_built("builtin/llama", tmp_path)
    first = (folder / "recipe.json").stat().st_mtime_ns
    assert is_built("builtin/llama", tmp_path)
    ensure_built("builtin/llama", tmp_path)
    assert (folder / "recipe.json").stat().st_mtime_ns == first
    other = dataclasses.replace(pretraining.RECIPES["builtin/llama"], learning_rate=0.01)
    monkeypatch.setitem(pretraining.RECIPES, "builtin/llama", other)
    assert not is_built("builtin/llama", tmp_path)


def test_a_built_in_model_loads_through_the_same_function(small: None, params: RunParams) -> None:
    builtin = params.model_copy(update={"model": "builtin/mistral"})
    tokenizer = load_tokenizer(builtin)
    turns = [{"role": "user", "content": "7.2?"}, {"role": "assistant", "content": "yes"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<s><|user|>7.2?<|end|><|assistant|>yes<|end|>"
    assert len(tokenizer("1234", add_special_tokens=False)["input_ids"]) == 4
    built = builtin_path("builtin/mistral", results_root(builtin))
    assert model_fingerprint(builtin) == json.loads((built / "recipe.json").read_text())["sha256"]


def test_models_that_cannot_be_had_are_named_with_a_remedy(
    params: RunParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ParamsError, match="builtin/lama.*did you mean 'builtin/llama'"):
        resolve(params.model_dump() | {"model": "builtin/lama"})
    for missing in ("nobody/no-such-model", str(tmp_path / "nowhere")):
        with pytest.raises(ModelError, match="cannot be loaded; give a local folder"):
            load_tokenizer(params.model_copy(update={"model": missing}))


def test_the_recipe_key_knows_the_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus that has changed would leave stale weights in use, without a word."""
    recipe = RECIPES["builtin/llama"]
    key = pretraining.recipe_key(recipe)
    monkeypatch.setattr(chats, "_yes", lambda truth: "yes")
    pretraining.recipe_key.cache_clear()
    assert pretraining.recipe_key(recipe) != key
    monkeypatch.undo()
    pretraining.recipe_key.cache_clear()
    assert pretraining.recipe_key(recipe) == key


def test_a_notebook_that_builds_a_model_does_not_wait_for_its_own_lock(small: None, tmp_path: Path) -> None:
    folder = tmp_path / "base_models"
    folder.mkdir()
    with lock_of(folder / "builtin-llama.ipynb").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert ensure_built("builtin/llama", tmp_path).is_dir()
