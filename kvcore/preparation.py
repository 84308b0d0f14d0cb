"""What a cell needs before anything is measured: weights, data, a loaded model, tokens."""

from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from kvcore.cell import Cell, prepare_output_root
from kvcore.compression.budgets.ranks_file import ranks_revision
from kvcore.data.encoding import EncodedExample, check_vocabulary, encode, first_tokens
from kvcore.data.examples import Example, examples_from_rows
from kvcore.data.layouts import flatten
from kvcore.data.sources import Data, find_data, read_rows
from kvcore.data.splits import Split, split_examples
from kvcore.evaluation.judging.rubric import read_rubric
from kvcore.model.geometry import Geometry, check_expected, check_family, discover
from kvcore.model.loading import Weights, find_weights, load_model, load_tokenizer, read_config
from kvcore.progress import StageProgress
from kvcore.schema import (
    DatasetSettings,
    EvaluationSettings,
    FileRankBudget,
    ModelSettings,
    NoJudge,
    SettingError,
    Settings,
    TransformersJudge,
)


class Part(NamedTuple):
    """Examples that serve one purpose, and their tokens.

    Attributes:
        split: The examples, and where in their dataset they stand.
        encoded: Those of them that the limits leave, tokenized.
        left_out_rows: Rows of the dataset without text in all mapped columns.
        max_length: Longer examples were cut to this many tokens.
    """

    split: Split
    encoded: list[EncodedExample]
    left_out_rows: int
    max_length: int

    @property
    def cut_examples(self) -> int:
        """Number of examples of which only the beginning is there."""
        return sum(example.full_length > self.max_length for example in self.encoded)

    @property
    def examples(self) -> list[Example]:
        """The tokenized examples as they were before."""
        return [self.split.examples[example.number] for example in self.encoded]

    @property
    def numbers(self) -> list[int]:
        """Place of each tokenized example among the usable examples of its dataset."""
        return [self.split.numbers[example.number] for example in self.encoded]


class Inputs(NamedTuple):
    """What is measured, on what.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        geometry: Its key and value projections.
        calibration: What spectra and ranks are computed from.
        evaluation: What their cost is measured on.
        shared_examples: Examples left out of the evaluation for they are among those that calibrate as well.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    geometry: Geometry
    calibration: Part
    evaluation: Part
    shared_examples: int

    @property
    def in_sample(self) -> bool:
        """Whether cost is measured on the very examples that calibrate."""
        return self.evaluation.split is self.calibration.split


class Sources(NamedTuple):
    """What a cell's settings point at, on this machine.

    Attributes:
        weights: Of the model.
        dataset: The cell's own data.
        held_out: Another dataset to evaluate on, if there is one.
        judge: Weights of the judge, if it is a model in this process.
    """

    weights: Weights
    dataset: Data
    held_out: Data | None
    judge: Weights | None


class ModelLoader:
    """Loads models, and keeps the last one in each role for those who want it again."""

    def __init__(self) -> None:
        """Start with nothing loaded."""
        self._kept: dict[str, tuple[tuple[Any, ...], tuple[PreTrainedModel, PreTrainedTokenizerBase]]] = {}

    def load(
        self, weights: Weights, settings: ModelSettings, *, role: Literal["model", "judge"] = "model"
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the model and its tokenizer; another one loaded before in this role is let go first.

        Raises:
            SettingError: They cannot be loaded.
        """
        wanted = (weights, settings.dtype, settings.device, settings.device_map, settings.attention)
        for known, loaded in self._kept.values():
            if known == wanted:
                self._kept[role] = known, loaded
                return loaded
        self._kept.pop(role, None)
        model = load_model(
            weights,
            dtype=settings.dtype,
            device=settings.device,
            device_map=settings.device_map,
            attention=settings.attention,
        )
        self._kept[role] = wanted, (model, load_tokenizer(weights))
        return self._kept[role][1]


def context_of(config: PretrainedConfig, settings: ModelSettings) -> int:
    """Return the longest input that a model is meant for, in tokens."""
    longest = int(config.max_position_embeddings)
    return min(longest, settings.context or longest)


def locate_data(dataset: DatasetSettings) -> Data:
    """Find, or fetch, the data that settings name; see `find_data`."""
    return find_data(
        source=dataset.source,
        path=dataset.path,
        id=dataset.id,
        revision=dataset.revision,
        split=dataset.split,
        files=dataset.files,
    )


def locate_weights(model: ModelSettings) -> Weights:
    """Find, or fetch without its tensors, the model that settings name; see `find_weights`."""
    return find_weights(
        source=model.source,
        name=model.name,
        parts=model.parts,
        sha256=model.sha256,
        path=model.path,
        id=model.id,
        revision=model.revision,
        gated=model.gated,
    )


def identify(settings: Settings, progress: StageProgress) -> tuple[Cell, Sources]:
    """Find weights and data, refuse what cannot be measured, and hash what they contain."""
    with progress.running("prepare", "finding weights and data (packaged weights are dequantised at first use)"):
        held_out, judge = settings.held_out.dataset, settings.judge
        data = locate_data(settings.dataset), locate_data(held_out) if held_out else None
        prepare_output_root(settings.output_root)
        weights = locate_weights(settings.model)
        config = read_config(weights)
        check_family(config)
        context = context_of(config, settings.model)
        for name, dataset in (("dataset", settings.dataset), ("held_out.dataset", held_out)):
            if dataset and dataset.max_length > context:
                allowed = f"the context of model {settings.model.name} is {context} tokens"
                raise SettingError(f"{name}.max_length", dataset.max_length, allowed)
        sources = Sources(
            weights, *data, judge=locate_weights(judge.model) if isinstance(judge, TransformersJudge) else None
        )
        return Cell(settings, **_revisions(settings, sources)), sources


def _revisions(settings: Settings, sources: Sources) -> dict[str, Any]:
    """Return the hashes of what settings point at, by the names that a cell has for them."""
    budget, judge = settings.rank_budget, settings.judge
    return {
        "model_revision": sources.weights.revision,
        "dataset_revision": sources.dataset.revision(),
        "held_out_revision": sources.held_out.revision() if sources.held_out else None,
        "ranks_revision": ranks_revision(Path(budget.path).expanduser())
        if isinstance(budget, FileRankBudget)
        else None,
        "rubric_revision": None if isinstance(judge, NoJudge) else read_rubric(judge.rubric).content_hash,
        "judge_revision": sources.judge.revision if sources.judge else None,
    }


def load_inputs(settings: Settings, sources: Sources, loader: ModelLoader, progress: StageProgress) -> Inputs:
    """Load the model, and read and tokenize the data."""
    with progress.running("load", f"loading {settings.model.name}"):
        model, tokenizer = loader.load(sources.weights, settings.model)
        geometry = discover(model)
        check_expected(geometry, **dict(settings.model.expected))
    with progress.running("read", f"reading {settings.dataset.name}"):
        calibration, evaluation, shared_examples = read_parts(settings, sources, tokenizer)
        check_vocabulary([*calibration.encoded, *evaluation.encoded], model.config.vocab_size)
    return Inputs(model, tokenizer, geometry, calibration, evaluation, shared_examples)


def read_parts(settings: Settings, sources: Sources, tokenizer: PreTrainedTokenizerBase) -> tuple[Part, Part, int]:
    """Return what calibrates, what is evaluated on, and how many examples of the latter were in both."""
    dataset, wanted = settings.dataset, settings.evaluation
    tokenized = partial(encode, tokenizer=tokenizer, template=settings.model.template)
    examples, left_out_rows = _read_examples(sources.dataset, dataset, settings.language.name)
    pool, evaluation = split_examples(examples, share=wanted.share, seed=settings.seed)
    calibration = pool.first(dataset.max_examples, "dataset.max_examples")
    encoded = tokenized(calibration.examples, max_length=dataset.max_length, max_tokens=dataset.max_tokens)
    calibrating = Part(calibration, encoded, left_out_rows, dataset.max_length)
    if settings.held_out.dataset and sources.held_out:
        dataset = settings.held_out.dataset
        examples, left_out_rows = _read_examples(sources.held_out, dataset, settings.held_out.language.name)
        everything, held_out = split_examples(examples, share=wanted.share, seed=settings.seed)
        evaluation = held_out if wanted.share else everything
    elif not wanted.share:
        return calibrating, _limited(calibrating, wanted), 0

    apart = evaluation.without(calibration.examples)
    if not apart.examples:
        raise SettingError("evaluation.share", wanted.share, "every example to evaluate on is one of the calibration")
    chosen = apart.first(wanted.max_examples, "evaluation.max_examples")
    encoded = tokenized(chosen.examples, max_length=dataset.max_length)
    evaluating = Part(chosen, encoded, left_out_rows, dataset.max_length)
    return calibrating, _limited(evaluating, wanted), len(evaluation.examples) - len(apart.examples)


def _limited(part: Part, wanted: EvaluationSettings) -> Part:
    """Leave as many examples and tokens as are to be evaluated on."""
    if wanted.max_examples is not None and wanted.max_examples > len(part.encoded):
        allowed = f"this split of the dataset has {len(part.encoded)}"
        raise SettingError("evaluation.max_examples", wanted.max_examples, allowed)
    encoded = part.encoded[: wanted.max_examples]
    if wanted.max_tokens is not None:
        encoded = first_tokens(encoded, wanted.max_tokens, "evaluation.max_tokens")
    return part._replace(encoded=encoded)


def _read_examples(data: Data, dataset: DatasetSettings, language: str) -> tuple[list[Example], int]:
    """Return the usable examples, and how many rows are not."""
    rows = flatten(read_rows(data), dataset.layout, language)
    examples = examples_from_rows(rows, prompt_template=dataset.prompt, **dataset.columns.model_dump())
    return examples, len(rows) - len(examples)
