"""Splits: disjoint, complete, drawn by the seed, the same for parallel texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcore.data.examples import Example
from kvcore.data.splits import Split, split_examples
from kvcore.schema import SettingError

EXAMPLES = [Example(str(number)) for number in range(50)]


@given(st.integers(2, 60), st.floats(0, 0.95), st.integers(0, 5))
def test_splits_are_disjoint_and_complete(count: int, share: float, seed: int) -> None:
    examples = [Example(str(number)) for number in range(count)]
    wanted = max(1, int(share * count + 0.5)) if share else 0
    if wanted >= count:
        with pytest.raises(SettingError, match=r"evaluation.share = .* leave none to calibrate on"):
            split_examples(examples, share=share, seed=seed)
        return
    calibration, evaluation = split_examples(examples, share=share, seed=seed)
    assert len(evaluation.examples) == wanted
    assert sorted(calibration.numbers + evaluation.numbers) == list(range(count))
    for split in (calibration, evaluation):
        assert split.examples == tuple(examples[number] for number in split.numbers)


def test_the_seed_draws_the_order() -> None:
    calibration, evaluation = split_examples(EXAMPLES, share=0.2, seed=1)
    assert split_examples(EXAMPLES, share=0.2, seed=1) == (calibration, evaluation)
    assert split_examples(EXAMPLES, share=0.2, seed=2)[1] != evaluation
    assert list(calibration.numbers) != sorted(calibration.numbers)
    everything, nothing = split_examples(EXAMPLES, share=0, seed=1)
    assert everything.numbers[:40] == calibration.numbers
    assert nothing.examples == ()


def test_parallel_texts_are_cut_alike() -> None:
    german = [Example(f"Nummer {number}") for number in range(50)]
    for seed in range(3):
        pairs = zip(
            split_examples(EXAMPLES, share=0.2, seed=seed), split_examples(german, share=0.2, seed=seed), strict=True
        )
        assert all(one.numbers == other.numbers for one, other in pairs)


def test_limits_keep_the_first_examples() -> None:
    calibration, _ = split_examples(EXAMPLES, share=0.2, seed=1)
    assert calibration.first(10, "dataset.max_examples").numbers == calibration.numbers[:10]
    assert calibration.first(None, "dataset.max_examples") == calibration
    with pytest.raises(SettingError, match="dataset.max_examples = 41: this split of the dataset has 40"):
        calibration.first(41, "dataset.max_examples")


def test_examples_known_by_their_text_are_left_out() -> None:
    split = Split((Example("a", "q"), Example("b"), Example("a")), (7, 8, 9))
    assert split.without([Example(" A\n"), Example("c")]) == Split((Example("a", "q"), Example("b")), (7, 8))
    assert split.without([Example("q  a")]) == Split((Example("b"), Example("a")), (8, 9))
