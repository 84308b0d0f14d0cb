"""Tokens, targets and bytes of examples, and exactly as many as asked for."""

import pytest
from conftest import Packaged, byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from kvcore.data.encoding import encode, first_tokens
from kvcore.data.examples import Example
from kvcore.schema import SettingError

TEXT = "Zwölf Boxkämpfer 🥊 und 3,14: naïve façade.\n\n\tTabbed  twice."


def test_text_is_tokenized_verbatim(packaged: Packaged) -> None:
    _, _, tokenizer = packaged
    (encoded,) = encode([Example(TEXT)], tokenizer)
    assert encoded.tokens.tolist() == tokenizer(TEXT)["input_ids"]
    (cut,) = encode([Example(TEXT)], tokenizer, max_length=7)
    assert cut.tokens.tolist() == tokenizer(TEXT)["input_ids"][:7]


def test_bytes_of_the_targets(packaged: Packaged) -> None:
    name, _, tokenizer = packaged
    (encoded,) = encode([Example(TEXT)], tokenizer)
    total = len(TEXT.encode())
    if name == "gemma3_270m":  # begins with <bos>, so that all text is predicted
        assert encoded.target_bytes("all") == total
    else:
        first = tokenizer.decode(encoded.tokens[:1])
        assert encoded.target_bytes("all") == total - len(first.encode())


def test_response_begins_where_its_characters_begin(packaged: Packaged) -> None:
    _, _, tokenizer = packaged
    (encoded,) = encode([Example(prompt="What is 2 + 2?", response="It is four.")], tokenizer)
    assert tokenizer.decode(encoded.tokens[encoded.response_start :]).strip() == "It is four."
    assert tokenizer.decode(encoded.tokens, skip_special_tokens=True) == "What is 2 + 2?\n\nIt is four."
    assert encoded.first_target("response") == encoded.response_start
    assert encoded.target_bytes("response") == len("It is four.")
    assert encoded.first_target("all") == 1


def test_chat_template_of_smollm2(packaged: Packaged) -> None:
    name, _, tokenizer = packaged
    examples = [Example(prompt="What is 2 + 2?", response="It is four.")]
    if name == "gemma3_270m":
        with pytest.raises(SettingError, match="no chat template"):
            encode(examples, tokenizer, template="chat")
        return
    (encoded,) = encode(examples, tokenizer, template="chat")
    text = tokenizer.decode(encoded.tokens)
    assert text.startswith("<|im_start|>system\n")
    assert text.count("<|im_start|>") == 3
    assert tokenizer.decode(encoded.tokens[encoded.response_start :]) == "It is four.<|im_end|>\n"
    with pytest.raises(SettingError, match="no turns"):
        encode([Example("text")], tokenizer, template="chat")


def test_a_token_over_the_border_belongs_to_the_response(packaged: Packaged) -> None:
    _, _, tokenizer = packaged
    (encoded,) = encode([Example(prompt="A", response="\nB")], tokenizer)  # "\n\n" + "\nB": newlines share a token
    assert "B" in tokenizer.decode(encoded.tokens[encoded.response_start :])
    assert encoded.target_bytes("response") >= len("\nB")


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 12), st.integers(1, 60))
def test_max_tokens_is_met_exactly(lengths: list[int], max_length: int, max_tokens: int) -> None:
    examples = [Example("x" * length) for length in lengths]
    available = sum(min(length, max_length) for length in lengths)
    tokenizer = byte_tokenizer()
    if max_tokens > available:
        with pytest.raises(SettingError, match=f"dataset.max_tokens = {max_tokens}: .* have {available} tokens"):
            encode(examples, tokenizer, max_length=max_length, max_tokens=max_tokens)
        return
    encoded = encode(examples, tokenizer, max_length=max_length, max_tokens=max_tokens)
    assert sum(len(example) for example in encoded) == max_tokens
    kept = [min(length, max_length) for length in lengths if length][: len(encoded)]
    assert [len(example) for example in encoded][:-1] == kept[:-1]


def test_first_tokens_cuts_the_last_example(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode([Example("abc"), Example("defg"), Example("h")], tokenizer)
    assert [len(example) for example in first_tokens(encoded, 5, "setting")] == [3, 2]
    assert [len(example) for example in first_tokens(encoded, 8, "setting")] == [3, 4, 1]
    with pytest.raises(SettingError, match="setting = 9: the selected examples have 8 tokens"):
        first_tokens(encoded, 9, "setting")


def test_a_slow_tokenizer_is_refused(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tokenizer), "is_fast", property(lambda _: False))
    with pytest.raises(ValueError, match="a fast one is needed"):
        encode([Example("a")], tokenizer)
