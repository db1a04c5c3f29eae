"""Safe LoRA by hand, on layers of two inputs and two outputs.

V = diag(2, 0) = (2, 0)^T (1, 0), so C = V V^T / ||V|| = diag(4, 0) / 2 = diag(2, 0); the orthogonal projector is
diag(1, 0). The user's change U = (1, 1)^T (1, 0) has C U = (2, 0)^T (1, 0) and the cosine 2 / (2 sqrt 2) = 0.70711. A
change (0, 1)^T (1, 0) has the cosine 0, and (1, 0)^T (0, 3) has 1.
"""

import pytest
import torch
from adapted import AlignedLearner, adapted, copies, product, zeros
from hypothesis import given
from hypothesis import strategies as st

from harness.defenses.safe_lora import SafeLora
from harness.errors import ModelError

V = ([[2.0], [0.0]], [[1.0, 0.0]])
SLANTED, ACROSS, ALONG = ([[1.0], [1.0]], [[1.0, 0.0]]), ([[0.0], [1.0]], [[1.0, 0.0]]), ([[1.0], [0.0]], [[0.0, 3.0]])


def repaired(layers, *, alignment=None, start=None, alpha=None, **settings):
    module = adapted(layers, alpha=alpha)
    learner = AlignedLearner(module, dict.fromkeys(layers, V) if alignment is None else alignment)
    start = zeros(learner) if start is None else copies(adapted(start, alpha=alpha))
    return module, SafeLora(**settings).repair(learner, start=start, method_outputs={}, batches=None)


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("threshold", "projector", "expected"),
    [
        (0.5, "published", [[1, 0], [1, 0]]),
        (0.8, "published", [[2, 0], [0, 0]]),
        (0.8, "orthogonal", [[1, 0], [0, 0]]),
        (0.70711, "orthogonal", [[1, 0], [0, 0]]),
        (0.7071, "orthogonal", [[1, 0], [1, 0]]),
    ],
)
def test_change_whose_cosine_is_at_most_the_threshold_is_projected(threshold, projector, expected):
    module, facts = repaired({"q": SLANTED}, threshold=threshold, projector=projector)

    close(product(module, "q"), expected)
    assert facts["cosines"] == {"q": 0.70711}
    assert facts["projected"] == {"q": threshold >= 0.70711}


@pytest.mark.parametrize(("number", "projected"), [(1, "k"), (2, "qk"), (3, "qkv"), (9, "qkv")])
def test_number_projects_the_layers_of_lowest_cosine(number, projected):
    layers = {"q": SLANTED, "k": ACROSS, "v": ALONG}
    module, facts = repaired(layers, mode="number", number=number)

    assert facts["cosines"] == {"q": 0.70711, "k": 0.0, "v": 1.0}
    assert [name for name, done in facts["projected"].items() if done] == list(projected)
    assert facts["threshold"] == sorted(facts["cosines"].values())[min(number, 3) - 1]
    close(product(module, "k"), [[0, 0], [0, 0]])
    close(product(module, "v"), [[0, 6], [0, 0]] if "v" in projected else [[0, 3], [0, 0]])


def test_number_projects_all_that_tie_with_the_last():
    _, facts = repaired({"q": SLANTED, "k": SLANTED, "v": ALONG}, mode="number", number=1)

    assert facts["projected"] == {"q": True, "k": True, "v": False}


@pytest.mark.parametrize("projector", ["published", "orthogonal"])
def test_adapter_that_continues_the_aligned_one_keeps_the_alignment_and_projects_the_rest(projector):
    """The adapter holds V + U = (2, 0)^T (1, 0) + (0, 2)^T (1, 0) = (2, 2)^T (1, 0); C U = 0 leaves V."""
    module, facts = repaired({"q": ([[2.0], [2.0]], [[1.0, 0.0]])}, start={"q": V}, projector=projector)

    assert facts["cosines"] == {"q": 0.0}
    close(product(module, "q"), [[2, 0], [0, 0]])


def test_continued_adapter_is_measured_by_the_users_change_alone():
    """V + U = (3, 1)^T (1, 0) with U = (1, 1)^T (1, 0): V + C U = (2 + 2, 0)^T (1, 0)."""
    module, facts = repaired({"q": ([[3.0], [1.0]], [[1.0, 0.0]])}, start={"q": V}, threshold=0.8)

    assert facts["cosines"] == {"q": 0.70711}
    close(product(module, "q"), [[4, 0], [0, 0]])


def test_scale_of_the_adapter_cancels_in_the_cosine_and_stays_in_the_change():
    module, facts = repaired({"q": SLANTED}, alpha=3, threshold=0.8)

    assert facts["cosines"] == {"q": 0.70711}
    close(product(module, "q"), [[6, 0], [0, 0]])


@given(seed=st.integers(0, 1000), single=st.booleans(), orthogonal=st.booleans())
def test_low_rank_form_is_the_formula_on_whole_matrices(seed, single, orthogonal):
    """C as a matrix of the layer's size, and the cosine of flattened matrices, as the authors compute them."""
    rng = torch.Generator().manual_seed(seed)
    a, b, a0, b0 = (torch.randn(shape, generator=rng) for shape in ((2, 5), (4, 2), (2, 5), (4, 2)))
    alpha, scale = 6, 3
    held = {"q": (b0.tolist(), a0.tolist())}
    alignment = {"q": ((scale * b0).tolist(), a0.tolist())}
    v, tuned = scale * b0 @ a0, scale * b @ a
    user = tuned - v if single else tuned
    c = v @ v.T / v.norm()
    if orthogonal:
        c = v @ torch.linalg.pinv(v)
    cosine = torch.nn.functional.cosine_similarity((c @ user).flatten(), user.flatten(), dim=0)

    module, facts = repaired(
        {"q": (b.tolist(), a.tolist())},
        alignment=alignment,
        start=held if single else None,
        alpha=alpha,
        threshold=1.0,
        projector="orthogonal" if orthogonal else "published",
    )

    assert facts["cosines"]["q"] == pytest.approx(float(cosine), abs=2e-5)
    expected = (v if single else 0) + c @ user
    torch.testing.assert_close(product(module, "q"), expected, rtol=1e-3, atol=1e-3 * float(expected.norm()))


def test_layer_that_alignment_did_not_change_is_kept():
    layers = {"q": SLANTED, "k": SLANTED, "v": SLANTED}
    unchanged = ([[0.0], [0.0]], [[1.0, 0.0]])

    module, facts = repaired(layers, alignment={"q": V, "k": unchanged}, threshold=1.0)

    assert facts["projected"] == {"q": True, "k": False, "v": False}
    assert facts["without_alignment"] == 2
    close(product(module, "k"), [[1, 0], [1, 0]])


def test_model_that_alignment_did_not_change_at_all_is_refused():
    with pytest.raises(ModelError, match="alignment changed none of the 1 adapted layers"):
        repaired({"q": SLANTED}, alignment={"q": ([[0.0], [0.0]], [[1.0, 0.0]])})


def test_settings_out_of_range_are_reported():
    assert [problem.path for problem in SafeLora(number=0, threshold=1.5).problems()] == ["number", "threshold"]
