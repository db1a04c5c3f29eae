"""Set-up of every process that runs stages: threads, tokenizer parallelism and progress bars."""

import os

from harness.execution.cluster import VLLM_PYTHON
from harness.execution.judge_service import JudgeService, to_environment


def prepare_process(
    threads: int | None, *, vllm_python: str | None = None, judge_service: JudgeService | None = None
) -> None:
    """Apply the process-wide settings.

    Args:
        threads: torch's intra-op threads; None keeps torch's default.
        vllm_python: Python interpreter of an environment that has vLLM; None keeps what the environment names.
        judge_service: the service that a judge asks; None keeps what the environment states.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    # The progress bars of loading and saving would overwrite the harness's own output.
    transformers_logging.disable_progress_bar()
    # Tokenizer threads deadlock after a fork; the harness calls tokenizers from a single thread anyway.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if vllm_python is not None:
        os.environ[VLLM_PYTHON] = vllm_python
    if judge_service is not None:
        to_environment(judge_service)
    if threads is not None:
        torch.set_num_threads(threads)
