"""Loading: one function for built-in models, local folders and hub ids, the same for every arm."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.params import BUILTIN, RunParams, refuse_missing
from medstudy.runs import fingerprint, from_root, slug

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Weights that come with the package; notebooks/base_model.ipynb made them.
BASE_MODELS = Path(__file__).resolve().parents[1] / "base_models"


class ModelError(RuntimeError):
    """A model cannot be had or cannot take the cases; the message names it and the remedy."""


def locate(params: RunParams) -> str:
    """What `from_pretrained` is given: a folder or a hub id. Built-in models lie in the package."""
    folder = BASE_MODELS / slug(params.model) if params.model in BUILTIN else from_root(params.model)
    return str(folder) if folder.is_dir() else params.model


def model_fingerprint(params: RunParams) -> str:
    """Changes when the weights do: a built-in model's hash, a folder's files, or the hub id."""
    source = Path(locate(params))
    if not source.is_dir():
        return fingerprint(str(source))
    if (source / "recipe.json").is_file():
        return str(json.loads((source / "recipe.json").read_text(encoding="utf-8"))["sha256"])
    return fingerprint([(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(source.glob("*.*"))])


def use_one_thread() -> None:
    """One CPU thread, unless OMP_NUM_THREADS says otherwise.

    Measured on two cores: for matrices this small a second thread gains a third when the machine is idle
    and costs a factor of twenty as soon as anything else runs, because waiting threads spin.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def quiet_libraries() -> None:
    """No progress bars and no deprecation notes of the libraries' own making in executed notebooks."""
    import warnings

    from datasets import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|trl|peft")


def load_tokenizer(params: RunParams) -> PreTrainedTokenizerBase:
    """The model's tokenizer, checked for what a study needs: a chat template and an end token.

    Raises:
        ModelError: the model cannot be reached, or its tokenizer has no chat template or no end token.
    """
    from transformers import AutoTokenizer

    quiet_libraries()
    tokenizer = _reach(params, AutoTokenizer.from_pretrained, locate(params))
    if not tokenizer.chat_template:
        raise ModelError(f"model = {params.model!r} has no chat template; choose an instruct model")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model = {params.model!r} has no end token, so it would never stop; choose an instruct model")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def load_model(
    params: RunParams, adapter: Path | None = None, trainable: bool = False, merged: bool = False
) -> PreTrainedModel:
    """The base model, with a saved LoRA adapter if one is given, in eval mode unless ``trainable``.

    The adapter bears the name ``default``: that is what makes `DPOTrainer` copy it as its reference.
    ``merged`` adds it to the weights where they are fp32, which decodes faster; in fewer bits the sum would
    be rounded to another model than the one that was trained.

    Raises:
        ModelError: the model cannot be reached, or needs a GPU that is not there.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if params.model in BUILTIN:
        use_one_thread()
    arguments = _load_arguments(params, trainable)
    model = _reach(params, AutoModelForCausalLM.from_pretrained, locate(params), **arguments)
    model.config.use_cache = True
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)
        if merged and compute_dtype(params) == torch.float32 and params.quantization == "none":
            model = model.merge_and_unload()
    return model.train(trainable)


def context_length(params: RunParams) -> int:
    """Tokens that the model can hold, prompt and answer together."""
    from transformers import AutoConfig

    return int(_reach(params, AutoConfig.from_pretrained, locate(params)).max_position_embeddings)


def stop_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens at which generation ends: the checkpoint's, and the one that ends a turn in its template."""
    listed = model.generation_config.eos_token_id
    listed = [listed] if isinstance(listed, int) else list(listed or [])
    return sorted({*listed, end_token(tokenizer)})


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an assistant turn in the chat template, which is what SFT learns to say last."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    # some templates put a newline behind the token that ends the turn
    last = ids[-1] if tokenizer.decode(ids[-1:]).strip() else ids[-2]
    if last not in tokenizer.all_special_ids:
        raise ModelError("the chat template does not end an answer with a special token: the model would never stop")
    return int(last)


@cache
def cpu_multiplies_bf16() -> bool:
    """Whether this processor has bf16 instructions; without them bf16 is slower than fp32."""
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def compute_dtype(params: RunParams) -> torch.dtype:
    """Dtype of the weights: as asked, else bf16 on a GPU that has it, else fp32."""
    import torch

    if params.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[params.dtype]
    gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if gpu else torch.float32


def _load_arguments(params: RunParams, trainable: bool) -> dict[str, Any]:
    import torch

    arguments: dict[str, Any] = {"dtype": compute_dtype(params)}
    if torch.cuda.is_available():
        arguments["device_map"] = "auto"  # a model that is larger than one GPU is spread over those visible
    exact = arguments["dtype"] == torch.float32 and params.quantization == "none"
    if params.model in BUILTIN and trainable and exact and not torch.cuda.is_available():
        # measured: for sequences this short eager attention trains 1.5 times faster than SDPA on a CPU; SDPA
        # answers faster, with less memory. In fewer bits the two differ by as much as the gates look for
        arguments["attn_implementation"] = "eager"
    if params.quantization == "4bit":
        refuse_missing(params)
        from transformers import BitsAndBytesConfig

        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype(params)
        )
    return arguments


def _reach(params: RunParams, load: Any, source: str, **arguments: Any) -> Any:
    try:
        return load(source, **arguments)
    except (OSError, ValueError) as error:
        text = str(error)
        if "gated" in text or "401" in text or "403" in text:
            remedy = "it is gated: accept its licence on the hub and log in with `hf auth login`"
        else:
            remedy = f"give a local folder, a reachable hub id, or one of {', '.join(BUILTIN)}"
        reason = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        raise ModelError(f"model = {params.model!r} cannot be loaded; {remedy} ({reason})") from None
