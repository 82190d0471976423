"""The built-in models' recipe: small, reproducible, built once, taken for whole only when it is."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from demo.pretraining import (
    RECIPES,
    WEIGHTS,
    new_model,
    pretrain,
    save,
    train_tokenizer,
)
from medstudy.files import slug
from medstudy.params import RunParams
from medstudy.training.checkpoint import BASE_MODELS, ModelError, locate, model_fingerprint
from medstudy.training.models import load_model, load_tokenizer

SMALL = {"vocabulary": 400, "hidden": 16, "layers": 1, "heads": 2, "key_value_heads": 1, "intermediate": 32}
SMALL |= {"head_size": 8, "tokens_per_batch": 600, "tokens": 30_000, "tokenizer_documents": 100}


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_same_recipe_gives_the_same_weights_and_what_is_saved_loads(
    name: str, params: RunParams, tmp_path: Path
) -> None:
    recipe, made = dataclasses.replace(RECIPES[name], **SMALL), []
    for _ in range(2):
        tokenizer = train_tokenizer(recipe)
        model = new_model(recipe, tokenizer)
        log = list(pretrain(model, tokenizer, recipe))
        made.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert 30_000 <= log[-1]["tokens"] < 30_600
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    assert torch.equal(*made)
    folder = save(name, model, tokenizer, log, tmp_path / "a")
    told = json.loads((folder / "recipe.json").read_text())
    assert told["sha256"] == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest() and told["step"] == len(log)
    saved = params.model_copy(update={"model": str(folder)})
    assert load_tokenizer(saved).get_vocab() == tokenizer.get_vocab()
    assert torch.equal(load_model(saved).model.norm.weight, model.model.norm.weight.float())


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_weights_that_ship_are_those_of_todays_recipe(name: str) -> None:
    """Red after a change of corpus or recipe: make them anew with `make base-models`."""
    folder = BASE_MODELS / slug(name)
    made = json.loads((folder / "recipe.json").read_text())
    assert made["sha256"] == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    recipe = RECIPES[name]
    tokenizer = train_tokenizer(recipe)
    model = new_model(recipe, tokenizer)
    assert 1e6 <= model.num_parameters() <= 3e6 and model.config.model_type == name.removeprefix("builtin/")
    steps = pretrain(model, tokenizer, recipe)
    again = [row["loss"] for row in itertools.islice(steps, 3)]
    logged = pd.read_csv(folder / "pretraining.csv")["loss"].head(3)
    assert again == pytest.approx(list(logged), abs=0.05)
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(folder).get_vocab()


def test_a_built_in_model_is_read_from_the_package_and_another_needs_a_folder(
    params: RunParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    builtin = params.model_copy(update={"model": "builtin/mistral"})
    tokenizer = load_tokenizer(builtin)
    turns = [{"role": "user", "content": "7.2?"}, {"role": "assistant", "content": "yes"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<s><|user|>7.2?<|end|><|assistant|>yes<|end|>"
    assert len(tokenizer("1234", add_special_tokens=False)["input_ids"]) == 4
    assert locate(builtin) == str(BASE_MODELS / "builtin-mistral")
    told = json.loads((BASE_MODELS / "builtin-mistral" / "recipe.json").read_text())
    assert model_fingerprint(builtin) == told["sha256"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for missing in ("nobody/no-such-model", str(tmp_path / "nowhere")):
        with pytest.raises(ModelError, match="cannot be loaded; .*give a local folder"):
            load_tokenizer(params.model_copy(update={"model": missing}))
