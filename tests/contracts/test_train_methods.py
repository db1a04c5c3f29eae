"""What every method in a training slot must keep to. Methods are found by walking ``harness/defenses``."""

import importlib
import inspect
import pkgutil
from dataclasses import is_dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import LlamaConfig, LlamaForCausalLM

import harness.defenses
from harness.config.shipped import CONF
from harness.corpora.batches import Pool, RoleBatches, collate
from harness.corpora.encode import Encoded
from harness.defenses.bfpo import BFPO
from harness.defenses.dpo import DPO
from harness.defenses.ewc import EWC
from harness.defenses.ldifs import LDIFS
from harness.defenses.lisa import Lisa
from harness.defenses.panacea import Panacea
from harness.defenses.random_vaccine import RandomVaccine
from harness.defenses.repnoise import RepNoise
from harness.defenses.triplet import Triplet
from harness.defenses.tvaccine import TVaccine
from harness.defenses.vlguard import VLGuard
from harness.engine.identity import payload_of
from harness.errors import ModelError
from harness.models.adapter import Lora, attach, layer_of
from harness.models.trained_weights import TrainedWeights, unfreeze
from harness.protocols import (
    ActsAfterStep,
    ChoosesRows,
    ChoosesStart,
    ComparesPasses,
    NeedsPlainLora,
    ProducesOutputs,
    Product,
    ScalesLearningRates,
    TrainsInOnePlace,
    WeighsRows,
    WorksOnShards,
)
from harness.training.budget import Budget
from harness.training.choice import StageRows
from harness.training.distributed import rank, whole, world_size
from harness.training.estimates import EstimatingLearner
from harness.training.fsdp import shard
from harness.training.learner import CausalLearner
from harness.training.meter import Meter
from harness.training.passes import Passes
from harness.training.plain import PlainStep
from harness.training.trainer import TrainReport, train


def discovered():
    found = {}
    for module in pkgutil.walk_packages(harness.defenses.__path__, "harness.defenses."):
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if cls.__module__ == module.name and is_dataclass(cls) and hasattr(cls, "start"):
                found[cls.name] = cls
    return found


VARIANTS = {
    "lisa in both phases": partial(Lisa, alignment_steps=1, user_steps=2),
    "lisa as published": partial(Lisa, alignment_steps=1, user_steps=2, budget="published", delay=0.1),
    "ewc": partial(EWC, fisher_rows=10),
    "ewc on batches": partial(EWC, fisher="batches", fisher_rows=10),
    "ldifs with its gate": partial(LDIFS, distance="gated_sum"),
    "vlguard joint": partial(VLGuard, form="joint", safety_batch_size=4, lamb=0.1),
}
"""Settings that take another way through a method's step than its defaults, or the same in less time."""
METHODS = {"plain": None} | discovered() | VARIANTS
CUTTABLE: dict = METHODS | {
    "panacea with a cap": partial(Panacea, harmful_cap=1.0),
    "repnoise in force": partial(RepNoise, alpha=1, beta=2),
    "repnoise on random pairs": partial(RepNoise, alpha=1, beta=2, pairing="random", harmful_batch_size=5),
    "repnoise as published": partial(
        RepNoise, alpha=1, beta=2, pairing="random", losses="published", harmful_batch_size=5
    ),
    "tvaccine in one layer": partial(TVaccine, layers=1, draw_every=1, probe_batch_size=2),
    "random vaccine of a variance": partial(RandomVaccine, scale="variance"),
    "dpo alone": partial(DPO, sft_weight=0.0),
    "bfpo alone": partial(BFPO, sft_weight=0.0),
    "triplet as published": partial(Triplet, refusals="retain"),
}
"""What is compared cut and uncut: besides, settings that only tell in one step."""
SHARDABLE = [name for name, make in CUTTABLE.items() if make is None or isinstance(make(), WorksOnShards)]
SHORTENED = {
    "salora": {"safe_rank": 4, "task_rank": 4, "safety_rows": 12, "task_rows": 8, "batch_size": 4},
    "sn_tune": {"detection_rows": 10, "attention_share": 0.5},
    "surgery": {"batch_size": 4},
    "tar": {"inner_steps": 4, "pair_batches": 1, "alignment_share": 0.0, "closing_steps": 0},
    "toss": {"budget": Budget(epochs=1, batch_size=9, learning_rate=1e-2)},
    "tvaccine": {"probe_batch_size": 2},
    "vaa": {"proxy_steps": 2, "budget": Budget(batch_size=3, learning_rate=1e-2)},
}
"""Settings that a method runs with here: its defaults take a hundred passes for a step and as many rows, or need a
single process."""
STARTING = {"salora"}
"""Methods that choose where the trainable parameters start."""
BUDGET = Budget(epochs=2, batch_size=4, learning_rate=1e-2)
SHORT_BUDGET = replace(BUDGET, epochs=1)
CUT = 3
"""Rows that go through the model at once: a step's four rows are three and one, and its last three are one piece."""


TYPICAL = {"plain", "booster", "lisa in both phases", "panacea"}
"""One method of each kind: without, in the alignment, in the fine-tuning with a state of its own, in the repair."""


def mostly_slow(names):
    """Return the parameters of a check that takes seconds a method: all but the typical ones are left to `test-all`."""
    return [name if name in TYPICAL else pytest.param(name, marks=pytest.mark.slow) for name in names]


class Undisturbed(NamedTuple):
    """A run that nothing disturbs.

    Attributes:
        report: what it returned.
        weights: the trained ones at its end.
        before_steps: they as each step of the optimizer found them.
        left: they at the start, and as each step of the optimizer left them.
        hooked: whether hooks were left on the model.
    """

    report: TrainReport
    weights: dict
    before_steps: list
    left: list
    hooked: bool


class Killed(BaseException):
    """Stands for the end of a process: nothing may catch it."""


class Tracker:
    def __init__(self, *, kill_at=None):
        self._kill_at = kill_at

    def log(self, metrics, *, step):
        if step == self._kill_at:
            raise Killed

    def close(self):
        pass


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(1, 50, (count, 9), generator=generator).tolist()
    return [Encoded(ids[: 5 + place % 4], [-100] * 3 + ids[3 : 5 + place % 4]) for place, ids in enumerate(drawn)]


def pool(need):
    """Return rows of a role and, where they are asked for, partners with the same prompts and other answers."""
    if need.own:
        return Pool(rows(6, seed=1), need.batch_size, numbered=True)
    harmful, answers = rows(25, seed=2), rows(25, seed=4)
    partners = [
        Encoded(row.input_ids[:3] + other.input_ids[3:], other.labels)
        for row, other in zip(harmful, answers, strict=True)
    ]
    return Pool(harmful, need.batch_size, partners if need.paired else (), need.disjoint_batches)


def build(**adapter):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=50
    )
    return attach(LlamaForCausalLM(config), Lora(rank=2, **adapter), seed=0)


def alignment_of(model):
    """Return a change by alignment of every adapted layer."""
    rng = torch.Generator().manual_seed(5)
    return {
        layer_of(place): Product(torch.randn(len(model.get_parameter(place.replace("_A", "_B"))), 2, generator=rng), a)
        for place, a in ((place, factor.detach()) for place, factor in model.named_parameters() if "lora_A" in place)
    }


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def prepared(name):
    """Return the method and what it draws from."""
    method = CUTTABLE[name](**SHORTENED.get(name, {})) if CUTTABLE[name] else None
    needs = [need for need in (method.needs if method else ()) if need.batch_size is not None]
    return method, {need.role: pool(need) for need in needs}


def run(name, work, *, model, **options):
    method, pools = prepared(name)
    options = {"tracker": Tracker(), "budget": BUDGET, "micro_batch_size": CUT} | options
    options["alignment"] = alignment_of(model)
    # Eleven rows: six steps in two epochs, the last of each one short.
    return train(model, method=method, rows=rows(11, 1), pools=pools, seed=3, pad_id=0, work=work, **options)


@cache
def uninterrupted(name):
    """Return what a run does that nothing disturbs."""
    model = build()
    start, before, after, optimizers = weights_of(model), [], [], []
    own = {id(parameter) for parameter in model.parameters()}

    def note(seen, optimizer):
        # A method may have an optimizer of its own, for weights that are not the model's.
        if any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            optimizers.append(optimizer)
            seen.append((optimizer, weights_of(model)))

    hooks = [
        register_optimizer_step_pre_hook(lambda optimizer, *_: note(before, optimizer)),
        register_optimizer_step_post_hook(lambda optimizer, *_: note(after, optimizer)),
    ]
    try:
        with TemporaryDirectory() as work:
            report = run(name, Path(work), model=model)
    finally:
        for hook in hooks:
            hook.remove()
    # A method that trains the model to choose examples has an optimizer before that of the training.
    found, left = ([weights for by, weights in seen if by is optimizers[-1]] for seen in (before, after))
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    return Undisturbed(report, weights_of(model), found, [start, *left], hooked)


def test_method_whose_step_is_more_than_gradients_says_so_and_federations_refuse_it():
    """A method that is not refused at composition would fail in its stage, after the alignment."""
    model = build()
    learner = CausalLearner(model, alignment=alignment_of(model))
    more = ProducesOutputs | WeighsRows | ChoosesStart | ActsAfterStep | ScalesLearningRates
    found = {True: set(), False: set()}
    for name in {path.stem for path in (CONF / "defense/finetune").glob("*.yaml")} & set(METHODS) - {"salora"}:
        method, pools = prepared(name)
        learner.example_count = 6
        step = method.start(learner, RoleBatches(pools, pad_id=0, seed=3, rank=0, world_size=1), 2)
        assert isinstance(step, more) == isinstance(method, TrainsInOnePlace), name
        found[isinstance(step, more)].add(name)

    assert {"panacea", "bds", "ml_lr"} <= found[True]
    assert {"lisa", "kl", "ewc"} <= found[False]


def test_discovery_finds_the_methods_that_ship():
    assert {"booster", "vaccine", "booster_vaccine"} <= set(METHODS)
    assert {"lisa", "ldifs", "ewc", "kl", "vlguard", "safe_instruct"} <= set(METHODS)
    assert {"random_vaccine", "repnoise", "tvaccine", "tar", "antibody"} <= set(METHODS)
    assert {"constrained_sft", "sppft", "safegrad", "sbr", "swat", "fewer_steps"} <= set(METHODS)
    assert {"asft", "lox", "dpo", "ml_lr", "salora", "surgery"} <= set(METHODS)
    assert {"circuit_breakers", "sn_tune", "triplet", "bfpo", "vaa"} <= set(METHODS)
    assert {"deep_augmentation", "derta", "lookahead", "paraphrase"} <= set(METHODS)
    assert {"ptst", "backdoor_alignment", "bds"} <= set(METHODS)
    assert {"larf", "seal", "toss"} <= set(CHOOSING)


@pytest.mark.parametrize("name", discovered())
def test_method_defaults_are_in_range_hashable_and_have_an_identity(name):
    method = METHODS[name]()

    assert method.problems() == []
    assert hash(method) == hash(METHODS[name]())
    assert payload_of(method)["name"] == name == method.name
    assert all(need.rows is None or need.rows >= 1 for need in method.needs)
    assert all(need.batch_size is None or need.batch_size >= 1 for need in method.needs)


@pytest.mark.parametrize("name", mostly_slow(METHODS))
def test_method_leaves_weights_and_hooks_as_they_were_between_optimizer_steps(name):
    undisturbed = uninterrupted(name)

    assert len(undisturbed.before_steps) == 6
    left_and_found = list(zip(undisturbed.left, undisturbed.before_steps, strict=False))
    for left, found in left_and_found[name in STARTING :]:
        assert all(torch.equal(left[weight], found[weight]) for weight in left)
    assert not undisturbed.hooked


@pytest.mark.parametrize("name", mostly_slow(discovered()))
def test_method_refuses_dropout_if_and_only_if_its_settings_say_so_beforehand(name, tmp_path):
    refused = ""

    try:
        run(name, tmp_path, model=build(dropout=0.1), budget=SHORT_BUDGET)
    except ModelError as error:
        refused = str(error)

    assert ("dropout is active" in refused) == isinstance(METHODS[name](), ComparesPasses)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_method_trains_a_dora_adapter_on_all_linear_layers_unless_its_settings_say_otherwise(name, tmp_path):
    model = build(targets="all-linear", scaling="rslora", variant="dora")
    before = weights_of(model)
    if METHODS[name] and isinstance(METHODS[name](), NeedsPlainLora):
        with pytest.raises(ModelError, match="not plain LoRA"):
            run(name, tmp_path, model=model, budget=SHORT_BUDGET)
        return

    run(name, tmp_path, model=model, budget=SHORT_BUDGET)

    after = weights_of(model)
    assert sum("magnitude" in weight for weight in before) == 14
    assert all(bool(after[weight].isfinite().all()) for weight in before)
    moved = [weight for weight in before if not torch.equal(after[weight], before[weight])]
    # A method may freeze layers, but none of the kinds of parameters.
    assert all(any(kind in weight for weight in moved) for kind in ("lora_A", "lora_B", "magnitude"))


# The newest checkpoint is one step older: in the middle of an epoch, and at its end, of which a method knows nothing.
@pytest.mark.parametrize("name", mostly_slow(METHODS))
def test_method_killed_and_resumed_ends_bitwise_where_an_uninterrupted_run_ends(name, tmp_path):
    killed_and_resumed(name, 3, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TYPICAL))
def test_method_killed_at_the_end_of_an_epoch_ends_there_too(name, tmp_path):
    killed_and_resumed(name, 4, tmp_path)


def killed_and_resumed(name, killed_at, folder):
    """Check that a run that is killed after a step, and run again, ends where an uninterrupted one ends."""
    expected, weights, *_ = uninterrupted(name)
    with pytest.raises(Killed):
        run(name, folder, model=build(), checkpoint_every_steps=1, tracker=Tracker(kill_at=killed_at))
    assert (folder / "checkpoints" / f"checkpoint-{killed_at - 1}").exists()
    resumed = build()

    report = run(name, folder, model=resumed)

    assert all(torch.equal(weights_of(resumed)[weight], tensor) for weight, tensor in weights.items())
    assert report == expected


def own_weights():
    """Return a model whose own weights are trained."""
    model = build().unload()
    unfreeze(model, TrainedWeights())
    return model


def sharded_weights():
    """Return the same model with its weights sharded over the processes."""
    model = own_weights()
    shard(model, torch.device("cpu"))
    return model


def stepped(name, rows_at_once, passes=None, record=None, *, update=None, make=build):
    """Return the gradients and the metrics of two steps on five rows, with a step of gradient descent in between.

    With ``update`` gradients are estimated by it. ``make`` returns the model.

    Several processes share the rows; the optimizer's sense of scale, which forgives a gradient that is wrong by a
    factor and blows up the rounding of one near zero, is left out.
    """
    model, (method, pools) = make(), prepared(name)
    passes = passes or Passes()
    learner = CausalLearner(model, rows_at_once=rows_at_once, passes=passes, alignment=alignment_of(model))
    learner.example_count = 6
    with torch.no_grad():
        # Adapter factors that are not zero: every term of a method has a gradient.
        for parameter in learner.trainables:
            noise = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            if isinstance(parameter, DTensor):
                noise = distribute_tensor(noise, parameter.device_mesh, parameter.placements)
            parameter.add_(noise)
    batches = RoleBatches(pools, pad_id=0, seed=3, rank=rank(), world_size=world_size())
    seen = learner
    if update:
        seen = EstimatingLearner(learner, estimator=update, method=method, seed=3, meter=Meter())
    step = method.start(seen, batches, 2) if method else PlainStep(seen)
    gradients, metrics = [], []
    with passes.running(model, torch.device("cpu"), record):
        for place in range(2):
            learner.steps_taken = place
            own = slice(rank(), None, world_size())
            batch = collate(rows(5, seed=7 + place)[own], 0, [3, 0, 5, 1, 4][own])
            metrics.append({key: float(value) for key, value in step.backward(batch).items()})
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.trainables]
            gradients.append(torch.cat([whole(part).flatten() for part in parts]))
            with torch.no_grad():
                for trainable, part in zip(learner.trainables, parts, strict=True):
                    # A method may leave out a step.
                    trainable.sub_(part * (0.05 / gradients[-1].norm().clamp(min=1e-12)))
    return gradients, metrics


CHOOSING = [name for name, method in discovered().items() if isinstance(method(), ChoosesRows)]


def chosen(name, make=build):
    """Return the indices of the examples that a method trains on, of eleven, and how many tokens of each."""
    method, pools = prepared(name)
    model = make()
    learner = CausalLearner(model, rows_at_once=CUT, alignment=alignment_of(model))
    given = StageRows(rows(11, 1), pools, batch_size=4, seed=3, pad_id=0)
    batches = RoleBatches(pools, pad_id=0, seed=3, rank=rank(), world_size=world_size())
    found = method.choose(learner, given, batches).rows
    return [[place, sum(label != -100 for label in row.labels)] for place, row in found]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOOSING)
def test_method_that_chooses_leaves_something_out_and_restores_the_model(name):
    found = chosen(name)

    whole = [sum(label != -100 for label in row.labels) for row in rows(11, 1)]
    assert found != list(map(list, enumerate(whole)))
    assert [place for place, _ in found] == sorted({place for place, _ in found})
    assert all(0 < count <= whole[place] for place, count in found)


def assert_same_steps(ours, theirs):
    """Check that two runs of ``stepped`` computed the same, up to the rounding of float32."""
    for found, expected in zip(ours[0], theirs[0], strict=True):
        assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())
    for found, expected in zip(ours[1], theirs[1], strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


@cache
def whole_steps(name, make=build):
    """Return what one process computes on whole batches."""
    return stepped(name, None, make=make)


# One row at once; for some also uneven pieces of the step's five rows and of the draws, pieces of which the last is a
# single row, and more than there are. Every method has pieces of two and one row in `test_passes`, and in those of two
# processes.
@pytest.mark.parametrize(
    ("name", "rows_at_once"),
    [
        *((name, cut) for name in sorted(TYPICAL) for cut in (1, 2, 3, 100)),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in CUTTABLE if name not in TYPICAL),
    ],
)
def test_method_computes_the_same_however_its_batches_are_cut(name, rows_at_once):
    assert_same_steps(stepped(name, rows_at_once), whole_steps(name))


@pytest.mark.parametrize("name", mostly_slow(METHODS))
def test_method_reports_a_loss_beside_norm_clip_factor_and_learning_rate(name):
    report = uninterrupted(name).report

    assert {"loss", "grad_norm", "clip_factor", "learning_rate"} <= set(report.metrics)
    assert report.steps == 6
