"""An inference server that runs in vLLM's own environment; a script that the harness never imports.

It depends only on vLLM and the standard library, and exchanges JSON lines over stdin and stdout. The first line holds
the arguments of ``vllm.LLM``; each further line is a request with ``prompts`` (token ids), ``new_tokens``, ``ends``
(end-of-sequence token ids) and ``adapter`` (a folder or null). It replies with ``version`` when it is ready and with
``tokens`` to each request, and exits at the end of its input.
"""

import json
import os
import sys
from typing import IO, Any


def main() -> None:
    """Serve requests until the end of the input."""
    # Libraries print to stdout, which carries the replies: send their output to stderr.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        import vllm  # type: ignore[import-not-found]
        from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]
    except ImportError as error:
        _reply(replies, missing=str(error))
        return
    model = vllm.LLM(**json.loads(sys.stdin.readline()))
    _reply(replies, version=vllm.__version__)
    numbers: dict[str, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        folder = request["adapter"]
        outputs = model.generate(
            [{"prompt_token_ids": prompt} for prompt in request["prompts"]],
            vllm.SamplingParams(
                temperature=0.0,
                max_tokens=request["new_tokens"],
                stop_token_ids=request["ends"],
                detokenize=False,
            ),
            lora_request=folder and LoRARequest(folder, numbers.setdefault(folder, len(numbers) + 1), folder),
            use_tqdm=False,
        )
        _reply(replies, tokens=[list(output.outputs[0].token_ids) for output in outputs])


def _reply(replies: IO[str], **fields: Any) -> None:
    replies.write(json.dumps(fields) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
