"""Perplexity against hand-written passes, one text at a time and without padding."""

import math

import hand_written
import pytest
import torch
from conftest import TEXTS, Packaged
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from kvcore.data.batches import make_batches
from kvcore.data.encoding import EncodedExample, encode
from kvcore.data.examples import Example
from kvcore.evaluation import perplexity
from kvcore.evaluation.perplexity import LikelihoodSum, sum_likelihood
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
    found = sum_likelihood(tiny, make_batches(encoded, batch_tokens=batch_tokens, target=target))
    assert found.tokens == count
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
        found = sum_likelihood(model, make_batches(encoded[::order], batch_tokens=batch_tokens))
        assert found.tokens == count
        assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)


def test_logits_in_pieces_are_the_same(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = make_batches(encode(PAIRS, tokenizer), batch_tokens=100_000)
    whole = sum_likelihood(tiny, batches)
    monkeypatch.setattr(perplexity, "_LOGITS_AT_ONCE", 1)
    assert sum_likelihood(tiny, batches).nll == pytest.approx(whole.nll, rel=1e-6)


def test_likelihood_sums_by_hand() -> None:
    total = LikelihoodSum(nll=6 * math.log(2), tokens=3, target_bytes=4)
    assert total.mean_nll == pytest.approx(2 * math.log(2))
    assert total.perplexity == pytest.approx(4)
    assert total.bits_per_byte == pytest.approx(1.5)
    assert LikelihoodSum(nll=1e6, tokens=1, target_bytes=1).perplexity == math.inf
    assert math.isnan(LikelihoodSum(nll=1, tokens=1, target_bytes=0).bits_per_byte)


def test_nothing_to_predict_is_refused(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    batches = make_batches(encode([Example("a"), Example("b")], tokenizer), batch_tokens=10)
    with pytest.raises(UserError, match="no token to predict"):
        sum_likelihood(tiny, batches)


def test_a_model_that_computes_nan_is_refused(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    with torch.no_grad():
        tiny.lm_head.weight[5] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        sum_likelihood(tiny, make_batches(encode(PAIRS, tokenizer), batch_tokens=100))
