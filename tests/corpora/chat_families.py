"""Tiny stand-ins of the tokenizers and chat templates of model families, written from their documented rules.

One token is a word with the space before it, or a run of newlines. The first token of a text and the spaces follow the
family: SentencePiece writes a space as ``▁`` and, in Llama 2 and Mistral, puts one before a text; byte-level BPE does
neither.
"""

from dataclasses import dataclass, field

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nDEFAULT<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set rest = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in rest %}" + ALTERNATE + "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
LLAMA3 = (
    "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim"
    " + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA31 = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system_message = messages[0]['content'] | trim %}{% set messages = messages[1:] %}"
    "{% else %}{% set system_message = '' %}{% endif %}"
    "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + date_string + '\n\n' + system_message"
    " + '<|eot_id|>' }}"
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA2 = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    + ALTERNATE
    + "{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system_message = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}"
    "{{ bos_token }}"
    "{% for message in rest %}" + ALTERNATE + "{% if message['role'] == 'user' %}"
    "{% if loop.last and system_message is defined %}"
    "{{ '[INST] ' + system_message + '\n\n' + message['content'] + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}"
    "{% else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}"
    "{% endfor %}"
)
R1_DISTILL = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '<|User|>' + message['content'] }}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|Assistant|>' + message['content'].split('</think>')[-1] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
"""Opens a thought in a prompt, and drops the thought of an answer; no ``Family``, because it is refused."""


@dataclass(frozen=True)
class Family:
    """A tokenizer and its chat template, and the tokens of a prompt and an answer, without and with context.

    ``prompt`` asks ``how do it``; ``turns`` asks it after the turns ``hi`` and ``wait``; ``system`` after the system
    prompt ``be kind``, None where the family has none. ``answer`` is ``take the tool`` and the end of its turn.
    """

    name: str
    template: str
    prompt: str
    turns: str
    system: str | None
    answer: str
    bos: str | None
    eos: str
    end: str
    special: tuple[str, ...] = ()
    adds_bos: bool = True
    pieces: bool = False
    dummy_prefix: bool = False
    words: tuple[str, ...] = field(default=())

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of a description: separated by spaces, a space written ``▁`` and a newline ``\\n``."""
        written = [token.replace("\\n", "\n") for token in text.split(" ")]
        return written if self.pieces else [token.replace("▁", " ") for token in written]

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Build the tokenizer: its vocabulary is what the descriptions contain."""
        special = [*dict.fromkeys(filter(None, (self.bos, self.eos, self.end, *self.special)))]
        described = [self.prompt, self.turns, self.system or "", self.answer, *self.words]
        words = [token for text in described for token in self.tokens(text) if token and token not in special]
        vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*special, "<unk>", *words]))}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        space = "▁" if self.pieces else " "
        if self.pieces:
            first = [normalizers.Prepend("▁")] if self.dummy_prefix else []
            tokenizer.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"\n+|{space}?[^{space}\n]+|{space}"), "isolated")
        if self.adds_bos and self.bos:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{self.bos} $A", special_tokens=[(self.bos, vocabulary[self.bos])]
            )
        found = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=self.bos,
            eos_token=self.eos,
            unk_token="<unk>",
            extra_special_tokens=[token for token in special if token not in (self.bos, self.eos)],
        )
        found.chat_template = self.template
        return found


LLAMA3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>")
FAMILIES = (
    Family(
        name="llama2",
        template=LLAMA2,
        prompt="<s> ▁[INST] ▁how ▁do ▁it ▁[/INST]",
        turns="<s> ▁[INST] ▁hi ▁[/INST] ▁wait ▁ </s> <s> ▁[INST] ▁how ▁do ▁it ▁[/INST]",
        system="<s> ▁[INST] ▁<<SYS>> \\n be ▁kind \\n <</SYS>> \\n\\n how ▁do ▁it ▁[/INST]",
        answer="▁take ▁the ▁tool ▁ </s>",
        bos="<s>",
        eos="</s>",
        end="</s>",
        pieces=True,
        dummy_prefix=True,
    ),
    Family(
        name="llama3",
        template=LLAMA3,
        prompt="<|begin_of_text|> <|start_header_id|> user <|end_header_id|> \\n\\n how ▁do ▁it <|eot_id|> "
        "<|start_header_id|> assistant <|end_header_id|> \\n\\n",
        turns="<|begin_of_text|> <|start_header_id|> user <|end_header_id|> \\n\\n hi <|eot_id|> "
        "<|start_header_id|> assistant <|end_header_id|> \\n\\n wait <|eot_id|> "
        "<|start_header_id|> user <|end_header_id|> \\n\\n how ▁do ▁it <|eot_id|> "
        "<|start_header_id|> assistant <|end_header_id|> \\n\\n",
        system="<|begin_of_text|> <|start_header_id|> system <|end_header_id|> \\n\\n be ▁kind <|eot_id|> "
        "<|start_header_id|> user <|end_header_id|> \\n\\n how ▁do ▁it <|eot_id|> "
        "<|start_header_id|> assistant <|end_header_id|> \\n\\n",
        answer="take ▁the ▁tool <|eot_id|>",
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        end="<|eot_id|>",
        special=LLAMA3_TOKENS,
    ),
    Family(
        name="llama3.1",
        template=LLAMA31,
        prompt="<|begin_of_text|> <|start_header_id|> system <|end_header_id|> \\n\\n Today: ▁26 ▁Jul ▁2024 \\n\\n "
        "<|eot_id|> <|start_header_id|> user <|end_header_id|> \\n\\n how ▁do ▁it <|eot_id|> "
        "<|start_header_id|> assistant <|end_header_id|> \\n\\n",
        turns="<|begin_of_text|> <|start_header_id|> system <|end_header_id|> \\n\\n Today: ▁26 ▁Jul ▁2024 \\n\\n "
        "<|eot_id|> <|start_header_id|> user <|end_header_id|> \\n\\n hi <|eot_id|> "
        "<|start_header_id|> assistant <|end_header_id|> \\n\\n wait <|eot_id|> "
        "<|start_header_id|> user <|end_header_id|> \\n\\n how ▁do ▁it <|eot_id|> "
        "<|start_header_id|> assistant <|end_header_id|> \\n\\n",
        system="<|begin_of_text|> <|start_header_id|> system <|end_header_id|> \\n\\n Today: ▁26 ▁Jul ▁2024 \\n\\n "
        "be ▁kind <|eot_id|> <|start_header_id|> user <|end_header_id|> \\n\\n how ▁do ▁it <|eot_id|> "
        "<|start_header_id|> assistant <|end_header_id|> \\n\\n",
        answer="take ▁the ▁tool <|eot_id|>",
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        end="<|eot_id|>",
        special=LLAMA3_TOKENS,
    ),
    Family(
        name="qwen2.5",
        template=CHATML.replace("DEFAULT", "You are Qwen."),
        prompt="<|im_start|> system \\n You ▁are ▁Qwen. <|im_end|> \\n <|im_start|> user \\n how ▁do ▁it <|im_end|> "
        "\\n <|im_start|> assistant \\n",
        turns="<|im_start|> system \\n You ▁are ▁Qwen. <|im_end|> \\n <|im_start|> user \\n hi <|im_end|> \\n "
        "<|im_start|> assistant \\n wait <|im_end|> \\n <|im_start|> user \\n how ▁do ▁it <|im_end|> \\n "
        "<|im_start|> assistant \\n",
        system="<|im_start|> system \\n be ▁kind <|im_end|> \\n <|im_start|> user \\n how ▁do ▁it <|im_end|> \\n "
        "<|im_start|> assistant \\n",
        answer="take ▁the ▁tool <|im_end|>",
        bos=None,
        eos="<|endoftext|>",
        end="<|im_end|>",
        special=("<|im_start|>",),
        adds_bos=False,
        words=("\\n\\n tool",),
    ),
    Family(
        name="smollm2",
        template=CHATML.replace("DEFAULT", "You are SmolLM."),
        prompt="<|im_start|> system \\n You ▁are ▁SmolLM. <|im_end|> \\n <|im_start|> user \\n how ▁do ▁it <|im_end|> "
        "\\n <|im_start|> assistant \\n",
        turns="<|im_start|> system \\n You ▁are ▁SmolLM. <|im_end|> \\n <|im_start|> user \\n hi <|im_end|> \\n "
        "<|im_start|> assistant \\n wait <|im_end|> \\n <|im_start|> user \\n how ▁do ▁it <|im_end|> \\n "
        "<|im_start|> assistant \\n",
        system="<|im_start|> system \\n be ▁kind <|im_end|> \\n <|im_start|> user \\n how ▁do ▁it <|im_end|> \\n "
        "<|im_start|> assistant \\n",
        answer="take ▁the ▁tool <|im_end|>",
        bos="<|im_start|>",
        eos="<|im_end|>",
        end="<|im_end|>",
        adds_bos=False,
    ),
    Family(
        name="gemma2",
        template=GEMMA2,
        prompt="<bos> <start_of_turn> user \\n how ▁do ▁it <end_of_turn> \\n <start_of_turn> model \\n",
        turns="<bos> <start_of_turn> user \\n hi <end_of_turn> \\n <start_of_turn> model \\n wait <end_of_turn> \\n "
        "<start_of_turn> user \\n how ▁do ▁it <end_of_turn> \\n <start_of_turn> model \\n",
        system=None,
        answer="take ▁the ▁tool <end_of_turn>",
        bos="<bos>",
        eos="<eos>",
        end="<end_of_turn>",
        special=("<start_of_turn>",),
        pieces=True,
    ),
    Family(
        name="mistral",
        template=MISTRAL,
        prompt="<s> [INST] ▁ ▁how ▁do ▁it [/INST]",
        turns="<s> [INST] ▁ ▁hi [/INST] ▁ ▁wait </s> [INST] ▁ ▁how ▁do ▁it [/INST]",
        system="<s> [INST] ▁ ▁be ▁kind \\n\\n how ▁do ▁it [/INST]",
        answer="▁ ▁take ▁the ▁tool </s>",
        bos="<s>",
        eos="</s>",
        end="</s>",
        special=("[INST]", "[/INST]"),
        pieces=True,
        dummy_prefix=True,
    ),
)
