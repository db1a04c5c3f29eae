"""Passes: how the forward passes of a training run on a device, beyond what is part of its identity.

On a CPU passes are plain, and their numbers are those of every earlier version. On a GPU each switch changes gradients
by rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from harness.training.budget import Precision
from harness.training.gradients import dropout_in

if TYPE_CHECKING:
    import torch
    from torch.nn import Module

    from harness.models.captured import CapturedDecoder
    from harness.models.compiled import Backend
    from harness.models.cuda_graphs import Record

BUCKETS = 8
"""Lengths to which micro-batches are padded, in equal steps up to the longest example: at most an eighth of it is
added, and code is compiled for so many lengths at most."""
BACKEND = "inductor"
SMALL = 1_000_000_000
"""Parameters up to which launching the kernels of a pass is taken to last longer than running them: a guess, measured
at 135 million parameters only."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Numeric switches of the forward passes. The defaults are the plain passes of a CPU.

    Attributes:
        padding_mask: whether the model is given the padding mask. In a causal model no real token attends to what
            follows it, so with padding on the right the mask changes no supervised position. Without it, attention
            takes its fast causal kernel.
        causal_attention: whether attention runs without any mask, see ``harness.models.attention``; then transformers
            reads nothing back from the device.
        lengths: the lengths to which micro-batches are padded, ascending; a longer one keeps its own.
        backend: what compiles the decoder layers; empty runs them as they are.
        usual_rows: the numbers of rows for which layers are compiled or passes captured. Others (the last batch of an
            epoch) are rare and would take longer to compile than to run.
        reason: why layers are not compiled; empty if they are, and on a CPU.
        captured: whether the decoder's passes are replayed from CUDA graphs where nothing prevents it (passes with
            hooks inside run as they are), see ``harness.models.captured``.
        fused: whether norms, rotary embeddings and the products of adapted layers take fewer kernels, see
            ``harness.models.norms``, ``rotary`` and ``projections``. Compiled code fuses them itself.
        tf32: whether products of float32 matrices are taken in TF32.
        autocast: the number format of products under autocast; empty without.
        attention: the implementation of attention; empty on a CPU, where it is the model's default.
    """

    padding_mask: bool = True
    causal_attention: bool = False
    lengths: Sequence[int] = ()
    backend: Backend = ""
    usual_rows: Collection[int] = ()
    reason: str = ""
    captured: bool = False
    fused: bool = False
    tf32: bool = False
    autocast: str = ""
    attention: str = ""

    def width(self, time: int) -> int:
        """Return the length to which a micro-batch with a given longest example is padded."""
        return next((length for length in self.lengths if length >= time), time)

    def facts(self, trouble: str = "") -> dict[str, Any]:
        """Return the switches that differ from plain passes, for a manifest; nothing on a CPU.

        Args:
            trouble: why passes that were to be captured were not; see ``running``.
        """
        if self == Passes():
            return {}
        return {
            "padding_mask": self.padding_mask,
            "causal_attention": self.causal_attention,
            "lengths": list(self.lengths),
            "compiled": self.backend,
            "not_compiled": self.reason,
            "captured": self.captured and not trouble,
            "not_captured": trouble,
            "fused": self.fused,
            "tf32": self.tf32,
            "autocast": self.autocast,
            "attention": self.attention,
        }

    @contextmanager
    def running(
        self, model: Module, device: torch.device, record: Callable[[torch.device], Record] | None = None
    ) -> Iterator[Callable[[], str]]:
        """Switch compiled layers, captured passes, fused kernels, masks and TF32 on or off while the context lasts.

        Args:
            model: the model under training.
            device: where it is.
            record: makes what captures passes on the device; None is ``harness.models.cuda_graphs.Recorder``.

        Yields:
            A function that returns why passes were not captured although they were to be, or an empty string.
        """
        from harness.models.attention import causal_attention
        from harness.models.captured import captured_decoder
        from harness.models.compiled import compiled_layers
        from harness.models.cuda_graphs import Recorder
        from harness.models.norms import fused_norms
        from harness.models.projections import fused_projections
        from harness.models.rotary import fused_rotary

        decoder: CapturedDecoder | None = None
        with ExitStack() as stack:
            if device.type != "cpu":
                stack.enter_context(_float32_products("high" if self.tf32 else "highest"))
            if self.causal_attention:
                stack.enter_context(causal_attention(model))
            if self.fused:
                # Before the decoder is captured, which runs as it is once a forward function inside of it has changed.
                for fused in (fused_norms, fused_rotary, fused_projections):
                    stack.enter_context(fused(model))
            if self.backend:
                stack.enter_context(compiled_layers(model, self.backend, self.usual_rows))
            if self.captured:
                recorder = (record or Recorder)(device)
                decoder = stack.enter_context(captured_decoder(model, recorder, self.usual_rows))
            yield lambda: decoder.trouble if decoder else ""


@contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def passes_on(
    model: Module,
    device_type: str,
    *,
    precision: Precision,
    longest: int,
    rows: Collection[int],
    sharded: bool = False,
) -> Passes:
    """Return how the passes of a run are taken.

    Args:
        model: the model under training.
        device_type: of the device that it is on.
        precision: the number format of the forward pass.
        longest: the most tokens that an example of the run has.
        rows: how many rows the micro-batches of most steps have.
        sharded: whether the frozen parameters are sharded over several processes.
    """
    from harness.models.attention import needs_no_mask
    from harness.models.compiled import compiler_problem
    from harness.models.quantized import is_quantized

    if device_type == "cpu":
        return Passes()
    plain = Passes(
        padding_mask=False,
        causal_attention=needs_no_mask(model, longest),
        fused=not sharded,
        tf32=precision is Precision.TF32,
        autocast="bfloat16" if precision is Precision.BFLOAT16 else "",
        attention=str(getattr(model.config, "_attn_implementation", "")),
    )
    if sharded or is_quantized(model):
        return replace(plain, reason="the model is sharded" if sharded else "the base is quantized")
    if found := dropout_in(model):
        # Compiled code draws other masks than the model's own layers do, and a captured pass the same ones always.
        return replace(plain, reason=f"dropout is active in {found}")
    plain = replace(plain, usual_rows=frozenset(rows))
    recomputes = any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
    if not recomputes and sum(parameter.numel() for parameter in model.parameters()) <= SMALL:
        return replace(plain, lengths=buckets(longest), captured=True, reason="passes of a small model are captured")
    if reason := compiler_problem(device_type):
        return replace(plain, reason=reason)
    return replace(plain, lengths=buckets(longest), backend=BACKEND, fused=False)


def buckets(longest: int) -> tuple[int, ...]:
    """Return the lengths to which micro-batches are padded: multiples of 8 in equal steps, and the longest itself."""
    step = 8 * ceil(longest / BUCKETS / 8)
    return (*range(step, longest, step), longest)


def usual_rows(shares: Collection[int], micro_batch: int | None) -> set[int]:
    """Return how many rows the micro-batches of full batches have.

    Args:
        shares: rows of this process in a full batch of each kind.
        micro_batch: the micro-batch size; None does not split.
    """
    if micro_batch is None:
        return set(shares)
    whole = {min(share, micro_batch) for share in shares}
    return whole | {share % micro_batch for share in shares if share > micro_batch and share % micro_batch}
