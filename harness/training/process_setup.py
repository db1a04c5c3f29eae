"""What every process that runs stages does first: threads and determinism."""

import os

from harness.execution.cluster import VLLM_PYTHON


def prepare_process(threads: int | None, *, vllm_python: str | None = None) -> None:
    """Settle what every process that runs stages has in common.

    Args:
        threads: CPU threads; None leaves torch's choice.
        vllm_python: the interpreter of an environment that has vLLM; None leaves what the environment names.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    # Loading and saving draw bars of their own, across ours.
    transformers_logging.disable_progress_bar()
    # Forked tokenizer threads dead-lock; ours are called from one thread anyway.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if vllm_python is not None:
        os.environ[VLLM_PYTHON] = vllm_python
    if threads is not None:
        torch.set_num_threads(threads)
