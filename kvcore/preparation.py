"""What a cell needs before anything is measured: weights, data, a loaded model, tokens."""

from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kvcore.cell import Cell, prepare_output_root
from kvcore.data.encoding import EncodedExample, check_vocabulary, encode, select
from kvcore.data.examples import examples_from_rows
from kvcore.data.layouts import flatten
from kvcore.data.sources import Data, find_data, read_rows
from kvcore.model.geometry import Geometry, check_expected, check_family, discover
from kvcore.model.loading import Weights, find_weights, load_model, load_tokenizer, read_config
from kvcore.progress import StageProgress
from kvcore.schema import DatasetSettings, ModelSettings, SettingError, Settings


class Inputs(NamedTuple):
    """What is measured, on what."""

    model: PreTrainedModel
    geometry: Geometry
    encoded: list[EncodedExample]
    left_out_rows: int


class ModelLoader:
    """Loads models, and keeps the last one for those who want it again."""

    def __init__(self) -> None:
        """Start with nothing loaded."""
        self._wanted: tuple[Any, ...] | None = None
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def load(self, weights: Weights, settings: ModelSettings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Return the model and its tokenizer; another one loaded before is let go first.

        Raises:
            SettingError: They cannot be loaded.
        """
        wanted = (weights, settings.dtype, settings.device, settings.device_map, settings.attention)
        if self._loaded is None or self._wanted != wanted:
            self._loaded = self._wanted = None
            model = load_model(
                weights,
                dtype=settings.dtype,
                device=settings.device,
                device_map=settings.device_map,
                attention=settings.attention,
            )
            self._loaded = model, load_tokenizer(weights)
            self._wanted = wanted
        return self._loaded


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


def identify(settings: Settings, progress: StageProgress) -> tuple[Cell, Weights, Data]:
    """Find weights and data, refuse what cannot be measured, and hash what they contain."""
    with progress.running("prepare", "finding weights and data (packaged weights are dequantised at first use)"):
        dataset, model = settings.dataset, settings.model
        data = locate_data(dataset)
        prepare_output_root(settings.output_root)
        weights = locate_weights(model)
        config = read_config(weights)
        check_family(config)
        context = min(config.max_position_embeddings, model.context or config.max_position_embeddings)
        if dataset.max_length > context:
            allowed = f"the context of model {model.name} is {context} tokens"
            raise SettingError("dataset.max_length", dataset.max_length, allowed)
        return Cell(settings, weights.revision, data.revision()), weights, data


def load_inputs(
    settings: Settings, weights: Weights, data: Data, loader: ModelLoader, progress: StageProgress
) -> Inputs:
    """Load the model, and read and tokenize the data."""
    model_settings, dataset = settings.model, settings.dataset
    with progress.running("load", f"loading {model_settings.name}"):
        model, tokenizer = loader.load(weights, model_settings)
        geometry = discover(model)
        check_expected(geometry, **dict(model_settings.expected))
    with progress.running("read", f"reading {dataset.name}"):
        rows = flatten(read_rows(data), dataset.layout, settings.language.name)
        examples = examples_from_rows(rows, prompt_template=dataset.prompt, **dataset.columns.model_dump())
        encoded = encode(
            select(examples, max_examples=dataset.max_examples, seed=settings.seed),
            tokenizer,
            template=model_settings.template,
            max_length=dataset.max_length,
            max_tokens=dataset.max_tokens,
        )
        check_vocabulary(encoded, model.config.vocab_size)
    return Inputs(model, geometry, encoded, len(rows) - len(examples))
