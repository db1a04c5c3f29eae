"""The benchmark that a GPU waits for runs here on the CPU, small, so that it does not fail there."""

import json
import os
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def path():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def gpu(path):
    import gpu

    return gpu


MPS = """#!/bin/sh
if [ "$1" = -d ]; then touch "$CUDA_MPS_PIPE_DIRECTORY/started" "$RECORD/started"; else cat > "$RECORD/asked"; fi
"""
"""A stand-in for the control program of NVIDIA's Multi-Process Service: writes down what it was asked."""


def test_benchmark_of_a_sweep_runs_it_and_reads_what_its_passes_were(path, tmp_path, monkeypatch) -> None:
    import small_sweep

    control = tmp_path / "nvidia-cuda-mps-control"
    control.write_text(MPS)
    control.chmod(0o755)
    monkeypatch.setenv("RECORD", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
        monkeypatch.setenv(name, "")  # Restored behind the benchmark, which sets it.

    found = small_sweep.main(["--tiny", "--precision", "bfloat16", "--mps"])

    assert (tmp_path / "started").exists()
    assert (tmp_path / "asked").read_text() == "quit\n"
    assert (found["precision"], found["mps"]) == ("bfloat16", True)
    assert found["passes"] == [None]
    assert any(line.endswith(" executed, 0 from the store") for line in found["last"])


def test_benchmark_of_small_passes_takes_every_variant_of_the_same_pass(path) -> None:
    import small_passes

    found = small_passes.main(["--tiny"])

    passes = found["passes"]
    assert [one["variant"] for one in passes] == ["modules", "norms", "all", "compiled"] * 4
    assert all(one["difference"] < (1e-5 if one["precision"] != "bfloat16" else 0.05) for one in passes)
    assert all(one["difference"] > 0 for one in passes if one["variant"] == "all")
    steps = found["steps"]
    assert [(step["method"], step["fused"]) for step in steps[:4]] == [
        (method, fused) for fused in (False, True) for method in ("booster", "vaccine")
    ]
    assert all(step["difference"] < 1e-5 for step in steps if step["precision"] == "float32")


@pytest.fixture(scope="module")
def found(gpu):
    return gpu.measured("tiny", tiny=True)


def test_benchmark_prints_one_json_object_with_card_versions_and_peak(found) -> None:
    assert json.loads(json.dumps(found)) == found
    assert found["card"] == {"name": "cpu", "memory_gib": None, "capability": None}
    assert found["versions"].keys() == {"python", "torch", "transformers", "peft", "harness", "cuda"}
    assert (found["peak"]["tflops"], found["pass"]["share_of_peak"]) == (None, None)
    assert found["pass"]["share_of_product"] == pytest.approx(found["pass"]["tflops"] / found["peak"]["product_tflops"])


def test_benchmark_counts_what_a_pass_computes(found) -> None:
    # Embeddings and head 2 x 512 x 64; two layers with q and o of 64 x 64, k and v of 64 x 32 (two of four heads),
    # three matrices of 64 x 128 and two norms; the last norm; adapters of rank 32 on q, k and v.
    base = 2 * 512 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64
    adapters = 2 * 32 * ((64 + 64) + 2 * (64 + 32))
    one = found["pass"]

    assert found["shape"]["parameters"] == base + adapters
    assert one["tflops"] * one["seconds"] * 1e12 == pytest.approx(4 * (base + adapters) * 2 * 16)


@pytest.mark.parametrize("step", ["booster_step", "vaccine_step"])
def test_benchmark_compares_the_same_step(found, step) -> None:
    """In float32, ours and the plain passes differ by rounding alone."""
    assert found[step]["difference"] < 1e-5
    assert found[step]["ratio"] == pytest.approx(found[step]["seconds"] / found[step]["plain_seconds"])
    # Lengths 10 and 16.
    assert found[step]["padding"] == pytest.approx(6 / 32)


def test_benchmark_writes_every_token_of_every_answer(found) -> None:
    asked = [(one["asked"]["path"], one["asked"]["batch"], one["asked"]["prompts"]) for one in found["answers"]]
    assert asked == [("plain", 1, 1), ("slots", 1, 1), ("plain", 3, 3), ("slots", 3, 3), ("slots", None, 4)]
    for one in found["answers"]:
        assert one["path"] == one["asked"]["path"]
        tokens = one["asked"]["prompts"] * (4 if one["asked"]["batch"] else 5)
        assert one["tokens_per_second"] * one["seconds"] == pytest.approx(tokens)
    assert [one["same_as_plain"] for one in found["answers"] if "same_as_plain" in one] == [1.0, 1.0]


def test_benchmark_measures_a_small_model_in_every_number_format(found) -> None:
    rows = [(small["rows"], small["precision"]) for small in found["small"]]
    assert rows == [(count, precision) for count in (2, 4) for precision in ("float32", "tf32", "bfloat16")]
    assert all(small["seconds"] > 0 < small["plain_seconds"] for small in found["small"])


@pytest.mark.parametrize("step", ["booster", "vaccine"])
def test_benchmark_tells_rounding_from_mistakes(found, step) -> None:
    """Here everything is float32: both gradients are the exact one."""
    assert found["rounding"]["layers"] == 2
    assert found["rounding"][step]["ours"] < 1e-5
    assert found["rounding"][step]["plain"] < 1e-5


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H200 NVL", 835.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40", None),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
    ],
)
def test_peak_is_that_of_the_card_or_null(gpu, name, tflops) -> None:
    assert gpu.peak_of(name) == tflops
