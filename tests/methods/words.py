"""A tokenizer of whole words for tiny models: every word of some texts, with BOS before a text."""

from collections.abc import Iterable
from typing import Any


def word_tokenizer(texts: Iterable[str]) -> Any:
    """Return a fast tokenizer whose vocabulary is <unk>, <s>, </s> and the words of the texts, in this order."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    splitter = pre_tokenizers.Whitespace()
    found = [word for text in texts for word, _ in splitter.pre_tokenize_str(text)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(["<unk>", "<s>", "</s>", *found]))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = splitter
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
