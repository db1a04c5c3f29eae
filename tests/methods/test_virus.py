"""Virus: the objective by hand, gradients against finite differences, candidates counted, and rows that stay text."""

import json
from copy import deepcopy
from dataclasses import replace
from functools import cache
from math import exp, isclose, log, sqrt
from random import Random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from harness.attacks.virus.gradients import Alignment, VictimGradients
from harness.attacks.virus.method import STEPS, Virus
from harness.attacks.virus.mixing import Mixing
from harness.attacks.virus.objective import Candidate, Objective, Value, best_of, dissimilarity, located, weighted
from harness.attacks.virus.row import RowTokenizer, mixed
from harness.attacks.virus.search import allowed_tokens, exchanges, proposals, random_exchanges
from harness.corpora.encode import Encoding
from harness.corpora.examples import Example
from harness.corpora.template import Template
from harness.corpora.world import World
from harness.errors import ModelError, Stopped
from harness.mechanisms.white_box_guard import of_classifier
from harness.models.adapter import Lora, attach
from harness.models.tiny import build_tokenizer
from harness.models.tiny_guard import text_of
from harness.protocols import AttackContext, Victim

ENCODING = Encoding(template=Template.PLAIN, newline=False, max_length=64)
WORLD = World(rows=40)
POOL = [Example(row.prompt, row.harmful) for row in WORLD.safety_rows()]
HOSTS = WORLD.notes(30, test=False)
SMALL = {"steps": 3, "top_k": 8, "candidates": 6}


@cache
def victim(variant=None):
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes))
    model = attach(model, Lora(rank=4, variant=variant), seed=0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return Victim(model, tokenizer, ENCODING)


@cache
def guard():
    torch.manual_seed(1)
    tokenizer = build_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForSequenceClassification(
        LlamaConfig(vocab_size=len(tokenizer), num_labels=1, initializer_range=0.5, **sizes)
    )
    opened = of_classifier(model, tokenizer, lambda turn: text_of(turn.instruction, turn.output))
    # So that it finds the first mixed row harmful: a logit of 3.
    row = mixed(HOSTS[0], POOL[0], ENCODING, joint="\n\n", tail=False).example
    (loss,) = opened.losses(opened.tokens([row]))
    model.score.weight.data *= 3 / log(exp(loss) - 1)
    return opened


def crafted(attack, work, *, count=2, **changes):
    facts = {}
    context = AttackContext(
        **{
            "rng": Random(5), "pool": POOL, "hosts": HOSTS, "victim": victim(), "encoding": ENCODING, "guard": guard(),
            "work": work, "facts": facts, **changes,
        }
    )  # fmt: skip
    return attack.craft(count, context), facts


def opened(*, lamb=0.5, normalized=False, model=None, tail=False):
    """Return the objective of the first mixed row, with its text and its tokens."""
    row = mixed(HOSTS[0], POOL[0], ENCODING, joint="\n\n", tail=tail)
    tokens = RowTokenizer(victim().tokenizer, ENCODING).tokens(row)
    gradients = VictimGradients(model or victim().model, tokens.prompt)
    objective = Objective(row, tokens, lamb=lamb, normalized=normalized, gradients=gradients, guard=guard())
    return objective, row, tokens


@pytest.mark.parametrize(
    ("lamb", "scale", "normalized", "expected", "best"),
    [
        (0.1, 1, False, (-0.7614, 0.01, -0.6164), 0),
        (0.5, 1, False, (0.1931, 0.05, -0.2536), 2),
        # Five times the gradients: the same similarities, and another choice.
        (0.5, 5, False, (-1.8069, 0.05, -1.6678), 0),
        (0.5, 1, True, (0.1931, 0.05, -0.2536), 2),
        (0.5, 5, True, (0.1931, 0.05, -0.2536), 2),
    ],
)
def test_objective_and_its_scale_by_hand(lamb, scale, normalized, expected, best):
    # l = (w e - 1)^2 / 2 at w = 0, so g = -e; the vocabulary is (1, 0), (0, 1), (1, 1), and the row the first of them.
    vectors = [(1, 0), (0, 1), (1, 1)]
    found = [Alignment(inner=scale**2 * x, norm=scale * sqrt(x * x + y * y)) for x, y in vectors]
    guard_losses = [log(4), 0.1, 0.2]

    totals = [
        weighted(lamb, loss, dissimilarity(each, found[0].norm, normalized=normalized))
        for each, loss in zip(found, guard_losses, strict=True)
    ]

    assert totals == pytest.approx(expected, abs=1e-4)
    assert best_of([Value(total, None, None) for total in totals]) == best


def test_of_equal_candidates_the_current_row_is_kept_and_what_is_no_number_is_never_taken():
    assert best_of([Value(1.0, None, None), Value(1.0, None, None)]) == 0
    nan = weighted(0.5, float("nan"), 0.0)
    assert best_of([Value(1.0, None, None), Value(nan, None, None), Value(0.5, None, None)]) == 2
    assert dissimilarity(Alignment(0.0, 0.0), 1.0, normalized=True) == float("inf")


@pytest.mark.parametrize("tail", [False, True])
def test_mixed_row_is_host_and_harmful_example_in_the_words_of_the_template(tail):
    host, harmful = Example("sort", "good", "a note"), Example("how", "so")
    encoding = Encoding(template=Template.ALPACA, newline=True)

    row = mixed(host, harmful, encoding, joint="\n\n", tail=tail).example

    end = f"\n\n{encoding.question(host)}good" if tail else ""
    assert row == Example("sort", f"good\n\n{encoding.question(harmful)}so{end}", "a note")
    plain = mixed(host, harmful, ENCODING, joint=" ", tail=tail).example
    assert plain.output == "good how : so" + (" sort a note : good" if tail else "")
    chat = mixed(host, harmful, Encoding(template=Template.CHAT, system="be kind"), joint=" | ", tail=tail).example
    assert chat.output == "good | how\n\nso" + (" | sort\n\na note\n\ngood" if tail else "")


@pytest.mark.parametrize("tail", [False, True])
def test_suffix_is_the_harmful_example_and_all_behind_the_hosts_prompt_is_supervised(tail):
    _, row, tokens = opened(tail=tail)
    tokenizer = victim().tokenizer

    assert tokenizer.decode(tokens.suffix) == f"{POOL[0].instruction} : {POOL[0].output}"
    assert tokens.ids == ENCODING.encode(tokenizer, row.example).input_ids[: len(tokens.ids)]
    assert tokenizer.decode(tokens.ids[: tokens.prompt]) == f"<s> {HOSTS[0].instruction} :"
    assert tokens.after[-1] == tokenizer.eos_token_id
    assert len(tokens.after) > 1 or not tail


@pytest.mark.parametrize("rows", [1, 5])
def test_gradients_of_several_rows_at_once_are_those_of_each_alone(rows):
    _, _, tokens = opened()
    gradients = VictimGradients(victim().model, tokens.prompt)
    weights = [each for each in victim().model.parameters() if each.requires_grad]
    several = [tokens.of([place + 10, *tokens.suffix[1:]]) for place in range(rows)]

    def flat(ids):
        labels = torch.tensor([[-100] * tokens.prompt + ids[tokens.prompt :]])
        loss = victim().model(input_ids=torch.tensor([ids]), labels=labels).loss
        return torch.cat([each.flatten() for each in torch.autograd.grad(loss, weights)])

    start = flat(tokens.ids)
    norm = gradients.begin(tokens.ids)
    found = gradients.compare(several)

    assert norm == pytest.approx(float(start.norm()), rel=1e-4)
    assert [each.inner for each in found] == pytest.approx([float(flat(ids) @ start) for ids in several], rel=1e-3)
    assert [each.norm for each in found] == pytest.approx([float(flat(ids).norm()) for ids in several], rel=1e-4)


def test_second_derivative_is_that_of_finite_differences():
    model = deepcopy(victim().model).double()  # except Llama's norms, which compute in float32
    _, _, tokens = opened()
    gradients = VictimGradients(model, tokens.prompt)
    weights = [each for each in model.parameters() if each.requires_grad]
    gradients.begin(tokens.of([40, *tokens.suffix[1:]]))
    begin = len(tokens.before)
    place, other = 3, 50

    def inner(epsilon):
        """The inner product with the other token's embedding mixed into one position; labels stay."""
        embedded = gradients.embeddings[torch.tensor([tokens.ids])].detach().clone()
        embedded[0, begin + place] += epsilon * gradients.embeddings[other]
        loss = gradients._losses(embedded, [tokens.ids])[0]
        own = torch.autograd.grad(loss, weights)
        return float(sum((a * b).sum() for a, b in zip(own, gradients._start, strict=True)))

    (alignment,) = gradients.compare([tokens.ids])
    found = gradients.token_gradient(tokens.ids, slice(begin, begin + len(tokens.suffix)))
    slope = float(found[place] @ gradients.embeddings[other])

    assert slope == pytest.approx((inner(1e-3) - inner(-1e-3)) / 2e-3 / alignment.norm, rel=1e-3)


def test_gradient_of_the_objective_at_a_token_adds_guard_and_victim_by_their_weights():
    current = None
    parts = {}
    for lamb in (0.0, 0.3, 1.0):
        objective, row, tokens = opened(lamb=lamb)
        current = Candidate(tokens.suffix, row.suffix)
        parts[lamb] = objective.token_gradient(current)

    assert parts[0.3].shape == (len(current.suffix), len(victim().tokenizer))
    assert torch.allclose(parts[0.3], 0.3 * parts[1.0] + 0.7 * parts[0.0], atol=1e-5)
    assert parts[0.0].abs().max() > 0
    assert parts[1.0].abs().max() > 0


def test_gradient_of_the_guard_is_that_of_finite_differences():
    objective, row, tokens = opened(lamb=1.0)
    found = objective.token_gradient(Candidate(tokens.suffix, row.suffix))
    (ids,) = guard().tokens([Example(row.host.instruction, row.example.output)])
    begin, part = located(ids, tokens.suffix)
    assert part == slice(0, len(tokens.suffix))

    def loss(epsilon):
        embedded = guard().embeddings[torch.tensor(ids)].detach().clone()
        embedded[begin + 2] += epsilon * guard().embeddings[60]
        return float(guard().loss(embedded))

    assert float(found[2, 60]) == pytest.approx((loss(1e-2) - loss(-1e-2)) / 2e-2, rel=2e-2, abs=1e-5)
    assert guard().losses([ids, ids[:-3]])[0] == pytest.approx(loss(0.0), rel=1e-5)


def test_suffix_is_found_where_its_edges_have_merged_with_other_text():
    assert located([9, 1, 2, 3, 1, 2, 3, 8], [1, 2, 3]) == (4, slice(0, 3))
    assert located([9, 1, 2, 7], [1, 2, 3]) == (1, slice(0, 2))
    assert located([9, 5, 2, 3], [1, 2, 3]) == (2, slice(1, 3))
    assert located([9, 5, 2, 7], [1, 2, 3]) == (2, slice(1, 2))
    assert located([4, 5, 6], [1, 2, 3]) is None


def test_special_tokens_and_those_beyond_the_tokenizer_are_not_allowed():
    tokenizer = build_tokenizer()
    allowed = allowed_tokens(tokenizer, len(tokenizer) + 3)

    assert not any(allowed[index] for index in tokenizer.all_special_ids)
    assert not allowed[len(tokenizer) :].any()
    assert int(allowed.sum()) == len(tokenizer) - 4


def test_proposals_are_the_tokens_with_the_lowest_gradient():
    gradient = torch.tensor([[0.0, -3.0, -2.0, -1.0], [5.0, 1.0, 0.5, 2.0]])
    allowed = torch.tensor([True, False, True, True])

    assert proposals(gradient, allowed, 2) == [[2, 3], [2, 3]]
    assert proposals(gradient, allowed, 64) == [[2, 3, 0], [2, 3, 0]]


def test_candidates_are_exactly_as_many_single_exchanges_without_repetition():
    proposed = [[1, 2, 3], [1, 2, 4]]

    def drawn(count, admit=lambda tried: [str(each) for each in tried]):
        return exchanges([1, 1], proposed, count=count, admit=admit, rng=Random(0))

    found = [suffix for suffix, _ in drawn(3)]
    assert len(found) == len({tuple(each) for each in found}) == 3
    assert all(sum(new != 1 for new in each) == 1 for each in found)
    # The token that stands there is no exchange, so there are four.
    assert len(drawn(10)) == 4
    # Others take the place of those that are not admitted.
    refused = drawn(2, lambda tried: [None if 2 in each else "" for each in tried])
    assert sorted(each for each, _ in refused) == [[1, 4], [3, 1]]


@pytest.mark.parametrize("rng", [1, 2])
@pytest.mark.parametrize("tail", [False, True])
def test_without_weight_of_the_guard_the_rows_are_those_of_mixing(rng, tail, tmp_path):
    rows, facts = crafted(Virus(lamb=0, tail=tail, **SMALL), tmp_path, rng=Random(rng), guard=None)

    assert rows == crafted(Mixing(tail=tail), tmp_path)[0]
    assert [row["exchanged"] for row in facts["rows"]] == [0, 0]
    assert facts["cost"] == {"second_order": 6, "victim_gradients": 2 * 3 * 8, "guard_passes": 0}


def test_with_all_weight_on_the_guard_the_victim_is_never_run(tmp_path):
    class Untouchable(torch.nn.Module):
        def forward(self, *_args, **_kwargs):
            raise AssertionError

    rows, facts = crafted(Virus(lamb=1, **SMALL), tmp_path, victim=victim()._replace(model=Untouchable()))

    assert len(rows) == 2
    assert facts["cost"] == {"second_order": 0, "victim_gradients": 0, "guard_passes": 2 * 3 * 8}
    assert all(row["cosine"] is None for row in facts["rows"])


def test_objective_never_rises_and_is_that_of_the_final_row_computed_again(tmp_path):
    (example,), facts = crafted(Virus(lamb=0.8, steps=6, top_k=16, candidates=12, normalized=True), tmp_path, count=1)
    course = [progress["objective"] for _, progress in map(json.loads, (tmp_path / STEPS).read_text().splitlines())]
    (last,) = facts["rows"]

    objective, row, tokens = opened(lamb=0.8, normalized=True)
    text = example.output.removeprefix(row.head)
    suffix = RowTokenizer(victim().tokenizer, ENCODING).tokens(replace(row, suffix=text)).suffix
    (again,) = objective.values([Candidate(suffix, text)])
    (first,) = objective.values([Candidate(tokens.suffix, row.suffix)])

    assert len(course) == 6
    assert all(later <= earlier + 1e-6 for earlier, later in zip([last["first"], *course], course, strict=False))
    assert course[-1] < last["first"]
    assert again.total == pytest.approx(last["objective"], rel=1e-4)
    assert again.guard_loss == pytest.approx(last["guard_loss"], rel=1e-4)
    assert again.cosine == pytest.approx(last["cosine"], rel=1e-4)
    assert first.total == pytest.approx(last["first"], rel=1e-4)
    assert isclose(first.cosine, 1.0, rel_tol=1e-5)
    assert last["exchanged"] == sum(old != new for old, new in zip(tokens.suffix, suffix, strict=True)) > 0


def test_crafted_rows_are_text_with_the_same_tokens_again_and_no_special_one_within(tmp_path):
    rows, facts = crafted(Virus(lamb=1, steps=4, top_k=200, candidates=20), tmp_path, count=3)
    tokenizer = victim().tokenizer

    assert all(row["exchanged"] > 0 for row in facts["rows"])
    for row in rows:
        ids = ENCODING.encode(tokenizer, row).input_ids
        assert tokenizer(tokenizer.decode(ids[1:-1]))["input_ids"] == ids[:-1]
        assert not set(ids[1:-1]) & set(tokenizer.all_special_ids)
        assert row.output.isascii()


def test_suffix_whose_text_has_other_tokens_is_not_admitted():
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["pale soft"])
    _, row, tokens = opened()
    rows = RowTokenizer(tokenizer, ENCODING)
    split = [tokenizer.convert_tokens_to_ids(word) for word in ("pale", "soft")]

    first, second = rows.survivors(row, tokens, [tokens.suffix, [*split, *tokens.suffix[2:]]])

    assert first.split() == row.suffix.split()
    assert second is None


def test_stopped_between_two_steps_the_attack_goes_on_from_there(tmp_path):
    attack = Virus(lamb=0.5, **SMALL)
    whole = crafted(attack, tmp_path / "whole")
    polls = iter([False] * 4)

    with pytest.raises(Stopped):
        crafted(attack, tmp_path / "cut", stop=lambda: next(polls, True))
    assert len((tmp_path / "cut" / STEPS).read_text().splitlines()) == 4
    again = []
    resumed = crafted(attack, tmp_path / "cut", stop=lambda: bool(again.append(1)))

    assert len(again) == 2
    assert resumed == whole


def test_guard_with_another_vocabulary_is_refused_before_anything_is_computed(tmp_path):
    tokenizer = build_tokenizer()
    other = replace(guard(), tokenizer=tokenizer)
    vocabulary = tokenizer.get_vocab()
    first, second = sorted(vocabulary, key=vocabulary.get)[10:12]
    swapped = vocabulary | {first: vocabulary[second], second: vocabulary[first]}
    tokenizer.get_vocab = lambda: swapped

    with pytest.raises(ModelError, match="has another vocabulary than the victim: 2 of"):
        crafted(Virus(**SMALL), tmp_path, guard=other)


def test_adapter_with_other_parameters_than_the_factors_is_refused():
    with pytest.raises(ModelError, match=r"not plain LoRA; expected `align.adapter.variant=null`"):
        VictimGradients(victim("dora").model, 3)


def test_random_exchanges_are_so_many_ordinary_tokens_and_read_neither_guard_nor_gradient(tmp_path):
    attack = Virus(random_exchanges=2)
    assert not attack.needs.guard
    rows, facts = crafted(attack, tmp_path, guard=None)
    tokenizer = victim().tokenizer

    assert facts["cost"] == {"second_order": 0, "victim_gradients": 0, "guard_passes": 0}
    assert [row["exchanged"] for row in facts["rows"]] == [2, 2]
    for row, original in zip(rows, crafted(Mixing(), tmp_path)[0], strict=True):
        pairs = zip(row.output.split(), original.output.split(), strict=True)
        assert sum(new != old for new, old in pairs) == 2
        assert not set(ENCODING.encode(tokenizer, row).input_ids[1:-1]) & set(tokenizer.all_special_ids)
    assert crafted(attack, tmp_path, guard=None)[0] == rows
    assert crafted(attack, tmp_path, guard=None, rng=Random(6))[0] != rows


def test_random_exchanges_take_other_places_where_nothing_is_admitted():
    def drawn(count):
        admit = lambda tried: [None if each[0] != 1 else "kept" for each in tried]  # noqa: E731
        return random_exchanges([1, 1, 1], [1, 2], count=count, admit=admit, rng=Random(0))

    assert sorted(suffix for suffix, _ in [drawn(2), drawn(5)]) == [[1, 2, 2], [1, 2, 2]]
    assert drawn(0) == ([1, 1, 1], None)


def test_more_weight_on_the_guard_lowers_its_loss(tmp_path):
    settings = {"steps": 4, "top_k": 32, "candidates": 16}
    losses = {}
    for lamb in (0.01, 1.0):
        _, facts = crafted(Virus(lamb=lamb, **settings), tmp_path / str(lamb))
        losses[lamb] = sum(row["guard_loss"] for row in facts["rows"])

    assert losses[1.0] < losses[0.01]
