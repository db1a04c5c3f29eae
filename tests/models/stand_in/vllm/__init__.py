"""A stand-in for the offline API of vLLM, as far as the harness uses it: greedy, prompt by prompt, with transformers.

It is found by an interpreter of its own environment only, and is as strict as vLLM about what it is given. Libraries,
which take seconds to import, are imported where they are used: PEFT in a process that loads an adapter.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vllm.lora.request import LoRARequest

if TYPE_CHECKING:
    import torch

__version__ = "0.0.1"


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int = 16
    stop_token_ids: list[int] = field(default_factory=list)
    detokenize: bool = True


@dataclass
class CompletionOutput:
    token_ids: list[int]


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput]


class LLM:
    def __init__(
        self, model: str, *, dtype: str = "auto", enable_lora: bool = False, max_loras: int = 1, max_lora_rank: int = 16
    ) -> None:
        sys.stdout.write(f"loading {model}\n")  # as vLLM does, where the harness reads
        if (Path(model) / "unsupported").exists():
            raise ValueError("this architecture is not supported")
        if max_lora_rank not in (8, 16, 32, 64, 128, 256, 320, 512) or max_loras < 1:
            raise ValueError(f"max_lora_rank={max_lora_rank} is not supported")
        import torch
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self._rank = max_lora_rank if enable_lora else 0
        self._loaded: dict[int, str] = {}

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: SamplingParams,
        *,
        lora_request: LoRARequest | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        assert sampling_params.temperature == 0
        assert not use_tqdm
        if lora_request is None:
            return self._written(self._model, prompts, sampling_params)
        if self._loaded.setdefault(lora_request.lora_int_id, lora_request.lora_path) != lora_request.lora_path:
            raise ValueError(f"number {lora_request.lora_int_id} stands for another adapter")
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(self._model, lora_request.lora_path).eval()
        try:
            if adapted.peft_config["default"].r > self._rank:
                raise ValueError(f"rank {adapted.peft_config['default'].r} is greater than {self._rank}")
            return self._written(adapted, prompts, sampling_params)
        finally:
            self._model = adapted.unload()

    def _written(
        self, model: torch.nn.Module, prompts: list[dict[str, list[int]]], asked: SamplingParams
    ) -> list[RequestOutput]:
        import torch

        found = []
        for prompt in prompts:
            new: list[int] = []
            while len(new) < asked.max_tokens and (not new or new[-1] not in asked.stop_token_ids):
                with torch.inference_mode():
                    logits = model(input_ids=torch.tensor([prompt["prompt_token_ids"] + new])).logits
                new.append(int(logits[0, -1].argmax()))
            found.append(RequestOutput([CompletionOutput(new)]))
        return found
