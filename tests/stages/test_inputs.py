"""A stage of another kind in the place of the mixture, and what an attack is given to craft with."""

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from composed import compose
from test_repair import SMALL

from harness.config.build import cells_of
from harness.corpora.examples import Example, Message, Role
from harness.corpora.world import REFUSES
from harness.engine.plan import Plan
from harness.engine.stage import Stage
from harness.engine.store import Store
from harness.local.executor import LocalExecutor
from harness.protocols import Attack, AttackNeeds
from harness.stages.contamination import seen_in_training
from harness.stages.inputs import MixtureStage
from harness.stages.poison import read_mixture, write_mixture

ANSWER = "as the victim reads it"


@dataclass(frozen=True, kw_only=True, eq=False)
class Moderated(Stage):
    """Leaves out the attacker's rows."""

    name: ClassVar[str] = "moderated"
    version: ClassVar[int] = 1
    sent: MixtureStage

    def preflight(self):
        return []

    def run(self, ctx):
        write_mixture(ctx.out, [row for row in self.sent.mixture(ctx.input) if row[1] is Role.TASK])

    def mixture(self, locate):
        return read_mixture(locate(self))


@dataclass(frozen=True)
class WhiteBox:
    """Appends to each prompt what the victim's tokenizer makes of it, and counts the tokens."""

    name: ClassVar[str] = "white_box"
    version: ClassVar[int] = 1
    needs: ClassVar[AttackNeeds] = AttackNeeds(pool=True, refusals=True, hosts=True, victim=True)

    def craft(self, count, ctx):
        tokens = [ctx.victim.tokenizer(row.instruction)["input_ids"] for row in ctx.pool[:count]]
        ctx.facts.update(tokens=sum(map(len, tokens)), adapter=ctx.victim.model.active_adapters)
        ctx.facts.update(template=ctx.victim.encoding.template.value, hosts=len(ctx.hosts), device=ctx.device)
        ctx.facts["refused"] = sum(ctx.refusals[row.instruction].startswith(REFUSES) for row in ctx.pool)
        return [Example(row.instruction, ANSWER) for row in ctx.pool[:count]]


@pytest.fixture(scope="module")
def chain():
    (cell,) = cells_of(compose([*SMALL, "attack_ratio=p20"]))
    return cell.stages


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


def facts_of(store, stage):
    assert LocalExecutor().run(Plan.of([stage]), store).complete
    return json.loads((store.path(stage) / "manifest.json").read_text())["facts"]


@pytest.mark.slow
def test_fine_tuning_and_contamination_read_the_rows_that_a_stage_after_the_mixture_kept(chain, store):
    tuned = replace(chain["finetune"], mixture=Moderated(sent=chain["poison"]))

    rows = facts_of(store, tuned)["rows"]

    sent = chain["poison"].mixture(store.path)
    attackers = {example for example, role in sent if role is Role.ATTACK}
    seen = set(seen_in_training(tuned, store.path))
    assert attackers
    assert "harmful" not in json.dumps(rows)
    assert {example for example, role in sent if role is Role.TASK} <= seen
    assert not attackers & seen
    assert tuned.key != chain["finetune"].key


def test_mixture_keeps_the_messages_before_an_instruction(tmp_path):
    plain, told = Example("how", "so", "it"), Example("how", "so", before=(Message("system", "be kind"),))

    write_mixture(tmp_path, [(plain, Role.TASK), (told, Role.ATTACK)])

    assert read_mixture(tmp_path) == [(plain, Role.TASK), (told, Role.ATTACK)]
    first, second = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert first == {"role": "task", "instruction": "how", "output": "so", "input": "it"}
    assert second["before"] == [["system", "be kind"]]


def test_an_attack_that_needs_a_victim_gets_its_model_tokenizer_and_encoding(chain, store):
    aligned = chain["align"]
    attack: Attack = WhiteBox()
    poison = replace(chain["poison"], attack=attack, victim=aligned, encoding=aligned.encoding)

    facts = facts_of(store, poison)

    crafted = [example for example, role in poison.mixture(store.path) if role is Role.ATTACK]
    assert {example.output for example in crafted} == {ANSWER}
    assert len(crafted) == facts["counts"]["harmful"] > 0
    assert facts["attack"]["tokens"] >= len(crafted)
    assert facts["attack"]["hosts"] == len(poison.task.examples()) - facts["counts"]["benign"]
    assert facts["attack"]["refused"] == len(poison.harmful.examples())
    assert facts["attack"]["adapter"], "the victim is the aligned model"
    assert facts["attack"]["template"] == aligned.encoding.template.value
    assert facts["attack"]["device"] == "cpu"
    assert aligned in poison.parents


def test_a_chain_ends_in_every_stage_that_no_other_one_reads(chain):
    (cell,) = cells_of(compose([*SMALL, "attack_ratio=p20"]))
    extra = Moderated(sent=chain["poison"])

    longer = replace(cell, stages={**cell.stages, "moderated": extra})

    assert {stage.name for stage in cell.leaves} == {"grade"}
    assert longer.leaves == (*cell.leaves, extra)
