"""The shipped datasets: enough of each, no padding by repetition, and 16 languages in parallel."""

import re
import unicodedata
from collections import Counter

import pytest
from conftest import composed, packaged_weights
from transformers import PreTrainedTokenizerBase

from kvcore.data import Row
from kvcore.data.encoding import encode
from kvcore.data.examples import examples_from_rows
from kvcore.data.sources import find_data, read_rows
from kvcore.model.loading import load_tokenizer
from kvcore.schema import DatasetSettings, parse_settings

DOMAINS = ["general", "medical", "code", "code_evolved", "function_call"]
LANGUAGES = [
    "english", "german", "italian", "swedish", "spanish", "japanese", "arabic", "french", "dutch", "croatian",
    "vietnamese", "portuguese", "finnish", "czech", "slovenian", "danish",
]  # fmt: skip
DATASETS = [(domain, "english") for domain in DOMAINS] + [("multilingual", language) for language in LANGUAGES]
SCRIPTS = {"arabic": {"ARABIC"}, "japanese": {"HIRAGANA", "KATAKANA", "CJK", "KATAKANA-HIRAGANA"}}


def settings_of(name: str, language: str) -> DatasetSettings:
    return parse_settings(composed(f"dataset=pocket_{name}", f"language={language}")).dataset


def rows_of(name: str, language: str) -> list[Row]:
    settings = settings_of(name, language)
    return read_rows(find_data(source=settings.source, path=settings.path))


@pytest.fixture(scope="module")
def smollm2_tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(packaged_weights("smollm2_135m"))


@pytest.mark.parametrize(("name", "language"), DATASETS)
def test_there_is_enough_and_nothing_is_repeated(
    name: str, language: str, smollm2_tokenizer: PreTrainedTokenizerBase
) -> None:
    settings, rows = settings_of(name, language), rows_of(name, language)
    assert all(set(row) == {"instruction", "input", "output"} for row in rows)
    assert len({row["instruction"] for row in rows}) == len(rows) >= 25
    examples = examples_from_rows(rows, prompt_template=settings.prompt, **settings.columns.model_dump())
    assert len(examples) == len(rows)
    assert sum(len(example) for example in encode(examples, smollm2_tokenizer)) >= 6000

    text = "\n".join(" ".join(row.values()).lower() for row in rows)
    # Japanese has no spaces between words: there, phrases of 12 characters.
    units, length = (list(re.sub(r"\s", "", text)), 12) if language == "japanese" else (text.split(), 5)
    phrases = Counter(zip(*(units[start:] for start in range(length)), strict=False))
    assert 1 - len(phrases) / phrases.total() < 0.02


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_are_parallel(language: str) -> None:
    english, rows = rows_of("multilingual", "english"), rows_of("multilingual", language)
    assert len(rows) == len(english)
    assert [bool(row["input"]) for row in rows] == [bool(row["input"]) for row in english]
    if language != "english":
        assert all(row["output"] != other["output"] for row, other in zip(rows, english, strict=True))
    agreeing = sum(numbers(row) >= numbers(other) for row, other in zip(rows, english, strict=True))
    assert agreeing / len(rows) >= 0.6  # the rest write a number as a word
    for row, other in zip(rows, english, strict=True):
        assert row["output"].count("\n- ") == other["output"].count("\n- ")


def numbers(row: Row) -> set[str]:
    """Return the digit groups of a row, whatever separates decimals and thousands."""
    return set(re.findall(r"\d+", re.sub(r"(?<=\d)[.,\u00a0\u202f '](?=\d)", "", " ".join(row.values()))))


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_are_written_in_their_scripts(language: str) -> None:
    letters = [letter for row in rows_of("multilingual", language) for letter in row["output"] if letter.isalpha()]
    scripts = Counter(unicodedata.name(letter).split()[0] for letter in letters)
    expected = SCRIPTS.get(language, {"LATIN"})
    assert sum(scripts[script] for script in expected) / len(letters) > 0.97


def test_no_two_languages_share_their_words() -> None:
    """Guards against a file under the wrong name: the closest pairs, such as Danish and Swedish, share a fifth."""
    words = {
        language: set(
            re.findall(r"[^\W\d_]+", " ".join(row["output"] for row in rows_of("multilingual", language)).lower())
        )
        for language in LANGUAGES
    }
    for language, own in words.items():
        for other, theirs in words.items():
            assert language == other or len(own & theirs) / len(own) < 0.45, (language, other)
