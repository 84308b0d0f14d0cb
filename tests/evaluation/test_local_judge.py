"""The local judge against probabilities worked out one sequence at a time."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, packaged_weights, tiny_llama
from judged_example import items
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from kvcore.evaluation.judging.cache import JudgementCache
from kvcore.evaluation.judging.judge import Reply
from kvcore.evaluation.judging.judging import judge_answers
from kvcore.evaluation.judging.local import LocalJudge, score_tokens
from kvcore.evaluation.judging.rubric import Rubric, read_rubric
from kvcore.model.loading import load_model, load_tokenizer
from kvcore.schema import SettingError, UserError

PROMPTS = ["Rate this.", "Rate that: it is much longer than the other one, and so is padded less.", "?"]


def local(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int = 2000, context: int = 512
) -> LocalJudge:
    return LocalJudge(model, tokenizer, revision="abc", context=context, batch_tokens=batch_tokens)


def asked(judge: LocalJudge, prompts: list[str] = PROMPTS) -> list[Reply]:
    replies: dict[int, Reply] = {}
    judge.ask(prompts, replies.__setitem__)
    return [replies[index] for index in range(len(prompts))]


def next_probability(model: PreTrainedModel, tokens: list[int], following: int) -> float:
    with torch.no_grad():
        return float(model(torch.tensor([tokens])).logits[0, -1].double().softmax(-1)[following])


def expectation_by_hand(model: PreTrainedModel, tokens: list[int], digits: dict[str, int]) -> float:
    """The expectation over 1 to 10, where 10 is written with two digits."""
    after_1 = next_probability(model, [*tokens, digits["1"]], digits["0"])
    shares = {score: next_probability(model, tokens, digits[str(score)]) for score in range(1, 10)}
    shares[10] = shares[1] * after_1
    shares[1] *= 1 - after_1
    return sum(score * share for score, share in shares.items()) / sum(shares.values())


@pytest.mark.parametrize("batch_tokens", [1, 150, 100_000])
def test_expectations_of_the_tiny_model_by_hand(batch_tokens: int) -> None:
    model, tokenizer = tiny_llama(), byte_tokenizer()
    digits = {digit: tokenizer(digit)["input_ids"][0] for digit in "0123456789"}
    with torch.no_grad():  # so that digits are likely
        model.lm_head.weight[list(digits.values())] *= 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvcore.evaluation.judging.local._LEAST_PROBABILITY", 0.0)
        replies = asked(local(model, tokenizer, batch_tokens))
    for prompt, found in zip(PROMPTS, replies, strict=True):
        tokens = tokenizer(f'{prompt}\n\n{{"score": ')["input_ids"]
        assert found.score == pytest.approx(expectation_by_hand(model, tokens, digits), abs=1e-4)
        assert found.prompt_tokens == len(tokens) + 1  # and the 1 that 10 begins with
    assert len({round(found.score or 0, 3) for found in replies}) == len(PROMPTS)


def test_expectations_of_smollm2_by_hand() -> None:
    weights = packaged_weights("smollm2_135m")
    model, tokenizer = load_model(weights, device="cpu"), load_tokenizer(weights)
    template = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    text = template + '<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{{"score": '
    digits = {digit: tokenizer(digit)["input_ids"][0] for digit in "0123456789"}
    replies = asked(local(model, tokenizer, 100_000))
    for prompt, found in zip(PROMPTS[:2], replies, strict=False):
        tokens = tokenizer(text.format(prompt))["input_ids"]
        with torch.no_grad():
            first = model(torch.tensor([tokens])).logits[0, -1].double().softmax(-1)
            second = model(torch.tensor([[*tokens, digits["1"]]])).logits[0, -1].double().softmax(-1)
        shares = {score: float(first[digits[str(score)]]) for score in range(1, 10)}
        shares |= {1: shares[1] * (1 - float(second[digits["0"]])), 10: shares[1] * float(second[digits["0"]])}
        assert found.score == pytest.approx(sum(s * p for s, p in shares.items()) / sum(shares.values()), abs=1e-4)
        assert {int(s): p for s, p in json.loads(found.text).items()} == pytest.approx(shares, rel=1e-3)
    assert [found.score for found in asked(local(model, tokenizer, 1))] == pytest.approx(
        [found.score for found in replies], abs=1e-4
    )


def one_answer(first: dict[str, float], after_1: dict[str, float]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a model that gives these probabilities after anything, and others after a 1."""
    tokenizer = byte_tokenizer()
    model = tiny_llama(num_hidden_layers=1, tie_word_embeddings=False)
    one = tokenizer("1")["input_ids"][0]
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            for parameter in model.model.layers[0].get_submodule(name).parameters():
                parameter.zero_()
        embedding = model.model.embed_tokens.weight.zero_()
        embedding[:, 0], embedding[one] = 1, 0
        embedding[one, 1] = 1
        model.model.norm.weight.fill_(1)
        head = model.lm_head.weight.fill_(0)
        for column, shares in ((0, first), (1, after_1)):
            head[:, column] = -100
            for text, share in shares.items():
                head[tokenizer(text)["input_ids"][0], column] = math.log(share)
            head[:, column] /= math.sqrt(24)  # what the norm makes of a single 1 among 24 numbers
    return model, tokenizer


@pytest.mark.parametrize(
    ("first", "after_1", "expected"),
    [
        ({"7": 1.0}, {"}": 1.0}, 7.0),
        ({"1": 1.0}, {"0": 1.0}, 10.0),
        ({"1": 1.0}, {"}": 1.0}, 1.0),
        ({"1": 1.0}, {"0": 0.5, "}": 0.5}, 5.5),
        ({"1": 0.5, "3": 0.5}, {"0": 0.25, "}": 0.75}, 0.5 * (0.25 * 10 + 0.75 * 1) + 0.5 * 3),
        ({"2": 0.3, "4": 0.3, "x": 0.4}, {"0": 1.0}, 3.0),
        ({"0": 0.5, "9": 0.5}, {"}": 1.0}, 9.0),
    ],
)
def test_expectations_on_paper(first: dict[str, float], after_1: dict[str, float], expected: float) -> None:
    (found,) = asked(local(*one_answer(first, after_1)), ["p"])
    assert found.score == pytest.approx(expected, abs=1e-4)


def test_a_model_that_would_say_something_else_gives_no_score() -> None:
    (found,) = asked(local(*one_answer({"S": 0.95, "5": 0.05}, {"}": 1.0})), ["p"])
    assert (found.score, found.missing_reason) == (None, "unparsable")


def test_numbers_that_are_none_are_failures() -> None:
    model, tokenizer = one_answer({"7": 1.0}, {"}": 1.0})
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    (found,) = asked(local(model, tokenizer), ["p"])
    assert found.missing_reason == "failed: the judge computes NaN"


def words(*vocabulary: str) -> PreTrainedTokenizerBase:
    """Return a tokenizer that knows these words alone."""
    known = {word: index for index, word in enumerate(["[UNK]", '{"score":', *vocabulary])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def test_how_tokenizers_write_scores() -> None:
    single = score_tokens(words(*map(str, range(1, 11))))
    assert single.scores == {score: (score + 1,) for score in range(1, 11)}
    assert (single.stem, single.shared) == ((1,), ())
    digits = score_tokens(byte_tokenizer())
    assert (len(digits.scores[10]), digits.shared) == (2, digits.scores[1])
    with pytest.raises(UserError, match="judge.model: its tokenizer does not write 1 to 10"):
        score_tokens(words("1", "2"))


def test_a_10_of_one_token(tmp_path: Path) -> None:
    tokenizer, model = words(*map(str, range(1, 11)), "p"), tiny_llama(vocab_size=13)
    (found,) = asked(local(model, tokenizer), ["p"])
    with torch.no_grad():
        shares = model(torch.tensor([[12, 1]])).logits[0, -1].double().softmax(-1)[2:12]
    expected = float((shares * torch.arange(1, 11)).sum() / shares.sum())
    assert found.score == pytest.approx(expected, abs=1e-5)
    assert found.prompt_tokens == 2
    assert not list(tmp_path.iterdir())


def test_prompts_longer_than_the_context_are_failures(tmp_path: Path) -> None:
    model, tokenizer = one_answer({"7": 0.5, "3": 0.5}, {"}": 1.0})
    room = len("p\n\n") + len('{"score": 1')
    short, long = asked(local(model, tokenizer, context=room), ["p", "pp"])
    assert short.score == pytest.approx(5, abs=1e-4)
    assert long.missing_reason == f"failed: prompt of {room + 1} tokens, context of {room}"
    with pytest.raises(
        SettingError, match="judge.max_missing = 0.5: 24 of 24 judgements are missing, .* tokens, context"
    ):
        judge_answers(
            items(), local(model, tokenizer), JudgementCache(tmp_path), read_rubric("v1"), max_missing=0.5
        )  # the rubric alone has more than 512 tokens of a byte
    assert not list(tmp_path.iterdir())


def test_through_the_cache(tmp_path: Path) -> None:
    model, tokenizer = tiny_llama(), byte_tokenizer()
    rubric, cache = Rubric("short", "Rate:\n{item}"), JudgementCache(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvcore.evaluation.judging.local._LEAST_PROBABILITY", 0.0)
        first = judge_answers(items(), local(model, tokenizer), cache, rubric, max_missing=0.0)
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)  # never run again
    second = judge_answers(items(), local(model, tokenizer, 7), cache, rubric, max_missing=0.0)
    assert second["cached"].all()
    assert second["score"].tolist() == first["score"].tolist()
    assert first["score"].between(1, 10).all()
    assert first["score"].nunique() > 10
    assert local(model, tokenizer).identity() == {
        "name": "transformers",
        "revision": "abc",
        "dtype": "float32",
        "attention": "sdpa",
    }
    assert local(model.bfloat16(), tokenizer).identity()["dtype"] == "bfloat16"
