"""Fixtures: a two-layer model with hidden size 8 and its tokenizer, built in a second; no network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from demo.pretraining import RECIPES, new_model, train_tokenizer
from medstudy.data.card import DataCard, load_card
from medstudy.data.cases import Case
from medstudy.params import RunParams, resolve


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained model that loads like any local model."""
    recipe = dataclasses.replace(
        RECIPES["builtin/llama"],
        vocabulary=400,
        hidden=8,
        head_size=4,
        layers=2,
        heads=2,
        key_value_heads=2,
        intermediate=16,
        context=512,
        tokenizer_documents=200,
    )
    tokenizer = train_tokenizer(recipe)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    new_model(recipe, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def params(tiny_model: Path, tmp_path: Path) -> RunParams:
    """A run of the tiny model on made-up cases, in seconds."""
    return resolve(
        {
            "task": "text_classification",
            "data": "synthetic_uti",
            "study": "unit",
            "model": str(tiny_model),
            "results": str(tmp_path / "results"),
            "lora_rank": 2,
            "batch_size": 2,
            "sft_epochs": 1,
            "dpo_epochs": 1,
            "samples_per_case": 2,
            "max_new_tokens": 4,
            "eval_batch_size": 4,
        }
    )


@pytest.fixture
def card() -> DataCard:
    """The card that words the prompts of `cases`."""
    return load_card("synthetic_uti")


@pytest.fixture
def cases() -> list[Case]:
    """Eight short cases, each a group of its own."""
    texts = ["dysuria today", "no dysuria", "culture positive", "culture sterile"] * 2
    labels = ["yes", "no"] * 4
    return [
        Case(f"case{i}", f"group{i}", f"{text}, patient {i}", {"label": label})
        for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]
