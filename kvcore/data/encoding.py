"""From examples to tokens: rendering, tokenization, and exactly as many tokens as asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from kvcore.data.examples import Example
from kvcore.schema import SettingError, UserError

_CHUNK = 256


@dataclass(frozen=True)
class EncodedExample:
    """One tokenized example.

    Attributes:
        tokens: (length,) int32 token ids, special tokens included.
        byte_starts: (length,) where each token's text begins in the UTF-8 bytes of the example.
        byte_ends: (length,) where it ends.
        number: Place of the example among those that were tokenized.
        response_start: Index of the first token that carries a character of the response.
        full_length: Number of tokens before any cut.
    """

    tokens: Tensor
    byte_starts: Tensor
    byte_ends: Tensor
    number: int
    response_start: int
    full_length: int

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def cut(self, length: int) -> "EncodedExample":
        """Return the first `length` tokens."""
        return replace(
            self,
            tokens=self.tokens[:length],
            byte_starts=self.byte_starts[:length],
            byte_ends=self.byte_ends[:length],
        )

    def first_target(self, target: str) -> int:
        """Return the index of the first predicted token, for `all` tokens or those of the `response`.

        The first token of an example has nothing before it and is never predicted.
        """
        return max(1, self.response_start if target == "response" else 1)

    def target_bytes(self, target: str) -> int:
        """Return how many UTF-8 bytes of text the predicted tokens stand for."""
        first = self.first_target(target)
        if first >= len(self):
            return 0
        return int(self.byte_ends[first:].max() - self.byte_starts[first])


def encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str = "plain",
    max_length: int | None = None,
    max_tokens: int | None = None,
) -> list[EncodedExample]:
    """Tokenize examples in order.

    Args:
        examples: Examples; those without a prompt are tokenized verbatim.
        tokenizer: A fast tokenizer.
        template: `plain` or `chat`, see `_render`.
        max_length: Longer examples are cut to this many tokens.
        max_tokens: Stop at exactly this many tokens, cutting the last example.

    Raises:
        SettingError: There are fewer than `max_tokens` tokens, or none at all.
        ValueError: The tokenizer gives no offsets.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"tokenizer {type(tokenizer).__name__}: a fast one is needed, for the offsets of its tokens")
    encoded: list[EncodedExample] = []
    total = 0
    for example in _encode_all(examples, tokenizer, template):
        room = min(bound for bound in (max_length, len(example)) if bound is not None)
        if max_tokens is not None:
            room = min(room, max_tokens - total)
        if room > 0:
            encoded.append(example.cut(room))
            total += room
        if total == max_tokens:
            return encoded
    if max_tokens is not None:
        raise SettingError("dataset.max_tokens", max_tokens, f"the selected examples have {total} tokens")
    if not encoded:
        raise SettingError("dataset", len(examples), "none of these examples has a token")
    return encoded


def encode_prompts(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    judge: str,
    max_new_tokens: int,
    context: int,
    template: str = "plain",
) -> list[Tensor]:
    """Tokenize the prompts alone, rendered as `encode` renders them: what a model is given to answer.

    Args:
        examples: Examples with a prompt.
        tokenizer: The model's tokenizer.
        judge: Name of the judge, for the message.
        max_new_tokens: Tokens that an answer may have.
        context: Longest input of the model, in tokens; prompt and answer must fit in.
        template: `plain` or `chat`, see `_render`.

    Returns:
        (length,) int64 token ids for each example, special tokens included.

    Raises:
        SettingError: The examples have no prompts, or a prompt leaves too little room for an answer.
    """
    if any(example.prompt is None for example in examples):
        raise SettingError("judge.name", judge, "a dataset of running text has no prompts to answer; allowed: none")
    rendered = [_render(example, tokenizer, template)[0] for example in examples]
    tokens = tokenizer(rendered, add_special_tokens=template == "plain", verbose=False)["input_ids"] if rendered else []
    longest = max(map(len, tokens), default=0)
    if longest + max_new_tokens > context:
        room = f"the longest prompt has {longest} tokens, and the context of the model is {context}"
        raise SettingError("judge.max_new_tokens", max_new_tokens, room)
    return [torch.tensor(prompt, dtype=torch.long) for prompt in tokens]


def check_vocabulary(encoded: Sequence[EncodedExample], vocab_size: int) -> None:
    """Check that a model knows all tokens.

    Raises:
        UserError: The tokenizer has tokens that the model has not.
    """
    largest = max(int(example.tokens.max()) for example in encoded)
    if largest >= vocab_size:
        known = f"the model has {vocab_size} tokens"
        raise UserError(f"the tokenizer is not the model's: it gives token {largest}, and {known}")


def first_tokens(encoded: Sequence[EncodedExample], count: int, setting: str) -> list[EncodedExample]:
    """Return the first examples, the last one cut, with exactly `count` tokens together.

    Raises:
        SettingError: There are fewer tokens; names `setting`.
    """
    chosen: list[EncodedExample] = []
    missing = count
    for example in encoded:
        if missing > 0:
            chosen.append(example.cut(missing))
            missing -= len(chosen[-1])
    if missing > 0:
        raise SettingError(setting, count, f"the selected examples have {count - missing} tokens")
    return chosen


def _encode_all(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, template: str
) -> Iterator[EncodedExample]:
    for start in range(0, len(examples), _CHUNK):
        chunk = examples[start : start + _CHUNK]
        rendered = [_render(example, tokenizer, template) for example in chunk]
        batch = tokenizer(
            [prompt + response for prompt, response in rendered],
            # A chat template writes the special tokens itself.
            add_special_tokens=template == "plain",
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        encodings = zip(rendered, batch["input_ids"], batch["offset_mapping"], strict=True)
        for number, ((prompt, response), tokens, offsets) in enumerate(encodings, start):
            yield _encoded(number, prompt, response, tokens, offsets)


def _render(example: Example, tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, str]:
    """Return the prompt part and the response part of an example's text.

    `plain`: the prompt, a blank line, the response. `chat`: the tokenizer's chat template with the prompt
    as the user's turn and the response as the assistant's. A text without a prompt is used verbatim.

    Raises:
        SettingError: The tokenizer has no chat template, or one that rewrites the prompt.
    """
    if template == "plain":
        return ("", example.response) if example.prompt is None else (f"{example.prompt}\n\n", example.response)
    if not tokenizer.chat_template:
        raise SettingError("model.template", template, "this tokenizer has no chat template; allowed: plain")
    if example.prompt is None:
        raise SettingError("model.template", template, "a dataset with a text column has no turns; allowed: plain")
    question = [{"role": "user", "content": example.prompt}]
    answer = [{"role": "assistant", "content": example.response}]
    prompt = str(tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True))
    text = str(tokenizer.apply_chat_template(question + answer, tokenize=False))
    if not text.startswith(prompt):
        raise SettingError("model.template", template, "this chat template rewrites the prompt once it is answered")
    return prompt, text[len(prompt) :]


def _encoded(
    number: int, prompt: str, response: str, tokens: Sequence[int], offsets: Sequence[tuple[int, int]]
) -> EncodedExample:
    text = prompt + response
    bytes_before = [0]
    for character in text:
        bytes_before.append(bytes_before[-1] + len(character.encode("utf-8", "surrogatepass")))
    response_start = next((index for index, (_, end) in enumerate(offsets) if end > len(prompt)), len(tokens))
    return EncodedExample(
        number=number,
        tokens=torch.tensor(tokens, dtype=torch.int32),
        byte_starts=torch.tensor([bytes_before[start] for start, _ in offsets], dtype=torch.int32),
        byte_ends=torch.tensor([bytes_before[end] for _, end in offsets], dtype=torch.int32),
        response_start=response_start,
        full_length=len(tokens),
    )
