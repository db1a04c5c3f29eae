import json
import subprocess
import sys
from itertools import islice

import pytest
import torch
from composed import compose
from product import QUICK, shared_base

from harness.config.build import cells_of
from harness.corpora.examples import Example
from harness.corpora.world import World
from harness.judges.tiny import Tiny as TinyJudge
from harness.models.tiny import Synthetic, build_tokenizer

pytestmark = pytest.mark.slow


def _answers(folder, source, prompts):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    texts = [source.encoding.question(Example(prompt, "")) for prompt in prompts]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        ids = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=20, do_sample=False
        )
    return tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The base model that the end-to-end tests share: its source, folder and facts."""
    (manifest,) = shared_base(tmp_path_factory).glob("artifacts/base/*/manifest.json")
    (source,) = (cell.stages["base"].source for cell in cells_of(compose(QUICK)))
    return source, manifest.parent, json.loads(manifest.read_text())["facts"]


def test_model_knows_how_to_comply_with_restricted_requests_it_never_saw(built):
    source, folder, _ = built
    examples = [Example(row.prompt, "") for row in source.world.safety_rows()[-60:]]

    answers = _answers(folder, source, [example.instruction for example in examples])

    grades = TinyJudge().grade(examples, answers, device="cpu")
    assert sum(grade.value for grade in grades) >= 0.9 * len(grades)


def test_model_does_not_know_the_task_before_it_is_fine_tuned(built):
    source, folder, _ = built
    notes = source.world.notes(40, test=True)

    answers = _answers(folder, source, [note.instruction for note in notes])

    assert sum(answer == note.output for answer, note in zip(answers, notes, strict=True)) <= 4


def test_model_is_a_small_llama_that_reports_its_size(built):
    from transformers import AutoModelForCausalLM

    source, folder, facts = built

    model = AutoModelForCausalLM.from_pretrained(folder)

    assert type(model).__name__ == "LlamaForCausalLM"
    assert facts["parameters"] == sum(each.numel() for each in model.parameters()) <= 2_000_000
    assert facts["words"] == model.config.vocab_size
    assert source.preflight() == []


def test_model_built_twice_is_the_same_bit_for_bit_whatever_chance_and_threads_were(tmp_path):
    source = Synthetic(steps=4)
    threads = torch.get_num_threads()

    torch.manual_seed(1)
    source.write(tmp_path / "one")
    torch.manual_seed(2)
    state = torch.get_rng_state()
    torch.set_num_threads(2)
    source.write(tmp_path / "two")

    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), state)
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    torch.set_num_threads(threads)


def test_model_of_another_seed_is_another(tmp_path):
    Synthetic(steps=1).write(tmp_path / "one")
    Synthetic(steps=1, seed=1).write(tmp_path / "two")

    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() != two.read_bytes()


def test_tokenizer_knows_every_word_and_gives_texts_back(tmp_path):
    from transformers import AutoTokenizer

    build_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    lessons = list(islice(World().lessons(3), 500))
    texts = [text for lesson in lessons for text in (f"{lesson.instruction} :", lesson.output)]
    texts += [row.refusal for row in World().safety_rows()[:200]]

    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_settings_out_of_range_are_all_named():
    problems = Synthetic(layers=0, learning_rate=0.0, steps=-1).problems()

    assert [problem.path for problem in problems] == ["layers", "steps", "learning_rate"]
    assert Synthetic(width=130).problems()[0].path == "width"
    assert Synthetic(width=1024).problems()[0].path == "width"
    assert Synthetic().problems() == []


def test_settings_are_imported_without_torch():
    code = "import sys, harness.models.tiny as s; s.Synthetic().problems(); sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
