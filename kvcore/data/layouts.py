"""Rows as published datasets lay them out, turned into rows of an instruction or question and its answer."""

import re
from collections.abc import Callable, Iterator, Sequence

from kvcore.data import Row
from kvcore.schema import SettingError

_TURN = re.compile(r"^[ \t]*(USER|ASSISTANT|FUNCTION RESPONSE):", re.MULTILINE)
_END_OF_TURN = "<|endoftext|>"


def flatten(rows: Sequence[Row], layout: str, language: str) -> list[Row]:
    """Return rows whose columns hold text.

    Args:
        rows: Rows as read.
        layout: `rows`: they are so already. `glaive_chat`: conversations, see `_from_glaive_chat`.
            `visr_bench`: documents with questions in many languages, see `_from_visr_bench`.
        language: The language that is wanted, where rows say theirs.

    Raises:
        SettingError: They are not laid out like this, or none is in this language.
    """
    if layout == "rows":
        return list(rows)
    flattened = [flat for row in rows for flat in _LAYOUTS[layout](row)]
    if not flattened:
        found = ", ".join(map(repr, rows[0]))
        raise SettingError("dataset.layout", layout, f"no row is laid out like this; the columns are {found}")
    return _in_language(flattened, language) if layout == "visr_bench" else flattened


def _in_language(rows: Sequence[Row], language: str) -> list[Row]:
    """Return the rows in a language, and those that do not say theirs: without text, so that they are counted."""
    languages = [str(row["language"] or "").strip().lower() for row in rows]
    if language not in languages:
        found = ", ".join(sorted(filter(None, set(languages)))) or "none that is named"
        raise SettingError("language.name", language, f"no row is in it; there are rows in {found}")
    nothing = dict.fromkeys(rows[0])
    named = zip(rows, languages, strict=True)
    return [row if found else nothing for row, found in named if found in (language, "")]


def _from_glaive_chat(row: Row) -> Iterator[Row]:
    """Split a conversation before the last answer.

    Columns: `system` names the functions, `chat` holds turns that begin with USER:, ASSISTANT: or
    FUNCTION RESPONSE: at the start of a line. The answer is the last turn of the assistant; what follows it is
    left out, and so are marks of the end of a turn, which are tokens of another tokenizer.

    Yields:
        `instruction` (the functions), `input` (the turns before), `output` (the answer without its label);
        without an answer, `output` is None.
    """
    system, chat = row.get("system"), row.get("chat")
    if not isinstance(system, str) or not isinstance(chat, str):
        if "system" in row and "chat" in row:
            yield {"instruction": None, "input": None, "output": None}
        return
    chat = chat.replace(_END_OF_TURN, "")
    turns = list(_TURN.finditer(chat))
    answers = [index for index, turn in enumerate(turns) if turn[1] == "ASSISTANT"]
    instruction = re.sub(r"^SYSTEM:\s*", "", system).strip()
    if not answers:
        yield {"instruction": instruction, "input": chat.strip(), "output": None}
        return
    ends = [turn.start() for turn in turns[1:]] + [len(chat)]
    texts = [chat[turn.end() : end].strip() for turn, end in zip(turns, ends, strict=True)]
    before = "".join(f"{turn[1]}: {text}\n" for turn, text in zip(turns, texts[: answers[-1]], strict=False))
    yield {"instruction": instruction, "input": f"{before}ASSISTANT:", "output": texts[answers[-1]]}


def _from_visr_bench(row: Row) -> Iterator[Row]:
    """Take the questions out of a document.

    Two nestings occur: `qa_list[].question`, `.answer`, `.detected_language`, and the older
    `QA.questions[].question_in_detected_language`, `.answer_in_detected_language` with `QA.detected_language`.
    In the older one, some questions are copies of their answers; they are left out, unless they are in English,
    where `question_in_english` holds the question.

    Yields:
        `question`, `answer`, `language`; None where the document has no text.
    """
    for found in _objects(row.get("qa_list")):
        language = found.get("detected_language") or row.get("detected_language")
        yield {"question": found.get("question"), "answer": found.get("answer"), "language": language}
    (older,) = _objects([row.get("QA")]) or [{}]
    for found in _objects(older.get("questions")):
        question, answer = found.get("question_in_detected_language"), found.get("answer_in_detected_language")
        if question == answer:
            question = found.get("question_in_english") if older.get("detected_language") == "English" else None
        yield {"question": question, "answer": answer, "language": older.get("detected_language")}


def _objects(values: object) -> list[Row]:
    """Return the objects of a list; what is none has nothing to say."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


_LAYOUTS: dict[str, Callable[[Row], Iterator[Row]]] = {
    "glaive_chat": _from_glaive_chat,
    "visr_bench": _from_visr_bench,
}
