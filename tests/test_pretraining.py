"""The built-in models' recipe: small, reproducible, built once, taken for whole only when it is."""

from __future__ import annotations

import ast
import dataclasses
import fcntl
from pathlib import Path

import pytest
import torch

from medstudy import pretraining
from medstudy.models import ModelError, load_tokenizer, locate, model_fingerprint
from medstudy.params import RunParams
from medstudy.pretraining import RECIPES, ensure_built, is_built, new_model, pretrain, train_tokenizer
from medstudy.run_notebook import lock_of

SMALL = {
    "vocabulary": 400,
    "hidden": 16,
    "layers": 1,
    "heads": 2,
    "key_value_heads": 1,
    "intermediate": 32,
    "block": 32,
    "batch": 4,
    "tokens": 80 * 128,
    "tokenizer_documents": 100,
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both recipes, made tiny."""
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
    assert len(log) == 80
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    assert torch.equal(*made)


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
    assert (
        tokenizer.apply_chat_template(turns, tokenize=False)
        == "<s><|user|>7.2?<|end|><|assistant|>yes<|end|>"
    )
    assert len(tokenizer("1234", add_special_tokens=False)["input_ids"]) == 4
    assert model_fingerprint(builtin) == pretraining.recipe_key("builtin/mistral")


def test_models_that_cannot_be_had_are_named_with_a_remedy(
    params: RunParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="builtin/lama.*allowed: builtin/llama, builtin/mistral"):
        locate(params.model_copy(update={"model": "builtin/lama"}))
    for missing in ("nobody/no-such-model", str(tmp_path / "nowhere")):
        with pytest.raises(ModelError, match="cannot be loaded; give a local folder"):
            load_tokenizer(params.model_copy(update={"model": missing}))


def test_the_recipe_key_knows_every_source_of_the_corpus() -> None:
    """A changed source that is not in the key would leave a stale model in use, without a word."""
    folder = Path(pretraining.__file__).parent / "data" / "synthetic"
    seen, waiting = set(), ["corpus"]
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medstudy.data.synthetic"):
                inside = node.module.removeprefix("medstudy.data.synthetic").strip(".")
                found = [inside] if inside else [alias.name for alias in node.names]
                waiting += [n for n in found if n not in seen]
    assert {f"data.synthetic.{name}" for name in seen} == set(pretraining.CORPUS_SOURCES)


def test_a_notebook_that_builds_a_model_does_not_wait_for_its_own_lock(small: None, tmp_path: Path) -> None:
    folder = tmp_path / "base_models"
    folder.mkdir()
    with lock_of(folder / "builtin-llama.ipynb").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert ensure_built("builtin/llama", tmp_path).is_dir()
