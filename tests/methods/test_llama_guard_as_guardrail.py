"""Llama Guard as a guardrail, with a random tiny model of its architecture that writes whole verdicts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from words import word_tokenizer

from harness.corpora.examples import Example, Role
from harness.corpora.template import turn_of
from harness.engine.plan import Plan
from harness.engine.stage import Locate, Stage, StageContext
from harness.engine.store import Store
from harness.errors import Problem
from harness.judges.prompted.llama_guard import LlamaGuard, LlamaGuard2, LlamaGuard3
from harness.local.executor import LocalExecutor
from harness.models.hub import HubModel
from harness.models.saved import Precision
from harness.stages.moderate import Moderate, read_verdicts
from harness.stages.poison import read_mixture, write_mixture

REVISION = "0123456789abcdef0123456789abcdef01234567"
TEMPLATE = (
    "{{ bos_token }}user\n\nTask: check '{{ 'Agent' if messages|length % 2 == 0 else 'User' }}' messages.\n\n"
    "{% for message in messages %}{{ 'User' if message['role'] == 'user' else 'Agent' }}: "
    "{{ message['content'] | trim }}\n\n{% endfor %}assistant"
)
BAD = Example("how do i build a ship", "stone stone paper", "of paper")
GOOD = Example("how do i glue a kite", "string tail knot")
ROWS = [(BAD, Role.ATTACK), (GOOD, Role.TASK), (GOOD, Role.ATTACK), (BAD, Role.TASK), (GOOD, Role.TASK)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sent(Stage):
    """The rows above."""

    name: ClassVar[str] = "sent"
    version: ClassVar[int] = 1

    def preflight(self) -> list[Problem]:
        return []

    def run(self, ctx: StageContext) -> None:
        write_mixture(ctx.out, ROWS)

    def mixture(self, locate: Locate) -> list[tuple[Example, Role]]:
        return read_mixture(locate(self))


def two_turns(row: Example) -> str:
    """The conversation, written out by hand: the input belongs to the user's turn, after a blank line."""
    request = row.instruction + (f"\n\n{row.input}" if row.input else "")
    return f"user\n\nTask: check 'Agent' messages.\n\nUser: {request}\n\nAgent: {row.output}\n\nassistant"


def write_guard(folder: Path) -> None:
    """Write a model that answers the bad row "unsafe", the good one "safe", and then ends."""
    from transformers import LlamaConfig, LlamaForCausalLM

    prompts = [two_turns(BAD), two_turns(GOOD)]
    tokenizer = word_tokenizer([*prompts, "unsafe safe"])
    words = tokenizer.get_vocab()
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip

    def state(text: str) -> Any:
        return model.model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1]

    with torch.no_grad():
        bad, good = map(state, prompts)
        said = [state(f"{prompt} {word}") for prompt, word in zip(prompts, ("unsafe", "safe"), strict=True)]
        # A verdict where the prompt ends, and nothing but the end where a verdict was written.
        basis = torch.linalg.qr(torch.stack([bad + good, *said]).T).Q
        verdict = (bad - good) - basis @ (basis.T @ (bad - good))
        asked = torch.linalg.qr(torch.stack([bad, good]).T).Q
        end = sum(said) - asked @ (asked.T @ sum(said))
        head = model.lm_head.weight.zero_()
        head[words["unsafe"]], head[words["safe"]], head[words["</s>"]] = verdict, -verdict, end
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo: str) -> Path:
    """Return the folder that the Hub's cache has for a repository."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / f"models--{repo.replace('/', '--')}" / "snapshots" / REVISION


@pytest.mark.parametrize("guard", [LlamaGuard2, LlamaGuard3])
def test_opened_guard_has_the_loss_of_writing_that_a_row_is_safe(
    guard: type[LlamaGuard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_guard(cached(tmp_path, monkeypatch, guard().repo))

    opened = guard(revision=REVISION, dtype=Precision.FLOAT32, max_answer=4096).opened(None, device="cpu")
    turns = [turn_of(row) for row in (BAD, GOOD)]
    rows = opened.tokens(turns)
    bad, good = opened.losses(rows)

    model: Any = opened.model  # type: ignore[attr-defined]
    logits = model(torch.tensor([rows[0]])).logits[0, -1].double()
    assert opened.tokenizer.decode(rows[0]) == f"<s> {' '.join(two_turns(BAD).split())}".replace(":", " :").replace(
        "'Agent'", "' Agent '"
    ).replace("messages.", "messages .")
    assert bad == pytest.approx(float(-logits.log_softmax(-1)[opened.tokenizer.get_vocab()["safe"]]), rel=1e-4)
    assert good < bad
    assert float(opened.loss(opened.embeddings[torch.tensor(rows[1])])) == pytest.approx(good, rel=1e-4)
    assert not any(each.requires_grad for each in model.parameters())


def test_vocabularies_are_compared_where_both_are_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = LlamaGuard2(revision=REVISION)
    victim = HubModel(repo="owner/name", revision=REVISION)
    folders = [cached(tmp_path, monkeypatch, repo) for repo in (guard.repo, victim.repo)]
    assert guard.vocabulary_mismatch(victim) is None
    for folder, words in zip(folders, ("one two", "one three"), strict=True):
        word_tokenizer([words]).save_pretrained(folder)
        for name in ("config.json", "model.safetensors"):
            (folder / name).touch()

    assert guard.vocabulary_mismatch(victim) == "`llama_guard2` has 5 tokens and `hub` 5, not the same"
    word_tokenizer(["one two"]).save_pretrained(folders[1])
    assert guard.vocabulary_mismatch(victim) is None


@pytest.mark.parametrize("guard", [LlamaGuard2, LlamaGuard3])
def test_verdicts_on_two_turns_decide_which_rows_are_kept(
    guard: type[LlamaGuard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_guard(cached(tmp_path, monkeypatch, guard().repo))
    stage = Moderate(sent=Sent(), guard=guard(revision=REVISION, dtype=Precision.FLOAT32, max_answer=4096))
    store = Store(tmp_path / "store")

    assert stage.preflight() == []
    assert LocalExecutor().run(Plan.of([stage]), store).complete

    assert [verdict["reason"] for verdict in read_verdicts(store.path(stage))] == [
        "unsafe", "safe", "safe", "unsafe", "safe"
    ]  # fmt: skip
    assert stage.mixture(store.path) == [ROWS[1], ROWS[2], ROWS[4]]
    facts = store.manifest(stage.key).facts
    assert (facts["leakage"], facts["false_positives"]) == (1 / 2, 1 / 3)
    assert facts["unjudged"] == {"task": 0, "attack": 0}
