"""Real packaged models, a tiny Llama with a byte tokenizer, settings that run it, and a Slurm."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from slurm_cluster import Cluster, require_slurm, slurm_cluster
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from kvcore.model.loading import Weights, find_weights, load_model, load_tokenizer
from kvcore.schema import LaunchSettings, ModelSettings, Settings, parse_settings

REPOSITORY = Path(__file__).parents[1]
TEXTS = [
    "The ferry left at noon.",
    "Bread needs flour, water, salt and time; nothing else.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "If the sum of two odd numbers is even, what is the sum of three odd numbers?",
    "Rain.",
    "A lighthouse keeper counted ships: seven in the morning, two at dusk, none at night.",
    "She wrote the letter twice, tore up both copies, and rang him instead.",
    "In 1874 a group of painters held an exhibition of their own.",
]


def composed(*overrides: str) -> dict[str, Any]:
    """Compose the settings of a cell from the shipped configuration, as the command line does."""
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        values = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items() if name not in LaunchSettings.model_fields}


def tiny_llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """Return a random Llama with grouped queries, biases, and a head_dim that is not hidden_size / heads."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "vocab_size": 258,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "attention_bias": True,
            "max_position_embeddings": 512,
            "bos_token_id": 256,
            "eos_token_id": 257,
        }
        | changes
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """Return a tokenizer with one token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)} | {"<bos>": 256, "<eos>": 257}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny Llama, as a user would have it."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny_llama().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def tiny() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return byte_tokenizer()


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    """A file with `TEXTS`."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"text": "{text}"}}\n' for text in TEXTS), encoding="utf-8")
    return data


@pytest.fixture
def tiny_settings(tiny_folder: Path, tiny_data: Path) -> Settings:
    """Settings of a cell that takes a second."""
    return tiny_cell(tiny_folder, tiny_data, tiny_data.parent / "outputs")


def tiny_overrides(folder: Path, data: Path, outputs: Path) -> list[str]:
    return [
        "model=folder",
        f"model.path={folder}",
        "model.name=tiny",
        "dataset=local",
        f"dataset.path={data}",
        "dataset.columns.text=text",
        "dataset.max_length=256",
        "evaluation.share=0",
        "rank_budget.key_ratios=[1.0,0.5]",
        "rank_budget.value_ratios=[1.0,0.25]",
        f"output_root={outputs}",
    ]


def tiny_cell(folder: Path, data: Path, outputs: Path, *more: str) -> Settings:
    return parse_settings(composed(*tiny_overrides(folder, data, outputs), *more))


def packaged_settings(name: str) -> ModelSettings:
    return parse_settings(composed(f"model={name}")).model


def packaged_weights(name: str) -> Weights:
    settings = packaged_settings(name)
    return find_weights(source="packaged", name=name, parts=settings.parts, sha256=settings.sha256)


Packaged = tuple[str, PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="session", params=["smollm2_135m", "gemma3_270m"])
def packaged(request: pytest.FixtureRequest) -> Packaged:
    """Each of the two packaged models, real weights and tokenizer."""
    weights = packaged_weights(request.param)
    return request.param, load_model(weights, dtype="float32", device="cpu", attention="sdpa"), load_tokenizer(weights)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    require_slurm()
    with slurm_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(slurm: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cluster:
    """Return a Slurm that commands of this test find, in a folder of their own."""
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    return slurm
