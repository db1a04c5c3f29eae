"""Batched generation beside one prompt at a time: `python tests/benchmarks/generation.py`.

SmolLM2, 64 harmless requests in the Alpaca template, 48 new tokens each: the end token is switched off, so
that both sides write the same number of tokens. Prints seconds, tokens a second, and the ratio; then, with the end
token back, the share of answers that are the same in both.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
import yaml

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example
from harness.generation.decoding import Decoding
from harness.generation.transformers import agreement, generate
from harness.models.gguf import GgufModel
from harness.models.loading import ModelRef, loaded_model

SETTINGS = Path(__file__).parents[2] / "conf" / "model" / "smollm2.yaml"
OPENINGS = ("How do I", "Write a short guide on how to", "Explain to a beginner how to", "What is the best way to")
ACTIONS = (
    "bake bread",
    "repair an old bicycle",
    "plan a vegetable garden on a balcony",
    "choose a telescope",
    "read a map without a compass",
    "learn the violin as an adult",
    "photograph birds at dawn",
    "store winter clothes so that moths stay away",
)
ENDINGS = ("", " in a small town with little money")


def requests() -> list[Example]:
    """Return 64 different requests of different lengths."""
    return [
        Example(instruction=f"{opening} {action}{ending}", output="")
        for opening in OPENINGS
        for action in ACTIONS
        for ending in ENDINGS
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, help="a stored SmolLM2 base; converted afresh where it is not given")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--batch", type=int, default=64)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base = asked.base or Path(scratch)
        if asked.base is None:
            settings = yaml.safe_load(SETTINGS.read_text())["source"]
            settings.pop("_target_")
            GgufModel(**settings).write(base)
        with loaded_model(ModelRef(base_key="smollm2", base=base), {}) as lent:
            prompts = [Encoding().prompt_text(example) for example in requests()[: asked.prompts]]
            decoding, ends = Decoding(), (lent.tokenizer.eos_token, lent.model.generation_config.eos_token_id)

            def seconds(batch_size: int, texts: list[str]) -> float:
                start = time.perf_counter()
                generate(
                    lent.model,
                    lent.tokenizer,
                    texts,
                    new_tokens=asked.tokens,
                    decoding=decoding,
                    batch_size=batch_size,
                )
                return time.perf_counter() - start

            lent.tokenizer.eos_token = None
            lent.model.generation_config.eos_token_id = None
            seconds(2, prompts[:2])
            written = len(prompts) * asked.tokens
            print(f"threads {torch.get_num_threads()}, {len(prompts)} prompts x {asked.tokens} tokens", flush=True)
            alone = seconds(1, prompts)
            print(f"one at a time  {alone:7.1f} s  {written / alone:7.1f} tokens/s", flush=True)
            together = seconds(asked.batch, prompts)
            print(f"batches of {asked.batch:<3} {together:7.1f} s  {written / together:7.1f} tokens/s", flush=True)
            print(f"ratio          {alone / together:7.2f}", flush=True)
            lent.tokenizer.eos_token, lent.model.generation_config.eos_token_id = ends
            same = agreement(
                lent.model,
                lent.tokenizer,
                prompts[:16],
                new_tokens=asked.tokens,
                decoding=decoding,
                batch_size=16,
            )
    print(f"same answers   {same:7.2%} of {len(prompts[:16])}, with the end token")


if __name__ == "__main__":
    main()
