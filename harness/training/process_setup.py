"""What every process that runs stages does first: threads and determinism."""

import os


def prepare_process(threads: int | None) -> None:
    """Settle what every process that runs stages has in common."""
    import torch
    from transformers.utils import logging as transformers_logging

    # Loading and saving draw bars of their own, across ours.
    transformers_logging.disable_progress_bar()
    # Forked tokenizer threads dead-lock; ours are called from one thread anyway.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if threads is not None:
        torch.set_num_threads(threads)
