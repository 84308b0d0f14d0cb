"""Rows to prompts and responses."""

from typing import Any

import pytest

from kvcore.data.examples import Example, examples_from_rows
from kvcore.schema import SettingError

COLUMNS = {"instruction": "question", "input": "context", "output": "answer"}
TEMPLATE = "{instruction}\n\n{input}"


def test_instruction_input_and_output() -> None:
    rows = [{"question": "Shorten {this}.", "context": "A long text.", "answer": "A text."}]
    assert examples_from_rows(rows, prompt_template=TEMPLATE, **COLUMNS) == [
        Example(prompt="Shorten {this}.\n\nA long text.", response="A text.")
    ]


@pytest.mark.parametrize("context", ["", None])
def test_without_input_the_prompt_is_the_instruction(context: Any) -> None:
    rows = [{"question": "Why?", "context": context, "answer": "Because."}]
    assert examples_from_rows(rows, prompt_template=TEMPLATE, **COLUMNS)[0].prompt == "Why?"


def test_a_table_may_have_no_input_column() -> None:
    columns = COLUMNS | {"input": None}
    assert examples_from_rows([{"question": "Why?", "answer": "Because."}], prompt_template=TEMPLATE, **columns) == [
        Example(prompt="Why?", response="Because.")
    ]


def test_text_goes_before_the_other_columns() -> None:
    rows = [{"body": " As it stands.\n", "question": "Why?", "answer": "Because."}]
    assert examples_from_rows(rows, prompt_template=TEMPLATE, text="body", **COLUMNS) == [Example(" As it stands.\n")]


def test_rows_without_text_in_a_mapped_column_are_left_out() -> None:
    rows: list[dict[str, Any]] = [
        {"question": None, "context": "", "answer": "a"},
        {"question": "q", "context": "", "answer": 3},
        {"question": "q", "context": 7, "answer": "a"},
        {"question": "q", "context": "", "answer": "  "},
        {"question": "q", "context": "", "answer": "a"},
    ]
    assert examples_from_rows(rows, prompt_template=TEMPLATE, **COLUMNS) == [Example(prompt="q", response="a")]


def test_no_usable_row_is_an_error() -> None:
    rows = [{"question": "q", "context": "", "answer": ""}]
    with pytest.raises(SettingError, match="no row has text in all of these columns"):
        examples_from_rows(rows, prompt_template=TEMPLATE, **COLUMNS)


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"instruction": "prompt", "output": "answer"}, "dataset.columns.instruction = 'prompt'"),
        ({"instruction": "question", "input": "contxt", "output": "answer"}, "dataset.columns.input = 'contxt'"),
        ({"instruction": "question", "output": "reply"}, "dataset.columns.output = 'reply'"),
        ({"instruction": "question", "output": None}, "dataset.columns.output = None"),
        ({"text": "body"}, "dataset.columns.text = 'body'"),
    ],
)
def test_missing_columns_are_named_with_those_found(columns: dict[str, str], named: str) -> None:
    with pytest.raises(SettingError, match=f"{named}: the file's columns are 'question', 'answer'"):
        examples_from_rows([{"question": "q", "answer": "a"}], prompt_template=TEMPLATE, **columns)
