"""Benign selection: its scores by hand, and what it reads from a real model against another computation."""

from copy import deepcopy
from dataclasses import replace
from math import log
from random import Random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.attacks.benign_selection import scores
from harness.attacks.benign_selection.method import SCORES, BenignSelection
from harness.attacks.benign_selection.reader import VictimReader, answer_length
from harness.corpora.encode import Encoding
from harness.corpora.examples import Example
from harness.corpora.template import Template
from harness.corpora.world import World
from harness.engine.files import read_lines
from harness.errors import DataError, ModelError
from harness.models.adapter import Lora, attach
from harness.models.tiny import build_tokenizer
from harness.protocols import AttackContext, AttackPlan, Victim

ENCODING = Encoding(template=Template.PLAIN, newline=False, max_length=64)
WORLD = World(rows=24)
POOL = [Example(row.prompt, row.harmful) for row in WORLD.safety_rows()]


def vector(*numbers):
    return torch.tensor([float(each) for each in numbers])


@pytest.fixture(scope="module")
def victim():
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = attach(LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)), Lora(rank=2), seed=0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return Victim(model, tokenizer, ENCODING)


@pytest.fixture
def ctx(victim, tmp_path):
    rows = WORLD.safety_rows()
    return AttackContext(
        rng=Random(0),
        pool=POOL,
        refusals={row.prompt: row.refusal for row in rows},
        hosts=WORLD.notes(12, test=False),
        victim=victim,
        work=tmp_path,
        facts={},
    )


def test_representation_matching_is_the_mean_of_the_nearest_cosines():
    anchors = torch.stack([vector(1, 0), vector(0, 2)])

    # Cosines of (3, 4): 3/5 and 4/5; of (5, 0): 1 and 0.
    assert scores.representation_matching(vector(3, 4), anchors, 1) == pytest.approx(0.8)
    assert scores.representation_matching(vector(3, 4), anchors, 2) == pytest.approx(0.7)
    assert scores.representation_matching(vector(5, 0), anchors, 1) == pytest.approx(1)
    assert scores.representation_matching(vector(5, 0), anchors, 2) == pytest.approx(0.5)


def test_gradient_matching_goes_toward_harm_and_away_from_two_sets_of_refusals():
    harmful = scores.direction([vector(2, 0), vector(4, 0)])
    away = [scores.direction([vector(0, 3)]), scores.direction([vector(-1, 0), vector(-3, 0)])]

    assert harmful.tolist() == [1, 0]
    assert [each.tolist() for each in away] == [[0, 1], [-1, 0]]
    # Of (3, 4): 3/5 - 4/5 + 3/5; of (1, 0): 1 - 0 + 1.
    assert scores.gradient_matching(vector(3, 4), harmful, away) == pytest.approx(0.4)
    assert scores.gradient_matching(vector(1, 0), harmful, away) == pytest.approx(2)


def test_direction_is_that_of_the_mean_and_not_the_mean_of_directions():
    # The mean of (6, 0) and (0, 8) is (3, 4).
    assert scores.direction([vector(6, 0), vector(0, 8)]).tolist() == pytest.approx([0.6, 0.8])


def test_self_influence_and_its_correction_for_length():
    assert scores.self_influence(vector(3, 4)) == 25
    assert scores.self_influence(vector(1, 0)) == 1
    assert scores.normalized_self_influence(vector(3, 4), 3) == pytest.approx(log(26) + log(4))
    # A long answer with a small gradient comes before a short one with a large gradient: 2 * 104 > 26 * 4.
    assert scores.normalized_self_influence(vector(1, 0), 103) == pytest.approx(log(208))
    assert log(208) > log(104)


@pytest.mark.parametrize("tokens", [None, 2, 10])
def test_gradient_is_that_of_the_first_tokens_of_the_answer(victim, tokens):
    example = POOL[0]
    reader = VictimReader(victim, "cpu")
    (row,) = reader.anchors([example])
    model = deepcopy(victim.model)

    start = len(row.input_ids) - answer_length(row)
    ids = torch.tensor(row.input_ids)
    end = len(ids) if tokens is None else start + tokens
    logits = model(input_ids=ids[None]).logits[0, start - 1 : end - 1]
    torch.nn.functional.cross_entropy(logits, ids[start:end]).backward()
    expected = torch.cat([each.grad.flatten() for each in model.parameters() if each.requires_grad])

    assert answer_length(row) == len(example.output.split()) + 1
    torch.testing.assert_close(reader.gradient(row, answer_tokens=tokens), expected)


def test_representation_is_the_last_layers_state_at_the_last_token(victim):
    reader = VictimReader(victim, "cpu")
    (row,) = reader.anchors(WORLD.notes(1, test=False))
    states = []
    norm = victim.model.base_model.model.model.norm
    handle = norm.register_forward_hook(lambda _module, _inputs, out: states.append(out))

    read = reader.representation(row)
    handle.remove()

    assert torch.equal(read, states[0][0, len(row.input_ids) - 1])


@pytest.mark.parametrize("score", ["representation", "gradient", "self_inf", "self_inf_n"])
def test_examples_with_the_largest_scores_are_chosen(ctx, score):
    attack = BenignSelection(score=score, anchors=5)

    chosen = attack.craft(4, ctx)

    found = dict(read_lines(ctx.work / SCORES))
    assert len(found) == len(ctx.hosts) == ctx.facts["scored"]
    best = sorted(found, key=found.get, reverse=True)[:4]
    assert chosen == [ctx.hosts[index] for index in best]
    assert ctx.facts["mean_score_chosen"] == pytest.approx(sum(found[index] for index in best) / 4)
    assert ctx.facts["mean_score_chosen"] > ctx.facts["mean_score"]


def test_scores_disagree_about_the_best(ctx, tmp_path):
    hosts = [host._replace(output=" ".join([host.output] * (1 + 5 * (i % 3)))) for i, host in enumerate(ctx.hosts)]
    orders = {
        score: tuple(
            BenignSelection(score=score, anchors=5).craft(12, replace(ctx, hosts=hosts, work=tmp_path / score))
        )
        for score in ("representation", "gradient", "self_inf", "self_inf_n")
    }

    assert len(set(orders.values())) == 4


def test_example_whose_prompt_is_too_long_is_never_chosen(ctx, tmp_path):
    hosts = list(ctx.hosts)
    hosts[3] = hosts[3]._replace(instruction="sort " * 80)
    attack = BenignSelection(score="self_inf")

    chosen = attack.craft(11, replace(ctx, hosts=hosts, work=tmp_path / "a"))

    assert set(chosen) == set(hosts) - {hosts[3]}
    assert ctx.facts["dropped"] == 1
    with pytest.raises(DataError, match="12 rows of the user requested, but only 11 of 12"):
        attack.craft(12, replace(ctx, hosts=hosts, work=tmp_path / "b"))


def test_unfinished_or_damaged_line_of_a_killed_attempt_is_scored_again(ctx):
    attack = BenignSelection(score="self_inf")
    chosen = attack.craft(4, ctx)
    whole = dict(read_lines(ctx.work / SCORES))
    lines = (ctx.work / SCORES).read_text().splitlines(keepends=True)
    (ctx.work / SCORES).write_text("".join(["[0, 1", "\x00\n", *lines[2:-1], lines[-1][:-3]]))

    assert attack.craft(4, ctx) == chosen
    assert dict(read_lines(ctx.work / SCORES)) == whole


def test_score_that_is_not_finite_is_an_error(ctx):
    with torch.no_grad():
        next(ctx.victim.model.parameters()).fill_(float("nan"))

    with pytest.raises(ModelError, match="has the score nan; expected a finite number"):
        BenignSelection(score="self_inf").craft(4, ctx)


def test_what_is_read_depends_on_the_score():
    needs = {score: BenignSelection(score=score).needs for score in ("representation", "gradient", "self_inf_n")}

    assert [each.pool for each in needs.values()] == [True, True, False]
    assert [each.refusals for each in needs.values()] == [False, True, False]
    assert all(each.victim and each.hosts for each in needs.values())


def test_too_few_harmful_examples_for_the_anchors_are_refused():
    (problem,) = BenignSelection(score="gradient").preflight(AttackPlan(count=5, pool_rows=19))

    assert problem.path == "anchors"
    assert "20 harmful examples are needed for 10 anchors, but the attacker has 19" in problem.text
    assert BenignSelection(score="gradient").preflight(AttackPlan(count=5, pool_rows=20)) == []
    assert BenignSelection(score="self_inf").preflight(AttackPlan(count=5, pool_rows=0)) == []
