"""Capture on a GPU at the full published shapes, with random weights: no hub, no Hydra, no datasets are needed.

    python benchmarks/gpu.py [--models qwen3_4b llama2_7b gemma_2b] [--tokens 65536] [--batch-tokens 16384] [--rounds 5]

Prints tokens a second with and without accumulation, their ratio (the overhead), peak memory, the share of the matrix
peak that the forward pass reaches, and the largest difference of NER from a float64 product of the same rows.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen3Config

from kvcore.capture import capture
from kvcore.data.batches import Batch
from kvcore.model.geometry import Geometry, LayerKind, discover
from kvcore.spectrum.accumulation import Accumulation
from kvcore.spectrum.metrics import normalized_effective_rank

SHAPES: dict[str, PretrainedConfig] = {
    "qwen3_4b": Qwen3Config(
        vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128,
    ),
    "llama2_7b": LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32,
    ),
    "gemma_2b": GemmaConfig(
        vocab_size=256000, hidden_size=2048, intermediate_size=16384, num_hidden_layers=18, num_attention_heads=8,
        num_key_value_heads=1, head_dim=256,
    ),
}  # fmt: skip
LENGTH = 256


def random_batches(vocabulary: int, tokens: int, batch_tokens: int) -> list[Batch]:
    """Return batches of random tokens, examples of `LENGTH` tokens each."""
    count = batch_tokens // LENGTH
    full = torch.ones(count, LENGTH, dtype=torch.bool)
    return [
        Batch(
            tokens=torch.randint(vocabulary, (count, LENGTH)),
            mask=full,
            targets=full,
            token_count=full.numel(),
            target_bytes=(),
            examples=tuple(range(count)),
        )
        for _ in range(max(1, tokens // batch_tokens))
    ]


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long something takes, until the device has really done it."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def run(model: PreTrainedModel, geometry: Geometry, batches: list[Batch], accumulation: Accumulation | None) -> None:
    """Run all batches up to the last keys and values, and accumulate them or not."""

    def ignore(_place: LayerKind, _rows: Tensor) -> None:
        return

    with capture(model, geometry, accumulation.add if accumulation else ignore) as step:
        for batch in batches:
            step(batch)
            if accumulation:
                accumulation.end_batch()


def matrix_peak() -> float:
    """Return the multiplications a second of a large bfloat16 product."""
    left = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    seconds_of(lambda: left @ left)
    return 8192**3 / statistics.median(seconds_of(lambda: left @ left) for _ in range(5))


def largest_difference(model: PreTrainedModel, geometry: Geometry, batch: Batch) -> float:
    """Return the largest difference of NER from a float64 product on the CPU of the very rows accumulated."""
    accumulation = Accumulation.start(geometry)
    difference = 0.0

    def compare(place: LayerKind, rows: Tensor) -> None:
        nonlocal difference
        exact = rows.double().cpu()
        values = torch.linalg.eigvalsh(exact.T @ exact).flip(0).clamp(min=0).sqrt()
        accumulation.accumulators[place].update(rows)
        found = accumulation.accumulators[place].singular_values()
        difference = max(difference, abs(normalized_effective_rank(found) - normalized_effective_rank(values)))

    first = Geometry(geometry.projections[:4])  # two layers: the decomposition on the CPU takes long
    with capture(model, first, compare) as step:
        step(batch)
    return difference


def measured(name: str, tokens: int, batch_tokens: int, rounds: int, peak: float) -> str:
    """Return the row of the table for one shape."""
    torch.manual_seed(0)
    torch.cuda.empty_cache()
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(SHAPES[name], dtype=torch.bfloat16).eval()
    geometry = discover(model)
    batches = random_batches(SHAPES[name].vocab_size, tokens, batch_tokens)
    torch.cuda.reset_peak_memory_stats()
    accumulation = Accumulation.start(geometry)
    with_it, without = [], []
    for _ in range(rounds + 1):  # the first round warms up
        without.append(seconds_of(lambda: run(model, geometry, batches, None)))
        with_it.append(seconds_of(lambda: run(model, geometry, batches, accumulation)))
    own, bare = statistics.median(with_it[1:]), statistics.median(without[1:])
    memory = torch.cuda.max_memory_allocated() / 1e9
    seen = sum(batch.token_count for batch in batches)
    share = seen * sum(parameter.numel() for parameter in model.base_model.layers.parameters()) / bare / peak
    difference = largest_difference(model, geometry, batches[0])
    speeds = f"{seen / own:10.0f}{seen / bare:10.0f}{own / bare:10.3f}"
    return f"{speeds}{memory:9.1f}{share:9.2f}{difference:10.1e}"


def main() -> None:
    """Measure every shape in bfloat16 and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU here, and this benchmark measures nothing else")
    peak = matrix_peak()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16 product {peak / 1e12:.0f} x 10^12 / s")
    print(f"{'model':12}{'tokens/s':>10}{'without':>10}{'overhead':>10}{'peak GB':>9}{'of peak':>9}{'NER diff':>10}")
    for name in arguments.models:
        print(f"{name:12}{measured(name, arguments.tokens, arguments.batch_tokens, arguments.rounds, peak)}")


if __name__ == "__main__":
    main()
