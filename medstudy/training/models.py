"""Loading: one function for built-in models, local folders and hub ids, the same for every arm."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medstudy.params import BUILTIN, RunParams, refuse_missing
from medstudy.training.architectures import loader, prepare
from medstudy.training.checkpoint import MISTAKES, ModelError, check_files, locate, reach, revision

#: bf16 is taken on a CPU if its products are so many times faster. Measured were .6 (Intel without AMX) and 1.9 to 2.6
#: (AMD, on a busy machine): the bound lies far from both, as an answer that wavered would train stages again.
BF16_GAIN = 1.5

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    """The model's tokenizer, with an end token and one to pad with.

    Raises:
        ModelError: the model cannot be reached, or its tokenizer has no end token.
    """
    from transformers import AutoTokenizer

    quiet_libraries()
    check_files(locate(params))
    tokenizer = _load(params, AutoTokenizer.from_pretrained)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"model = {params.model!r} has no end token, so it would never stop; choose an instruct model")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= vocabulary(params):
        tokenizer.pad_token = tokenizer.eos_token
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

    if params.model in BUILTIN:
        use_one_thread()
    check_files(locate(params))
    config = load_config(params)
    prepare(config)
    arguments = {"config": config, "output_loading_info": True, **_load_arguments(params, trainable)}
    made, loaded = _load(params, loader(config), **arguments)
    if loaded["missing_keys"]:
        some = ", ".join(sorted(loaded["missing_keys"])[:3])
        raise ModelError(f"model = {params.model!r}: its files lack {some}, which would be random; download it again")
    _check_spread(made, params)
    _run_once(made, params)
    made.config.use_cache = True
    if adapter is not None:
        from peft import PeftModel

        made = PeftModel.from_pretrained(made, str(adapter), is_trainable=trainable)
        if merged and compute_dtype(params) == torch.float32 and params.quantization == "none":
            made = made.merge_and_unload()
    return made.train(trainable)


def load_config(params: RunParams) -> Any:
    """The checkpoint's config."""
    from transformers import AutoConfig

    return _load(params, AutoConfig.from_pretrained)


def context_length(params: RunParams) -> int:
    """Tokens that the model can hold, prompt and answer together.

    Raises:
        ModelError: its config does not say.
    """
    text = load_config(params).get_text_config()
    for name in ("max_position_embeddings", "max_seq_len", "seq_length"):
        if isinstance(getattr(text, name, None), int):
            return int(getattr(text, name))
    known = load_tokenizer(params).model_max_length
    if known < 1e7:
        return int(known)
    raise ModelError(
        f"model = {params.model!r}: neither config nor tokenizer says how many tokens it holds; write "
        '"max_position_embeddings" into its config.json (state space models, as Mamba, are not supported)'
    )


def vocabulary(params: RunParams) -> int:
    """How many tokens the model has embeddings for."""
    return int(load_config(params).get_text_config().vocab_size)


def stop_tokens(params: RunParams) -> tuple[int, ...]:
    """Tokens at which the checkpoint's own settings end generation."""
    from transformers import GenerationConfig

    config = load_config(params)
    try:
        listed = GenerationConfig.from_pretrained(locate(params), revision=revision(params)).eos_token_id
    except OSError:
        listed = config.get_text_config().eos_token_id
    return tuple([listed] if isinstance(listed, int) else listed or [])


def cpu_multiplies_bf16() -> bool:
    """Whether this processor has bf16 instructions."""
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def train_in_bf16(params: RunParams) -> bool:
    """Whether a training multiplies in bf16: on a GPU as the weights are; on a CPU where it is measured to pay."""
    import torch

    if torch.cuda.is_available():
        return compute_dtype(params) == torch.bfloat16
    if params.dtype == "float32" or not cpu_multiplies_bf16():
        return False
    return _times_faster(1024, 4096) >= BF16_GAIN


@cache
def _times_faster(hidden: int, inner: int) -> float:
    """How many times faster a linear layer and its gradient are in bf16, at their best of several trials."""
    import torch

    up, down = (torch.randn(*shape) for shape in ((inner, hidden), (hidden, inner)))
    rows = torch.randn(256, hidden, requires_grad=True)

    def seconds(bf16: bool) -> float:
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            made = torch.nn.functional.linear(torch.nn.functional.linear(rows, up), down)
        made.float().sum().backward()
        return time.perf_counter() - started

    trials = [(seconds(False), seconds(True)) for _ in range(6)][1:]
    return min(plain for plain, _ in trials) / min(bf16 for _, bf16 in trials)


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
        # a model that is larger than one GPU is spread over those that the run was given
        arguments["device_map"] = "auto" if torch.cuda.device_count() > 1 else {"": 0}
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


def _load(params: RunParams, load: Any, **arguments: Any) -> Any:
    commit = {"revision": revision(params)} if revision(params) else {}
    return reach(params.model, load, locate(params), **commit, **arguments)


def _run_once(model: Any, params: RunParams) -> None:
    """Three tokens through the model: a config that does not fit its code is seen before hours of work."""
    import torch

    if model.base_model is model:  # what TRL's losses are computed from
        raise ModelError(f"model = {params.model!r}: TRL does not find the backbone of a {type(model).__name__}")
    try:
        with torch.inference_mode():
            model.eval()(input_ids=torch.zeros((1, 3), dtype=torch.long, device=model.device))
    except torch.OutOfMemoryError:
        raise
    except MISTAKES as error:
        raise ModelError(f"model = {params.model!r} does not run ({error}); see its config.json") from error


def _check_spread(model: Any, params: RunParams) -> None:
    elsewhere = {"cpu", "disk"} & set(map(str, getattr(model, "hf_device_map", {}).values()))
    if elsewhere and "cuda" in str(model.device):
        raise ModelError(
            f"model = {params.model!r} does not fit the GPUs here: parts of it would be on {elsewhere}; "
            "give the run more of them (`gpu` in the study file) or choose a smaller model"
        )
