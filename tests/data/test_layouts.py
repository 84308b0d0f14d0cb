"""Conversations and documents of the published datasets as rows of text."""

from typing import Any

import pytest
from conftest import composed

from kvcore.data.examples import Example, examples_from_rows
from kvcore.data.layouts import flatten
from kvcore.schema import SettingError, parse_settings

CHAT = {
    "system": "SYSTEM: Use these functions if required -\n{\"name\": \"rate\"}\n",
    "chat": "USER: What is a dollar in euros?\n\n\nASSISTANT: <functioncall> {\"name\": \"rate\"} <|endoftext|>\n\n\n"
    "FUNCTION RESPONSE: {\"rate\": 0.9}\n\n\nASSISTANT: About 0.9 euros. ASSISTANT: is no label here. <|endoftext|>\n"
    "\n\nUSER: Thanks!\n",
}  # fmt: skip


def examples(layout: str, rows: list[dict[str, Any]], dataset: str, language: str = "english") -> list[Example]:
    """What the shipped configuration of a dataset makes of rows."""
    settings = parse_settings(composed(f"dataset={dataset}", f"language={language}")).dataset
    assert settings.layout == layout
    return examples_from_rows(
        flatten(rows, layout, language), prompt_template=settings.prompt, **settings.columns.model_dump()
    )


def test_a_conversation_is_split_before_its_last_answer() -> None:
    (found,) = examples("glaive_chat", [CHAT, {"system": "S", "chat": "USER: unanswered"}], "functioncall")
    assert found.prompt == (
        'Use these functions if required -\n{"name": "rate"}\n\nUSER: What is a dollar in euros?\n'
        'ASSISTANT: <functioncall> {"name": "rate"}\nFUNCTION RESPONSE: {"rate": 0.9}\nASSISTANT:'
    )
    assert found.response == "About 0.9 euros. ASSISTANT: is no label here."


def test_text_within_a_turn_is_left_as_it_is() -> None:
    code = "def f():\n    a = 1\n\n    return a"
    row = {"system": "S", "chat": f"USER: What is this?\n\n\n ASSISTANT: {code}\n\n\nUSER: Why?\n\n\nASSISTANT: {code}"}
    (found,) = examples("glaive_chat", [row], "functioncall")
    assert found.prompt == f"S\n\nUSER: What is this?\nASSISTANT: {code}\nUSER: Why?\nASSISTANT:"
    assert found.response == code


def test_broken_conversations_are_left_out_and_other_columns_refused() -> None:
    rows = [CHAT, {"system": None, "chat": None}, {"system": "S", "chat": 3}]
    assert len(flatten(rows, "glaive_chat", "english")) == 3
    assert len(examples("glaive_chat", rows, "functioncall")) == 1
    with pytest.raises(
        SettingError, match=r"dataset.layout = 'glaive_chat': .*the columns are 'instruction', 'output'"
    ):
        flatten([{"instruction": "i", "output": "o"}], "glaive_chat", "english")


NEWER = {
    "file_name": "a", "all_page_images": ["a_0.png"],
    "qa_list": [
        {"question": "Wie hoch ist der Turm?", "answer": "Er misst 92 Meter.", "detected_language": "German"},
        {"question": "Combien pèse-t-elle ?", "answer": "Neuf kilos.", "detected_language": "French"},
        {"question": "Wer baute ihn?", "answer": None, "detected_language": "German"},
    ],
}  # fmt: skip
OLDER = {
    "file_name": "b", "page": 3,
    "QA": {
        "detected_language": "German",
        "questions": [
            {"question_in_english": "How old?", "question_in_detected_language": "Wie alt?",
             "answer_in_english": "Nine.", "answer_in_detected_language": "Neun."},
            {"question_in_english": "How long?", "question_in_detected_language": "Zwei Meter.",
             "answer_in_english": "Two metres.", "answer_in_detected_language": "Zwei Meter."},
        ],
    },
}  # fmt: skip


def test_questions_of_both_nestings_in_one_language() -> None:
    found = examples("visr_bench", [NEWER, OLDER], "visr_bench", "german")
    assert found == [Example("Er misst 92 Meter.", "Wie hoch ist der Turm?"), Example("Neun.", "Wie alt?")]
    assert len(flatten([NEWER, OLDER], "visr_bench", "german")) == 4  # two of which have no text, and are counted
    assert examples("visr_bench", [NEWER, OLDER], "visr_bench", "french") == [
        Example("Neuf kilos.", "Combien pèse-t-elle ?")
    ]


def test_questions_without_a_language_are_counted_and_never_guessed() -> None:
    unnamed = {"qa_list": [{"question": "q", "answer": "a"}, None, "text"], "QA": ["no object"]}
    spaced = {"qa_list": [{"question": "q", "answer": "a", "detected_language": " German "}]}
    rows = flatten([unnamed, spaced], "visr_bench", "german")
    assert [row["answer"] for row in rows] == [None, "a"]
    with pytest.raises(SettingError, match="there are rows in none that is named"):
        flatten([unnamed], "visr_bench", "german")


def test_an_english_question_that_is_a_copy_of_its_answer_is_mended() -> None:
    (pair,) = OLDER["QA"]["questions"][1:]  # type: ignore[index]
    copied = {"question_in_detected_language": "Two.", "answer_in_detected_language": "Two."}
    row = {"QA": {"detected_language": "English", "questions": [pair | copied]}}
    assert examples("visr_bench", [row], "visr_bench") == [Example("Two.", "How long?")]


def test_a_language_without_questions_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        SettingError, match=r"language.name = 'finnish': no row is in it; there are rows in french, german"
    ):
        flatten([NEWER, OLDER], "visr_bench", "finnish")
    with pytest.raises(SettingError, match=r"dataset.layout = 'visr_bench': .*the columns are 'text'"):
        flatten([{"text": "t"}], "visr_bench", "english")
