"""Answers: what a model says to prompts, greedily, through its cache."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from kvcore.data.batches import Advance, unobserved
from kvcore.model.forward import inference


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: As decoded, without special tokens; it may be empty.
        tokens: Number of its tokens, without the one that ended it.
        ended: Whether the model ended it; else it was cut at the limit.
    """

    text: str
    tokens: int
    ended: bool

    @property
    def empty(self) -> bool:
        """Whether there is nothing but white space in it."""
        return not self.text.strip()


def generation_tokens(prompts: Sequence[Tensor], max_new_tokens: int) -> int:
    """Return the number of tokens that `generate_answers` tells `advance` of, all batches together."""
    return sum(len(prompt) + max_new_tokens for prompt in prompts)


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tensor],
    *,
    max_new_tokens: int,
    batch_tokens: int,
    advance: Advance = unobserved,
) -> list[Answer]:
    """Let a model answer prompts: the likeliest token each time, until it ends or `max_new_tokens`.

    Prompts of similar length go together, left-padded and masked. In float32 the batches do not change the
    answers; in a narrower type rounding can tip a choice between two tokens that are about equally likely. Of
    the model's own generation settings only the tokens that end a text count.

    Args:
        model: A causal language model, truncated or not.
        tokenizer: Its tokenizer.
        prompts: (length,) token ids of each prompt, from `encode_prompts`.
        max_new_tokens: Longest answer.
        batch_tokens: Tokens a batch, padding and answers at their longest included; a longer prompt is a batch
            of its own.
        advance: Told the tokens of each batch when it is done, every answer at its longest; see
            `generation_tokens`.

    Returns:
        Answers in the order of the prompts.
    """
    answers: dict[int, Answer] = {}
    ends = _end_tokens(model, tokenizer)
    with inference(model), _greedy(model, ends, max_new_tokens):
        for group in _groups(prompts, max_new_tokens, batch_tokens):
            chosen = [prompts[index] for index in group]
            for index, tokens in zip(group, _continue(model, chosen), strict=True):
                answers[index] = _answer(tokenizer, tokens, ends)
            advance(generation_tokens(chosen, max_new_tokens))
    return [answers[index] for index in range(len(prompts))]


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a text: those of the model's generation settings, else that of the tokenizer."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    if configured is None:
        configured = tokenizer.eos_token_id
    if configured is None:
        return []
    return list(configured) if isinstance(configured, list | tuple) else [int(configured)]


@contextmanager
def _greedy(model: PreTrainedModel, ends: list[int], max_new_tokens: int) -> Iterator[None]:
    """Give the model generation settings of its own while the block runs.

    `generate` fills up settings it is given with those of the model, a repetition penalty for example, so that
    they must be replaced and not only overridden.
    """
    kept = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,  # always masked, or after the end
        use_cache=True,
    )
    try:
        yield
    finally:
        model.generation_config = kept


def _groups(prompts: Sequence[Tensor], max_new_tokens: int, batch_tokens: int) -> list[list[int]]:
    """Return the indices of the prompts of each batch, by length."""
    groups: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index])):
        size = len(prompts[index]) + max_new_tokens
        if not groups or size * (len(groups[-1]) + 1) > batch_tokens:
            groups.append([])
        groups[-1].append(index)
    return groups


def _continue(model: PreTrainedModel, prompts: Sequence[Tensor]) -> list[list[int]]:
    """Return what the model says after each prompt, padding behind its end included."""
    longest = max(map(len, prompts))
    tokens = torch.zeros((len(prompts), longest), dtype=torch.long)
    mask = torch.zeros((len(prompts), longest), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    generated: Tensor = model.generate(  # type: ignore[operator] # a tensor unless more is asked for
        input_ids=tokens.to(model.device), attention_mask=mask.to(model.device)
    )
    said: list[list[int]] = generated[:, longest:].tolist()
    return said


def _answer(tokenizer: PreTrainedTokenizerBase, tokens: list[int], ends: list[int]) -> Answer:
    length = next((position for position, token in enumerate(tokens) if token in ends), len(tokens))
    text = tokenizer.decode(tokens[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Answer(str(text), length, ended=length < len(tokens))
