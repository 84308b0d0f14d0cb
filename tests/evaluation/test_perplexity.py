"""Perplexity against hand-written passes, one text at a time and without padding."""

import math

import hand_written
import numpy as np
import pytest
import torch
from conftest import TEXTS, Packaged
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from kvcore.data.batches import make_batches
from kvcore.data.encoding import EncodedExample, encode
from kvcore.data.examples import Example
from kvcore.evaluation.perplexity import Likelihoods, measure_likelihoods
from kvcore.model import forward
from kvcore.schema import UserError

PAIRS = [Example(prompt=text[: len(text) // 2], response=text[len(text) // 2 :]) for text in TEXTS]


def by_hand(model: LlamaForCausalLM, encoded: list[EncodedExample], target: str) -> tuple[float, int]:
    total, count = 0.0, 0
    for example in encoded:
        log_probability = hand_written.run(model, example.tokens).logits.log_softmax(-1)
        for position in range(1, len(example)):
            if target == "all" or position >= example.response_start:
                total -= float(log_probability[position - 1, example.tokens[position]])
                count += 1
    return total, count


@pytest.mark.parametrize("target", ["all", "response"])
@pytest.mark.parametrize("batch_tokens", [1, 150, 100_000])
def test_tiny_model_by_hand(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, target: str, batch_tokens: int
) -> None:
    encoded = encode(PAIRS, tokenizer)
    expected, count = by_hand(tiny, encoded, target)
    found = measure_likelihoods(tiny, make_batches(encoded, batch_tokens=batch_tokens, target=target))
    assert found.total_tokens == count
    assert found.perplexity == pytest.approx(math.exp(expected / count), rel=1e-5)
    text_bytes = sum(
        len((e.response if target == "response" else f"{e.prompt}\n\n{e.response}").encode()) for e in PAIRS
    )
    first_bytes = 0 if target == "response" else len(PAIRS)  # the first byte of each example is never predicted
    assert found.bits_per_byte == pytest.approx(expected / math.log(2) / (text_bytes - first_bytes), rel=1e-5)


def test_packaged_models_equal_one_text_at_a_time(packaged: Packaged) -> None:
    _, model, tokenizer = packaged
    total, count = 0.0, 0
    for text in TEXTS:
        tokens = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            log_probability = model(tokens).logits[0].double().log_softmax(-1)
        total -= float(log_probability[:-1].gather(1, tokens[0, 1:, None]).sum())
        count += tokens.shape[1] - 1
    encoded = encode([Example(text) for text in TEXTS], tokenizer)
    for batch_tokens, order in ((1, 1), (64, -1), (100_000, 1)):
        found = measure_likelihoods(model, make_batches(encoded[::order], batch_tokens=batch_tokens))
        assert found.total_tokens == count
        assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)


def test_logits_in_pieces_are_the_same(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = make_batches(encode(PAIRS, tokenizer), batch_tokens=100_000)
    whole = measure_likelihoods(tiny, batches)
    monkeypatch.setattr(forward, "_LOGITS_AT_ONCE", 1)
    assert measure_likelihoods(tiny, batches).total_nll == pytest.approx(whole.total_nll, rel=1e-6)


def likelihoods(nll: list[float], tokens: list[int], target_bytes: list[int]) -> Likelihoods:
    return Likelihoods(np.arange(len(nll)), np.array(nll), np.array(tokens), np.array(target_bytes))


def test_perplexity_of_likelihoods_by_hand() -> None:
    found = likelihoods([4 * math.log(2), 2 * math.log(2)], [1, 2], [1, 3])
    assert found.mean_nll == pytest.approx(2 * math.log(2))
    assert found.perplexity == pytest.approx(4)
    assert found.bits_per_byte == pytest.approx(1.5)
    assert likelihoods([1e6], [1], [1]).perplexity == math.inf
    assert math.isnan(likelihoods([1.0], [1], [0]).bits_per_byte)


def test_each_example_has_its_own_sum(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode([*PAIRS, Example("x")], tokenizer)  # the last one has nothing to predict
    for batch_tokens in (1, 150, 100_000):
        found = measure_likelihoods(tiny, make_batches(encoded, batch_tokens=batch_tokens))
        assert list(found.examples) == list(range(len(PAIRS)))
        for number, example in enumerate(encoded[:-1]):
            expected, count = by_hand(tiny, [example], "all")
            assert found.nll[number] == pytest.approx(expected, rel=1e-5)
            assert (found.tokens[number], found.target_bytes[number]) == (count, example.target_bytes("all"))


def test_nothing_to_predict_is_refused(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    batches = make_batches(encode([Example("a"), Example("b")], tokenizer), batch_tokens=10)
    with pytest.raises(UserError, match="no token to predict"):
        measure_likelihoods(tiny, batches)


def test_a_model_that_computes_nan_is_refused(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    with torch.no_grad():
        tiny.lm_head.weight[5] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        measure_likelihoods(tiny, make_batches(encode(PAIRS, tokenizer), batch_tokens=100))
