"""Generated answers against greedy decoding by hand: one prompt at a time, no padding, no cache."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hand_written
import pytest
import torch
from conftest import TEXTS, packaged_weights, tiny_llama
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from kvcore import measure
from kvcore.compression.truncation import truncated
from kvcore.data.encoding import encode_prompts
from kvcore.data.examples import Example
from kvcore.evaluation.generation import Answer, generate_answers, generation_tokens
from kvcore.model.geometry import discover
from kvcore.model.loading import load_model, load_tokenizer
from kvcore.model.taps import Point
from kvcore.schema import SettingError

EXAMPLES = [Example(prompt=text, response="-") for text in TEXTS]
NEW_TOKENS = 12


def prompts_of(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example] = EXAMPLES) -> list[Tensor]:
    return encode_prompts(examples, tokenizer, judge="openai", max_new_tokens=NEW_TOKENS, context=512)


def by_hand(model: PreTrainedModel, tokens: Tensor, ends: Sequence[int], limit: int = NEW_TOKENS) -> list[int]:
    """Greedy decoding: the whole text is run anew for each token."""
    said: list[int] = []
    while len(said) < limit and not (said and said[-1] in ends):
        with torch.no_grad():
            text = torch.cat([tokens, torch.tensor(said, dtype=torch.long)])
            said.append(int(model(text[None], use_cache=False).logits[0, -1].argmax()))
    return said


def answer_by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Tensor, ends: Sequence[int] = (257,)
) -> Answer:
    said = by_hand(model, tokens, ends)
    ended = said[-1] in ends
    said = said[:-1] if ended else said
    return Answer(tokenizer.decode(said, skip_special_tokens=True), len(said), ended)


@contextmanager
def ranks_at(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, point: Point, rank: int) -> Iterator[None]:
    spectra = measure(model, tokenizer, TEXTS, point=point).spectra
    with truncated(discover(model), spectra, dict.fromkeys(spectra, rank), point=point):
        yield


@pytest.mark.parametrize("batch_tokens", [1, 120, 100_000])
@pytest.mark.parametrize("point", [None, "projection", "rotary"])
def test_tiny_model_by_hand(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, point: Point | None, batch_tokens: int
) -> None:
    prompts = prompts_of(tokenizer)
    untruncated = [answer_by_hand(tiny, tokenizer, prompt) for prompt in prompts]
    if point is None:
        found = generate_answers(tiny, tokenizer, prompts, max_new_tokens=NEW_TOKENS, batch_tokens=batch_tokens)
        assert found == untruncated
        return
    with ranks_at(tiny, tokenizer, point, 4):
        expected = [answer_by_hand(tiny, tokenizer, prompt) for prompt in prompts]
        found = generate_answers(tiny, tokenizer, prompts, max_new_tokens=NEW_TOKENS, batch_tokens=batch_tokens)
    assert found == expected
    assert found != untruncated


def test_tiny_model_by_a_decoder_of_our_own(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = prompts_of(tokenizer)[0]
    spectra = measure(tiny, tokenizer, TEXTS, point="rotary").spectra
    bases = {place: spectrum.right_singular_vectors[:, :5] for place, spectrum in spectra.items()}
    said: list[int] = []
    while len(said) < NEW_TOKENS and 257 not in said:
        text = torch.cat([prompt, torch.tensor(said, dtype=torch.long)])
        projectors = {place: basis @ basis.T for place, basis in bases.items()}
        said.append(int(hand_written.run(tiny, text, projectors, "rotary").logits[-1].argmax()))
    with truncated(discover(tiny), spectra, dict.fromkeys(spectra, 5), point="rotary"):
        (found,) = generate_answers(tiny, tokenizer, [prompt], max_new_tokens=NEW_TOKENS, batch_tokens=1000)
    assert found.text == tokenizer.decode([token for token in said if token != 257], skip_special_tokens=True)


@pytest.mark.parametrize(
    ("name", "point"),
    [("smollm2_135m", None), ("smollm2_135m", "projection"), ("smollm2_135m", "rotary"), ("gemma3_270m", "rotary")],
)
def test_packaged_models_by_hand(name: str, point: Point | None) -> None:
    weights = packaged_weights(name)
    model, tokenizer = load_model(weights, device="cpu"), load_tokenizer(weights)
    prompts = prompts_of(tokenizer, EXAMPLES[:2])
    ends = [model.generation_config.eos_token_id]
    ranks, spectra = {}, {}
    if point is not None:
        spectra = measure(model, tokenizer, TEXTS[:3], point=point).spectra
        ranks = {place: spectrum.kv_dim // 2 for place, spectrum in spectra.items()}
    with truncated(discover(model), spectra, ranks, point=point or "projection"):
        said = [by_hand(model, prompt, ends, 5) for prompt in prompts]
        expected = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in said]
        for batch_tokens in (1, 100_000):
            found = generate_answers(model, tokenizer, prompts, max_new_tokens=5, batch_tokens=batch_tokens)
            assert [answer.text for answer in found] == expected


def test_chat_answers_end_where_the_model_ends_them() -> None:
    weights = packaged_weights("smollm2_135m")
    model, tokenizer = load_model(weights, device="cpu"), load_tokenizer(weights)
    examples = [Example(prompt="What is the capital of France? One word.", response="Paris"), EXAMPLES[0]]
    prompts = encode_prompts(examples, tokenizer, judge="openai", max_new_tokens=15, context=8192, template="chat")
    assert tokenizer.decode(prompts[0]).endswith("One word.<|im_end|>\n<|im_start|>assistant\n")
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens=15, batch_tokens=1000)
    said = by_hand(model, prompts[0], [2], 15)
    assert said[-1] == 2
    assert answers[0] == Answer(tokenizer.decode(said[:-1]), len(said) - 1, ended=True)
    assert "Paris" in answers[0].text
    assert "<|im_end|>" not in answers[0].text


def test_the_models_own_settings_do_not_count_and_stay(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_llama()
    prompts = prompts_of(tokenizer)
    expected = generate_answers(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS, batch_tokens=200)
    config = model.generation_config
    for name, value in {
        "do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "no_repeat_ngram_size": 1,
        "min_new_tokens": 9, "num_beams": 3, "max_length": 2, "suppress_tokens": [65, 66], "pad_token_id": 7,
    }.items():  # fmt: skip
        setattr(config, name, value)
    before, side = copy.deepcopy(config.to_dict()), tokenizer.padding_side
    model.train()
    found = generate_answers(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS, batch_tokens=200)
    assert found == expected
    assert model.generation_config is config
    assert (config.to_dict(), tokenizer.padding_side) == (before, side)
    assert model.training


def test_the_model_is_restored_after_a_fault(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.generation_config

    def failing(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "generate", failing)
    with pytest.raises(KeyboardInterrupt):
        generate_answers(tiny, tokenizer, prompts_of(tokenizer), max_new_tokens=3, batch_tokens=200)
    assert tiny.generation_config is config


def always(token: int, **changes: Any) -> LlamaForCausalLM:
    """Return a model that says one token again and again."""
    model = tiny_llama(**changes)
    with torch.no_grad():
        model.model.norm.weight.zero_()
        model.model.embed_tokens.weight[:, 0] = 1
        model.lm_head = torch.nn.Linear(24, 258)  # its bias alone decides
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[token] = 1
    return model


def test_empty_and_unending_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = prompts_of(tokenizer)[:3]
    silent = generate_answers(always(257), tokenizer, prompts, max_new_tokens=4, batch_tokens=200)
    assert silent == [Answer("", 0, ended=True)] * 3
    assert all(answer.empty for answer in silent)
    endless = generate_answers(always(65), tokenizer, prompts, max_new_tokens=4, batch_tokens=200)
    letter = tokenizer.decode([65])
    assert endless == [Answer(letter * 4, 4, ended=False)] * 3
    two_ends = always(65)
    two_ends.generation_config.eos_token_id = [257, 65]
    assert generate_answers(two_ends, tokenizer, prompts, max_new_tokens=4, batch_tokens=200) == silent
    no_end = always(257)
    no_end.generation_config.eos_token_id = None  # then the tokenizer says which
    assert generate_answers(no_end, tokenizer, prompts, max_new_tokens=4, batch_tokens=200) == silent
    assert Answer(" \n", 2, ended=True).empty


def test_batches_hold_no_more_than_allowed(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, told, shapes = prompts_of(tokenizer), [], []
    generate = tiny.generate

    def watched(**inputs: Tensor) -> Any:
        shapes.append(inputs["input_ids"].shape)
        return generate(**inputs)

    monkeypatch.setattr(tiny, "generate", watched)
    generate_answers(tiny, tokenizer, prompts, max_new_tokens=5, batch_tokens=150, advance=told.append)
    assert sum(told) == generation_tokens(prompts, 5) == sum(map(len, prompts)) + 5 * len(prompts)
    assert sum(rows for rows, _ in shapes) == len(prompts)
    assert all(rows == 1 or rows * (length + 5) <= 150 for rows, length in shapes)
    assert max(rows for rows, _ in shapes) > 1


def test_prompts_that_cannot_be_answered_are_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    longest = max(len(text.encode()) for text in TEXTS) + 2
    allowed = f"the longest prompt has {longest} tokens, and the context of the model is {longest + 4}"
    encode_prompts(EXAMPLES, tokenizer, judge="openai", max_new_tokens=4, context=longest + 4)
    with pytest.raises(SettingError) as caught:
        encode_prompts(EXAMPLES, tokenizer, judge="openai", max_new_tokens=5, context=longest + 4)
    assert str(caught.value) == f"judge.max_new_tokens = 5: {allowed}"
    with pytest.raises(SettingError, match=r"^judge.name = 'openai': a dataset of running text has no prompts"):
        encode_prompts([Example("text")], tokenizer, judge="openai", max_new_tokens=5, context=100)


def test_prompts_are_the_beginning_of_what_perplexity_sees(tokenizer: PreTrainedTokenizerBase) -> None:
    (prompt,) = prompts_of(tokenizer, [Example(prompt="Why?", response="Because.")])
    assert bytes(tokenizer.decode(prompt), "utf-8") == b"Why?\n\n"
