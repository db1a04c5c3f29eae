"""Ways of decoding side by side: `python tests/benchmarks/generation.py`.

SmolLM2, 64 harmless requests in the Alpaca template, 48 new tokens each: the end token is switched off, so
that all write the same number of tokens. Prints seconds, tokens a second and ratios of one prompt at a time, batches of
the library's `generate`, and slots; then, with the end token back, batches and slots once more (rows that have ended
leave the slots), and the share of answers that are the same in both and alone. The steps of slots are recorded as CUDA
graphs on a GPU only: elsewhere they show what the cache and the loop cost.
"""

import argparse
import tempfile
import time
from pathlib import Path as Folder

import torch
import yaml

from harness.corpora.encode import Encoding
from harness.corpora.examples import Example
from harness.generation.answers import Path
from harness.generation.decoding import Decoding
from harness.generation.transformers import agreement, generate
from harness.models.gguf import GgufModel
from harness.models.loading import ModelRef, loaded_model

SETTINGS = Folder(__file__).parents[2] / "conf" / "model" / "smollm2.yaml"
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
    parser.add_argument("--base", type=Folder, help="a stored SmolLM2 base; converted afresh where it is not given")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--batch", type=int, default=64)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        base = asked.base or Folder(scratch)
        if asked.base is None:
            settings = yaml.safe_load(SETTINGS.read_text())["source"]
            settings.pop("_target_")
            GgufModel(**settings).write(base)
        with loaded_model(ModelRef(base_key="smollm2", base=base), {}) as lent:
            prompts = [Encoding().question(example) for example in requests()[: asked.prompts]]
            decoding, ends = Decoding(), (lent.tokenizer.eos_token, lent.model.generation_config.eos_token_id)

            def answered(batch_size: int, texts: list[str], path: Path) -> tuple[float, list[str]]:
                start = time.perf_counter()
                found = generate(
                    lent.model,
                    lent.tokenizer,
                    texts,
                    new_tokens=asked.tokens,
                    decoding=decoding,
                    batch_size=batch_size,
                    path=path,
                )
                return time.perf_counter() - start, found

            lent.tokenizer.eos_token = None
            lent.model.generation_config.eos_token_id = None
            answered(2, prompts[:2], Path.PLAIN)
            answered(2, prompts[:2], Path.SLOTS)
            written = len(prompts) * asked.tokens
            print(f"threads {torch.get_num_threads()}, {len(prompts)} prompts x {asked.tokens} tokens", flush=True)
            alone, _ = answered(1, prompts, Path.PLAIN)
            print(f"one at a time  {alone:7.1f} s  {written / alone:7.1f} tokens/s", flush=True)
            together, _ = answered(asked.batch, prompts, Path.PLAIN)
            print(f"batches of {asked.batch:<3} {together:7.1f} s  {written / together:7.1f} tokens/s", flush=True)
            print(f"ratio          {alone / together:7.2f}", flush=True)
            in_slots, _ = answered(asked.batch, prompts, Path.SLOTS)
            print(f"{asked.batch:<3} slots      {in_slots:7.1f} s  {written / in_slots:7.1f} tokens/s", flush=True)
            print(f"ratio          {together / in_slots:7.2f} to batches", flush=True)
            lent.tokenizer.eos_token, lent.model.generation_config.eos_token_id = ends
            # A quarter of the rows at once: the others wait until rows end.
            few = max(1, len(prompts) // 4)
            together, expected = answered(few, prompts, Path.PLAIN)
            in_slots, found = answered(few, prompts, Path.SLOTS)
            print(f"{few} at once, with the end token: batches {together:.1f} s, slots {in_slots:.1f} s", flush=True)
            print(f"ratio          {together / in_slots:7.2f} to batches", flush=True)
            same = sum(one == other for one, other in zip(expected, found, strict=True)) / len(prompts)
            print(f"same answers   {same:7.2%} of {len(prompts)} in batches and slots", flush=True)
            same = agreement(
                lent.model,
                lent.tokenizer,
                prompts[:16],
                new_tokens=asked.tokens,
                decoding=decoding,
                batch_size=16,
            )
    print(f"same answers   {same:7.2%} of {len(prompts[:16])} in batches and alone")


if __name__ == "__main__":
    main()
