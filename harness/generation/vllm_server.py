"""A process that answers with vLLM, run by the interpreter of vLLM's own environment; the harness never imports it.

It needs nothing but vLLM and the standard library, and speaks JSON, one object a line. The first line it reads are the
arguments of ``vllm.LLM``; each further one is a request: ``prompts`` (lists of tokens), ``new_tokens``, ``ends``
(tokens that end an answer) and ``adapter`` (a folder, or null). It answers with ``version`` once it is ready and with
``tokens`` to each request, and ends with its input.
"""

import json
import os
import sys
from typing import IO, Any


def main() -> None:
    """Read requests until the input ends."""
    # What libraries print must not come between the answers.
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
