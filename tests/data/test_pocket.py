"""The shipped dataset: enough of it, and no padding by repetition."""

from collections import Counter

from conftest import packaged_weights

from kvcore.data.encoding import encode
from kvcore.data.examples import examples_from_rows
from kvcore.data.sources import find_data_file, read_rows
from kvcore.model.loading import load_tokenizer


def test_general() -> None:
    rows = read_rows(find_data_file(source="pocket", path="general.jsonl"))
    assert all(set(row) == {"instruction", "input", "output"} for row in rows)
    assert len(rows) >= 25
    assert len({row["instruction"] for row in rows}) == len(rows)
    examples = examples_from_rows(
        rows, prompt_template="{instruction}\n\n{input}", instruction="instruction", input="input", output="output"
    )
    assert len(examples) == len(rows)
    encoded = encode(examples, load_tokenizer(packaged_weights("smollm2_135m")))
    assert sum(len(example) for example in encoded) >= 6000

    words = [word for row in rows for word in " ".join(row.values()).lower().split()]
    phrases = Counter(zip(*(words[start:] for start in range(5)), strict=False))
    repeated = 1 - len(phrases) / phrases.total()
    assert repeated < 0.02
