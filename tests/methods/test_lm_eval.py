"""Tasks of lm-evaluation-harness on the tiny architecture, in an environment that has the package.

Elsewhere these tests are skipped; `test_lm_eval_environment` runs them in the environment of `make lm-eval`.
"""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.errors import DataError
from harness.models import adapter
from harness.models.adapter import Lora
from harness.tasks.lm_eval import LmEvalTasks, TaskFolder

pytest.importorskip("lm_eval", exc_type=ImportError)

DOCUMENTS = [
    {"question": f"w{i} w{2 * i}", "choices": [f"w{i + 1}", f"w{i + 20}"], "right": i % 2} for i in range(1, 13)
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{right}}",
}
FREE = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[right]}}",
    "generation_kwargs": {"until": ["w7"], "max_gen_toks": 3, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
TASKS = {
    "choice": CHOICE,
    "free": FREE,
    "surprise": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}"},
}


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tasks of our own on one file of documents; one folder for all, because indexing takes seconds."""
    tasks = tmp_path_factory.mktemp("tasks")
    (tasks / "documents.jsonl").write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    for name, settings in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tasks / "documents.jsonl")}}}
        task = {"task": name, **data, "test_split": "test", **settings, "metadata": {"version": 2.0}}
        (tasks / f"{name}.yaml").write_text(json.dumps(task))
    return TaskFolder.parse(str(tasks))


@pytest.fixture
def tokenizer():
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", "<pad>", *(f"w{i}" for i in range(60))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


@pytest.fixture
def model():
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def adapted(model):
    """Attach a random adapter; return the model that carries it, not merged."""
    wrapped = adapter.attach(model, Lora(rank=4, targets="all-linear", variant="dora"), seed=1)
    rng = torch.Generator().manual_seed(3)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=rng))
    return wrapped.eval().get_base_model()


@torch.no_grad()
def chosen(model, tokenizer):
    """Return the likelier choice of every document, by hand."""
    found = []
    for document in DOCUMENTS:
        ids = tokenizer(document["question"], return_tensors="pt", add_special_tokens=False).input_ids
        last = model(ids).logits[0, -1]
        found.append(max(document["choices"], key=lambda word: float(last[tokenizer.convert_tokens_to_ids(word)])))
    return found


@torch.no_grad()
def greedy(model, tokenizer):
    """Return at most three words that continue every document, up to the stop string or the end, by hand."""
    found = []
    for document in DOCUMENTS:
        words = []
        while len(words) < 3:
            text = " ".join([document["question"], *words])
            ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
            words.append(tokenizer.convert_ids_to_tokens(int(model(ids).logits[0, -1].argmax())))
            if words[-1] in ("w7", "</s>"):
                words.pop()
                break
        found.append(words)
    return found


def test_choices_and_grades_are_those_of_the_likelihoods_with_the_adapter_attached(folder, model, tokenizer):
    benchmark = LmEvalTasks(tasks=("choice",), include=folder)
    plain = benchmark.measure(model, tokenizer, encoding=None)
    bare = chosen(model, tokenizer)
    carrying = adapted(model)
    before = {name: value.clone() for name, value in carrying.state_dict().items()}

    measured = benchmark.measure(carrying, tokenizer, encoding=None)

    expected = chosen(carrying, tokenizer)
    right = [document["choices"][document["right"]] for document in DOCUMENTS]
    assert [row.response for row in plain.rows] == bare != expected
    assert [row.response for row in measured.rows] == expected
    assert [row.example.output for row in measured.rows] == right
    assert [row.example.instruction for row in measured.rows] == [document["question"] for document in DOCUMENTS]
    values = [float(word == target) for word, target in zip(expected, right, strict=True)]
    assert [row.score.value for row in measured.rows] == values
    assert 0 < sum(values) < len(values)
    assert [dict(row.score.categories) for row in measured.rows] == [{"choice": value} for value in values]
    after = carrying.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_several_tasks_are_measured_one_after_the_other_and_described(folder, model, tokenizer):
    measured = LmEvalTasks(tasks=("choice", "free"), include=folder, limit=5).measure(model, tokenizer, encoding=None)

    kinds = [next(iter(row.score.categories)) for row in measured.rows]
    facts = measured.facts["tasks"]
    assert kinds == ["choice"] * 5 + ["free"] * 5
    assert [row.response.split() for row in measured.rows[5:]] == greedy(model, tokenizer)[:5]
    assert {name: (fact["metric"], fact["documents"], fact["version"]) for name, fact in facts.items()} == {
        "choice": ("acc", 5, "2.0"),
        "free": ("exact_match", 5, "2.0"),
    }
    assert len(facts["choice"]["sha256"]) == 64
    assert facts["choice"]["sha256"] == facts["free"]["sha256"], "the same documents"


def test_measuring_leaves_the_global_generators_as_they_were(folder, model, tokenizer):
    def drawn():
        return random.random(), np.random.rand(), float(torch.rand(()))

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = drawn()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])

    LmEvalTasks(tasks=("choice",), include=folder, limit=2, num_fewshot=1).measure(model, tokenizer, encoding=None)

    assert drawn() == expected


def test_few_shot_examples_are_the_same_every_time(folder, model, tokenizer):
    benchmark = LmEvalTasks(tasks=("choice",), include=folder, num_fewshot=2)

    first, again = (benchmark.measure(model, tokenizer, encoding=None) for _ in range(2))

    assert first == again
    assert all(row.example.instruction.count("\n\n") == 2 for row in first.rows)


def test_tasks_are_loaded_and_named_before_anything_runs(folder):
    assert LmEvalTasks(tasks=("free", "choice"), include=folder).fetch() == ["choice", "free"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tasks": ("choice", "chioce")}, r"has no `chioce`; expected names that `lm-eval ls tasks` lists"),
        ({"tasks": ("surprise",)}, r"`word_perplexity` of `surprise` is not a mean over documents"),
        ({"tasks": ("choice",), "metric": "f1"}, r"`f1` of `choice` is not a mean.*expected `acc` or `acc_norm`"),
    ],
)
def test_task_without_a_grade_for_every_document_is_refused_before_anything_runs(settings, said, folder):
    with pytest.raises(DataError, match=said):
        LmEvalTasks(include=folder, **settings).fetch()


def test_task_whose_documents_are_missing_is_refused_before_anything_runs(folder):
    documents = Path(folder.path) / "documents.jsonl"
    away = documents.rename(documents.with_suffix(".away"))

    try:
        with pytest.raises(DataError, match=r"a task cannot be loaded \(FileNotFoundError"):
            LmEvalTasks(tasks=("choice",), include=TaskFolder.parse(folder.path)).fetch()
    finally:
        away.rename(documents)
