"""Decoding in slots, run eagerly on the CPU: the same generations as the library's `generate`."""

import random

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from harness.errors import ModelError
from harness.generation import slots
from harness.generation.answers import Path
from harness.generation.arithmetic import arithmetic_of, trained_arithmetic
from harness.generation.decoding import Decoding
from harness.generation.recorded import EAGER_STEPS, Recorded
from harness.generation.slot_cache import LayerShape
from harness.generation.token_choice import Rules
from harness.generation.transformers import answer
from harness.models import adapter

LONG = Decoding(max_prompt=100)
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "use_cache": False,
}
CAPPED = {"head_dim": 8, "initializer_range": 0.1, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
NINE_HEADS = {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72, "tie_word_embeddings": True}
FAMILIES = {
    "one head for each query": (LlamaConfig, {"num_key_value_heads": 4}),
    "grouped heads": (LlamaConfig, {}),
    "SmolLM2": (LlamaConfig, NINE_HEADS),
    "Qwen2": (Qwen2Config, {}),
    "Qwen2 with windows": (Qwen2Config, {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "Mistral": (MistralConfig, {"sliding_window": None}),
    "Mistral with windows": (MistralConfig, {"sliding_window": 5}),
    "Gemma 2": (Gemma2Config, {**CAPPED, "sliding_window": 5, "tie_word_embeddings": True}),
}


def made(family, *, attention="sdpa", dtype=torch.float32):
    kind, changes = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(
            kind(**SHAPE | changes), attn_implementation="eager" if kind is Gemma2Config else attention, dtype=dtype
        )
    return model.eval().requires_grad_(False)


def prompts(count=18, longest=14, seed=0):
    rng = random.Random(seed)
    lengths = [1, longest, *(rng.randint(1, longest) for _ in range(count - 2))]
    return [" ".join(f"w{rng.randrange(60)}" for _ in range(length)) for length in lengths]


def ended_by(model, tokenizer, asked, new_tokens=24):
    """Let a word end answers after which they have many different lengths."""
    free = answer(model, tokenizer, asked, new_tokens=new_tokens, decoding=LONG).texts
    places = {
        word: [text.split().index(word) for text in free if word in text.split()] for word in tokenizer.get_vocab()
    }
    tokenizer.eos_token = max(places, key=lambda word: len(set(places[word])))
    return tokenizer


@pytest.mark.parametrize(
    "family",
    ["grouped heads", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "grouped heads")],
)
def test_slots_give_the_answers_of_generate(family, make_tokenizer):
    model, asked = made(family), prompts()
    tokenizer = ended_by(model, make_tokenizer(), asked)
    plain = answer(model, tokenizer, asked, new_tokens=24, decoding=LONG)

    found = [
        answer(model, tokenizer, asked, new_tokens=24, decoding=LONG, batch_size=size, path=Path.SLOTS)
        for size in (1, 5, 64)
    ]

    assert len({len(text.split()) for text in plain.texts}) > 4
    assert [each.texts for each in found] == [plain.texts] * 3
    assert [(each.facts["path"], each.facts["batch"]) for each in found] == [("slots", 1), ("slots", 5), ("slots", 18)]
    assert (plain.facts["path"], plain.facts["why"]) == ("plain", "the device is cpu")


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_slots_hold_for_attached_adapters_and_either_attention(attention, make_tokenizer, save_adapter):
    asked, tokenizer = prompts(), make_tokenizer()
    bare = made("grouped heads", attention=attention)
    without = answer(bare, tokenizer, asked, new_tokens=9, decoding=LONG, path=Path.SLOTS)
    model = adapter.load(bare, save_adapter("a", seed=1, num_hidden_layers=3))

    plain = answer(model, tokenizer, asked, new_tokens=9, decoding=LONG, path=Path.PLAIN)
    found = answer(model, tokenizer, asked, new_tokens=9, decoding=LONG, batch_size=4, path=Path.SLOTS)

    assert found.texts == plain.texts
    assert found.texts != without.texts
    assert (found.facts["path"], plain.facts["why"]) == ("slots", "it was asked for")


def decoded(model, asked, *, size, new_tokens, ends, record=None):
    shapes = slots.shapes_of(model)
    longest = max(map(len, asked))
    decoder = slots.SlotDecoder(
        model, shapes, slots=size, longest=longest, rules=Rules(new_tokens=new_tokens, ends=tuple(ends)), record=record
    )
    return dict(decoder.decode(asked)), decoder.recorded


def test_rows_that_end_make_room_and_the_batch_shrinks():
    model = made("grouped heads")
    rng = random.Random(0)
    asked = [[rng.randrange(4, 64) for _ in range(rng.randint(2, 6))] for _ in range(11)]
    sizes, steps = [], []

    def record(run):
        """Stand in for the capture of a CUDA graph."""
        sizes.append(None)

        def replay():
            steps.append(len(sizes))
            run()

        return replay

    with torch.inference_mode():
        whole, _ = decoded(model, asked, size=11, new_tokens=40, ends=[])
        end = next(token for token in whole[0] if sum(token in row for row in whole.values()) in range(4, 8))
        short, recorded = decoded(model, asked, size=8, new_tokens=40, ends=[end], record=record)

    assert [whole[i][: len(short[i])] for i in whole] == [short[i] for i in whole]
    lengths = {i: whole[i].index(end) + 1 if end in whole[i] else 40 for i in whole}
    assert {
        i: next((at + 1 for at, token in enumerate(row) if token == end), 40) for i, row in short.items()
    } == lengths
    assert all(len(row) <= 40 for row in short.values())
    # Batches of 8, 4 (of 4 rows that go on to the end, at most), and smaller ones: one graph for each.
    assert recorded.graphs == len(sizes) > 1
    assert recorded.trouble == ""


def test_step_is_recorded_after_two_of_its_shape_and_launched_singly_where_that_fails():
    taken = []
    recorded = Recorded(lambda rows, length: taken.append((rows, length)), record=lambda run: run)
    for _ in range(EAGER_STEPS + 3):
        recorded(4, 128)
    recorded(2, 128)

    def refuse(run):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    failing = Recorded(lambda rows, length: taken.append((rows, length)), record=refuse)
    for _ in range(EAGER_STEPS + 2):
        failing(1, 128)

    assert taken == [(4, 128)] * 5 + [(2, 128)] + [(1, 128)] * 4
    assert (recorded.graphs, recorded.trouble) == (1, "")
    assert failing.graphs == 0
    assert failing.trouble == "a step cannot be recorded (operation not permitted when stream is capturing)"


@pytest.mark.slow
def test_memory_that_runs_out_halves_the_slots_and_keeps_what_is_written(make_tokenizer, monkeypatch, caplog):
    model, tokenizer, asked = made("grouped heads"), make_tokenizer(), prompts()
    plain = answer(model, tokenizer, asked, new_tokens=6, decoding=LONG)
    room, tried, real = 5, [], slots.SlotCache

    def scarce(shapes, *, slots, **rest):
        tried.append(slots)
        if slots > room:
            raise torch.OutOfMemoryError
        return real(shapes, slots=slots, **rest)

    monkeypatch.setattr(slots, "SlotCache", scarce)
    found = answer(model, tokenizer, asked, new_tokens=6, decoding=LONG, path=Path.SLOTS)

    assert found.texts == plain.texts
    assert tried == [2, 18, 9, 4]
    assert found.facts["batch"] == 4
    assert "batch size of 4" in caplog.text


@pytest.mark.slow
def test_memory_without_room_for_one_row_is_a_mistake_of_the_settings(make_tokenizer, monkeypatch):
    real = slots.SlotDecoder

    def scarce(*given, rules, **rest):
        if rules.new_tokens == 7:
            raise torch.OutOfMemoryError
        return real(*given, rules=rules, **rest)

    monkeypatch.setattr(slots, "SlotDecoder", scarce)
    with pytest.raises(ModelError, match=r"evaluation\.new_tokens"):
        answer(made("grouped heads"), make_tokenizer(), prompts(), new_tokens=7, decoding=LONG, path=Path.SLOTS)


def test_slots_are_as_many_as_memory_holds():
    shapes = [LayerShape(heads=8, key=128, value=128, dtype=torch.bfloat16)] * 32
    # 32 layers x 8 heads x 256 numbers x 2 bytes = 131,072 a token; 24 + 100 tokens are 128 positions of the cache.
    row = 131_072 * 128

    assert slots.count_for(shapes, 10 * row, [[1] * 24] * 50, 100) == 9
    assert slots.count_for(shapes, 1000 * row, [[1] * 24] * 50, 100) == 50
    assert slots.count_for(shapes, row // 2, [[1] * 24] * 50, 100) == 1
    assert slots.room(torch.device("cpu")) is None


def test_workers_of_one_gpu_leave_each_other_room():
    # 80 of which 50 are free: this process holds 20, of which the model uses 15.
    assert slots.fair_room(50, 80, held=20, used=15, workers=1) == 55
    assert slots.fair_room(50, 80, held=20, used=15, workers=4) == 5
    assert slots.fair_room(50, 80, held=20, used=15, workers=8) == 0


def test_model_that_takes_no_positions_is_answered_by_generate(make_tokenizer):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)).eval()
    tokenizer, asked = make_tokenizer(), prompts(6)

    found = answer(model, tokenizer, asked, new_tokens=4, decoding=LONG, path=Path.SLOTS)

    assert (found.facts["path"], found.facts["why"]) == ("plain", "BloomForCausalLM does not take positions")
    assert found.texts == answer(model, tokenizer, asked, new_tokens=4, decoding=LONG).texts


def test_prompt_without_a_token_is_answered_by_generate(make_tokenizer):
    model, tokenizer = made("grouped heads"), make_tokenizer()

    found = answer(model, tokenizer, ["", "w1 w2"], new_tokens=4, decoding=LONG, path=Path.SLOTS)

    assert (found.facts["path"], found.facts["why"]) == ("plain", "a prompt has no token to start from")
    assert found.texts == answer(model, tokenizer, ["", "w1 w2"], new_tokens=4, decoding=LONG).texts


def test_model_that_computes_otherwise_with_this_cache_is_answered_by_generate(make_tokenizer):
    model, tokenizer, asked = made("grouped heads"), make_tokenizer(), prompts(6)

    def at_the_start(_module, arguments, given):
        positions = given.get("position_ids")
        if positions is not None and positions.shape[1] == 1:
            given["position_ids"] = torch.zeros_like(positions)
        return arguments, given

    model.model.register_forward_pre_hook(at_the_start, with_kwargs=True)
    found = answer(model, tokenizer, asked, new_tokens=4, decoding=LONG, path=Path.SLOTS)

    assert found.facts["path"] == "plain"
    assert "LlamaForCausalLM computes other logits with it" in found.facts["why"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dora_adapter_answers_in_slots(dtype, save_adapter, make_tokenizer):
    lora = adapter.Lora(rank=4, targets="all-linear", variant="dora")
    folder = save_adapter("a", seed=1, lora=lora, num_hidden_layers=3)
    model = adapter.load(made("grouped heads", dtype=dtype), folder)
    base = model.get_base_model()

    found = answer(model, make_tokenizer(), prompts(6), new_tokens=5, decoding=LONG, path=Path.SLOTS)
    with trained_arithmetic(base):
        expected = answer(model, make_tokenizer(), prompts(6), new_tokens=5, decoding=LONG, path=Path.PLAIN)

    assert found.facts["path"] == "slots"
    assert found.texts == expected.texts


def test_adapter_answers_in_the_arithmetic_of_training(save_adapter, make_tokenizer):
    model = adapter.load(made("grouped heads", dtype=torch.bfloat16), save_adapter("a", seed=1, num_hidden_layers=3))
    base = model.get_base_model()
    ids = torch.arange(4, 24).view(2, 10)
    before = adapter.factors(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        trained = base(input_ids=ids).logits
    with torch.no_grad():
        outside = base(input_ids=ids).logits
        with trained_arithmetic(base):
            named, inside = arithmetic_of(base), base(input_ids=ids).logits

    assert torch.equal(inside, trained)
    assert not torch.equal(outside, trained)
    assert (arithmetic_of(base), named) == ("bfloat16, adapter float32", "bfloat16")
    after = adapter.factors(model)
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float32 for name in before)
    found = answer(model, make_tokenizer(), prompts(4), new_tokens=3, decoding=LONG, path=Path.SLOTS)
    kept = answer(model, make_tokenizer(), prompts(4), new_tokens=3, decoding=LONG)
    assert (found.facts["arithmetic"], kept.facts["arithmetic"]) == ("bfloat16", "bfloat16, adapter float32")
