import os

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(60)]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_model():
    def make(seed=0, **changes):
        config = LlamaConfig(
            **{
                "vocab_size": 64,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 128,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": None,
                "initializer_range": 0.3,
                "use_cache": False,
                **changes,
            }
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return LlamaForCausalLM(config).eval().requires_grad_(False)

    return make


@pytest.fixture
def make_tokenizer():
    def make(**special):
        vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "<pad>", *WORDS])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | special
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)

    return make


@pytest.fixture
def save_base(tmp_path, make_model, make_tokenizer):
    def save(name="base", seed=0, **special):
        folder = tmp_path / name
        make_model(seed).save_pretrained(folder)
        make_tokenizer(**special).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def save_adapter(tmp_path, make_model):
    """Store an adapter whose every factor is random, so that it changes what the model computes."""
    from harness.models import adapter

    def save(name, seed, lora=None, scale=0.2, **changes):
        model = adapter.attach(make_model(**changes), lora or adapter.Lora(rank=4), seed=seed)
        draw = torch.Generator().manual_seed(seed)
        for factor in model.parameters():
            if factor.requires_grad:
                factor.data.copy_(torch.randn(factor.shape, generator=draw) * scale)
        adapter.save(model, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Give the test a cache of its own for what is known of folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def mine(save_base):
    """Save a small model in a folder whose files are old enough for their hashes to be kept."""
    folder = save_base("mine")
    for path in folder.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return folder
