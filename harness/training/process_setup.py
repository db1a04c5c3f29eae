"""Set-up of every process that runs stages: threads, tokenizer parallelism and progress bars."""

import os


def prepare_process(threads: int | None) -> None:
    """Apply the process-wide settings; ``threads`` are torch's intra-op threads, None keeps torch's default."""
    import torch
    from transformers.utils import logging as transformers_logging

    # The progress bars of loading and saving would overwrite the harness's own output.
    transformers_logging.disable_progress_bar()
    # Tokenizer threads deadlock after a fork; the harness calls tokenizers from a single thread anyway.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if threads is not None:
        torch.set_num_threads(threads)
