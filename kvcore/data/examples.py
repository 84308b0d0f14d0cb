"""From rows to examples: a prompt with its response, or a text that stands for itself."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvcore.data import Row
from kvcore.schema import SettingError


@dataclass(frozen=True)
class Example:
    """One example before tokenization.

    Attributes:
        response: What the model is to answer; the whole text if there is no prompt.
        prompt: What the model is asked; None for a text that is used verbatim.
    """

    response: str
    prompt: str | None = None


def examples_from_rows(
    rows: Sequence[Row],
    *,
    prompt_template: str,
    instruction: str | None = None,
    input: str | None = None,  # noqa: A002 - the name the field gives this column
    output: str | None = None,
    text: str | None = None,
) -> list[Example]:
    """Turn rows into examples; a row with anything but text in a mapped column is left out.

    Args:
        rows: Rows with the same columns.
        prompt_template: The prompt, with {instruction} and {input}; trailing white space is dropped.
        instruction: Name of the column with the instruction.
        input: Name of the column with the instruction's input, which may be empty; None if there is none.
        output: Name of the column with the response.
        text: Name of the column with running text; it goes before the others.

    Raises:
        SettingError: A mapped column is missing, or no row is usable.
    """
    mapped = {"text": text} if text else {"instruction": instruction, "input": input, "output": output}
    found = list(dict.fromkeys(column for row in rows for column in row))
    for role, column in mapped.items():
        if column not in found and not (role == "input" and column is None):
            advice = "set it to null if there is none" if role == "input" else "map instruction and output, or text"
            allowed = f"the file's columns are {', '.join(map(repr, found))}; {advice}"
            raise SettingError(f"dataset.columns.{role}", column, allowed)
    examples = []
    for row in rows:
        values: Row = {role: row.get(column) if column else "" for role, column in mapped.items()}
        if values.get("input", "") is None:
            values["input"] = ""
        if not all(isinstance(value, str) and (value.strip() or role == "input") for role, value in values.items()):
            continue
        if text:
            examples.append(Example(values["text"]))
        else:
            prompt = prompt_template.format(instruction=values["instruction"], input=values["input"])
            examples.append(Example(values["output"], prompt.rstrip()))
    if not examples:
        columns = ", ".join(f"{role} {column!r}" for role, column in mapped.items() if column)
        raise SettingError("dataset.columns", columns, "no row has text in all of these columns")
    return examples
