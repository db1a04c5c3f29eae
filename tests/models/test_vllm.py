"""vLLM in an environment of its own, where a stand-in package provides its offline API."""

import sys
import venv
from pathlib import Path

import pytest

from harness.errors import ModelError
from harness.execution.cluster import VLLM_PYTHON
from harness.generation import transformers, vllm
from harness.generation.decoding import Decoding
from harness.models.adapter import Lora
from harness.models.loading import ModelRef, loaded_model, served

STAND_IN = Path(__file__).with_name("stand_in")
SETTINGS = {"new_tokens": 6, "decoding": Decoding(max_prompt=4)}
ASKED = ["w1 w2 w3", "w5", "w1 w2 w3 w4 w5 w6", "w5"]


def environment(folder, *paths):
    """Make a virtual environment that finds packages in further folders; return its interpreter."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "more.pth").write_text("\n".join(map(str, paths)))
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def with_vllm(tmp_path_factory):
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    return environment(tmp_path_factory.mktemp("with") / "venv", STAND_IN, *libraries)


@pytest.fixture
def memory():
    """A worker's memory; a server in it is stopped at the end of the test."""
    kept = {}
    yield kept
    if (server := served(kept)) is not None:
        server.close()


@pytest.fixture
def ask(memory, tmp_path, monkeypatch):
    """Generate with the given interpreter."""

    def asked(python, weights):
        monkeypatch.setenv(VLLM_PYTHON, str(python))
        answers = vllm.answer(weights, memory, ASKED, device="cpu", work=tmp_path, **SETTINGS)
        assert not list(tmp_path.glob("tmp*")), "a merged base is for the start only"
        return answers

    return asked


@pytest.mark.slow
def test_answers_of_one_process_are_those_of_transformers(ask, with_vllm, memory, save_base, save_adapter):
    base = save_base()
    first, second = (save_adapter(name, seed=seed, lora=Lora(rank=5)) for name, seed in (("a", 1), ("b", 2)))
    models = {
        "bare": ModelRef(base_key="base", base=base),
        "first": ModelRef(base_key="base", base=base, adapter=first),
        "second": ModelRef(base_key="base", base=base, adapter=second),
        "merged": ModelRef(base_key="base", base=base, merged=(first,), adapter=second),
    }

    expected = {}
    for name, weights in models.items():
        with loaded_model(weights, memory) as loaded:
            expected[name] = transformers.answer(loaded.model, loaded.tokenizer, ASKED, **SETTINGS)
    found, servers = {}, {}
    for name in ("first", "second", "bare", "merged"):
        found[name] = ask(with_vllm, models[name])
        servers[name] = served(memory)

    assert {name: each.texts for name, each in found.items()} == {name: each.texts for name, each in expected.items()}
    assert len({tuple(each.texts) for each in found.values()}) == 4
    assert found["first"].cut == expected["first"].cut == 1
    assert found["first"].facts == {
        "path": "vllm",
        "why": "it was asked for",
        "arithmetic": "float32",
        "vllm": "0.0.1",
    }
    assert servers["first"] is servers["second"] is servers["bare"]
    assert servers["merged"] is not servers["first"]
    assert [servers[name].running for name in ("first", "merged")] == [False, True]
    with loaded_model(models["bare"], memory):
        assert served(memory) is None
        assert not servers["merged"].running


@pytest.mark.slow
def test_adapter_of_a_rank_that_vllm_does_not_serve_is_merged(ask, with_vllm, memory, save_base, save_adapter):
    wide = ModelRef(base_key="base", base=save_base(), adapter=save_adapter("wide", seed=1, lora=Lora(rank=513)))
    with loaded_model(wide, memory) as loaded:
        expected = transformers.answer(loaded.model, loaded.tokenizer, ASKED, **SETTINGS)

    found = ask(with_vllm, wide)

    assert found.texts == expected.texts
    assert served(memory).base.rank is None


@pytest.mark.slow
def test_process_that_ends_says_why(ask, with_vllm, memory, save_base):
    base = save_base()
    (base / "unsupported").touch()

    with pytest.raises(ModelError, match=r"(?s)exit code 1.*this architecture is not supported.*engine=null"):
        ask(with_vllm, ModelRef(base_key="base", base=base))

    assert served(memory) is None


def test_interpreter_that_lacks_vllm_is_named(ask, save_base, tmp_path):
    without = environment(tmp_path / "without")

    with pytest.raises(ModelError, match=rf"`{without}`, has no vLLM \(No module named 'vllm'\)"):
        ask(without, ModelRef(base_key="base", base=save_base()))


def test_interpreter_that_is_not_there_or_not_named_is_a_mistake(ask, save_base):
    weights = ModelRef(base_key="base", base=save_base())

    with pytest.raises(ModelError, match=r"`/nowhere/python`, cannot be started \(No such file or directory\)"):
        ask("/nowhere/python", weights)
    with pytest.raises(ModelError, match=r"expected its path in `cluster.vllm_python` or in HARNESS_VLLM_PYTHON"):
        ask("", weights)
