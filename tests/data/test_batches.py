"""Batches hold every token once, and padding counts for nothing."""

import torch
from conftest import TEXTS, byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from kvcore.data.batches import doubling_stretches, make_batches
from kvcore.data.encoding import encode
from kvcore.data.examples import Example


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 200))
def test_every_token_is_in_one_batch_within_the_budget(lengths: list[int], batch_tokens: int) -> None:
    encoded = encode([Example(chr(97 + index % 26) * length) for index, length in enumerate(lengths)], byte_tokenizer())
    batches = make_batches(encoded, batch_tokens=batch_tokens)
    rows = [row[mask].tolist() for batch in batches for row, mask in zip(batch.tokens, batch.mask, strict=True)]
    assert sorted(rows) == sorted(example.tokens.tolist() for example in encoded)
    assert batches.token_count == sum(lengths) == sum(int(batch.mask.sum()) for batch in batches)
    for batch in batches:
        assert batch.tokens.numel() <= batch_tokens or len(batch.tokens) == 1
        assert batch.mask[:, 0].all()  # padded on the right
        assert (batch.mask.int().diff(dim=1) <= 0).all()
        assert batch.tokens.shape[1] == batch.mask.sum(1).max()


def test_targets_are_the_tokens_with_something_before_them(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode([Example("abc"), Example("d"), Example(prompt="q", response="rst")], tokenizer)
    (everything,) = make_batches(encoded, batch_tokens=1000)
    rows = sorted(zip(everything.mask.sum(1).tolist(), everything.targets.sum(1).tolist(), strict=True))
    assert rows == [(1, 0), (3, 2), (6, 5)]
    assert not everything.targets[:, 0].any()
    assert not (everything.targets & ~everything.mask).any()
    assert everything.target_bytes == (0, 2, 5)
    (responses,) = make_batches(encoded, batch_tokens=1000, target="response")
    assert sorted(responses.targets.sum(1).tolist()) == [0, 2, 3]
    assert responses.target_bytes == (0, 2, 3)


def test_batches_come_in_the_order_of_their_earliest_example(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode([Example("x" * length) for length in (40, 3, 39, 4, 20)], tokenizer)
    assert [batch.tokens.shape[1] for batch in make_batches(encoded, batch_tokens=80)] == [40, 20]
    assert [batch.tokens.shape[1] for batch in make_batches(encoded, batch_tokens=40)] == [40, 4, 39, 20]


def test_similar_lengths_go_together(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode([Example(text) for text in TEXTS * 20], tokenizer)
    batches = make_batches(encoded, batch_tokens=500)
    padded = sum(batch.tokens.numel() for batch in batches)
    assert batches.token_count / padded > 0.9
    assert all(batch.tokens[~batch.mask].eq(0).all() for batch in batches)
    assert all(batch.tokens.dtype == torch.long for batch in batches)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 80))
def test_stretches_end_where_the_tokens_have_doubled(lengths: list[int], first_tokens: int) -> None:
    encoded = encode([Example("x" * length) for length in lengths], byte_tokenizer())
    stretches = doubling_stretches(encoded, first_tokens=first_tokens)
    assert [len(example) for stretch in stretches for example in stretch] == lengths
    assert all(stretches)
    total, mark = 0, first_tokens
    for stretch in stretches[:-1]:
        before = total + sum(len(example) for example in stretch[:-1])
        total = before + len(stretch[-1])
        assert before < mark <= total
        while mark <= total:
            mark *= 2
