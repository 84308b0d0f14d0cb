"""Throughput of a whole capture against the published pattern and against the forward pass alone.

    python benchmarks/capture.py [--model smollm2_135m|gemma3_270m] [--data FILE.json] [--examples 40] [--rounds 5]

All variants run in turn in one process, round after round; the figures are medians, and ratios of medians of the
same run. Tokens are real tokens, without padding.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvcore.capture import capture
from kvcore.composition import composed_settings
from kvcore.data.batches import Batch, make_batches
from kvcore.model.forward import inference
from kvcore.model.geometry import Geometry, LayerKind
from kvcore.preparation import ModelLoader, identify, load_inputs
from kvcore.progress import StageProgress
from kvcore.spectrum.accumulation import Accumulation


def published_pattern(model: PreTrainedModel, geometry: Geometry, batches: Sequence[Batch]) -> None:
    """One example at a time, full forward pass with logits, float32 covariance in hooks."""
    covariance = {found.place: torch.zeros(found.kv_dim, found.kv_dim) for found in geometry}

    def add(place: LayerKind, output: Tensor) -> None:
        rows = output.reshape(-1, output.shape[-1]).float()
        covariance[place] += rows.T @ rows

    with ExitStack() as stack:
        stack.enter_context(inference(model))
        for found in geometry:
            hook = found.linear.register_forward_hook(
                lambda _module, _inputs, output, place=found.place: add(place, output)
            )
            stack.callback(hook.remove)
        for batch in batches:
            for tokens, mask in zip(batch.tokens, batch.mask, strict=True):
                model(input_ids=tokens[mask][None], use_cache=False)


def plain_forward(model: PreTrainedModel, batches: Sequence[Batch]) -> None:
    """The forward pass with logits in the same batches, nothing captured."""
    with inference(model):
        for batch in batches:
            model(input_ids=batch.tokens, attention_mask=batch.mask.long(), use_cache=False)


def stopped_forward(model: PreTrainedModel, geometry: Geometry, batches: Sequence[Batch]) -> None:
    """The forward pass up to the last keys and values, nothing accumulated."""
    with capture(model, geometry, lambda _place, _rows: None) as run:
        for batch in batches:
            run(batch)


def whole_capture(model: PreTrainedModel, geometry: Geometry, batches: Sequence[Batch]) -> None:
    """What kvcore does: as `measure_batches`, without the decomposition at the end."""
    accumulation = Accumulation.start(geometry)
    with capture(model, geometry, accumulation.add) as run:
        for batch in batches:
            run(batch)
            accumulation.end_batch()


def main() -> None:
    """Run all variants and print their throughput and its ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--data", help="a file of pairs; by default pocket_general")
    parser.add_argument("--examples", type=int, default=40)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    overrides = [f"model={arguments.model}", f"dataset.max_examples={arguments.examples}", "evaluation.share=0"]
    if arguments.data:
        overrides += ["dataset=local", f"dataset.path={arguments.data}"]
    settings = composed_settings(overrides, Path(__file__).resolve().parents[1] / "conf")
    with StageProgress(visible=False) as progress:
        _, sources = identify(settings, progress)
        inputs = load_inputs(settings, sources, ModelLoader(), progress)
    model, geometry = inputs.model, inputs.geometry
    batches = make_batches(inputs.calibration.encoded, batch_tokens=arguments.batch_tokens)
    variants: dict[str, Callable[[], None]] = {
        "published pattern (batch 1, logits, float32 hooks)": lambda: published_pattern(model, geometry, batches),
        "forward pass with logits, no capture": lambda: plain_forward(model, batches),
        "forward pass stopped after the last keys and values": lambda: stopped_forward(model, geometry, batches),
        "kvcore": lambda: whole_capture(model, geometry, batches),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(arguments.rounds + 1):
        for name, variant in variants.items():
            started = time.perf_counter()
            variant()
            seconds[name].append(time.perf_counter() - started)
    tokens = sum(batch.token_count for batch in batches)
    medians = {name: statistics.median(measured[1:]) for name, measured in seconds.items()}  # the first warms up
    examples = len(inputs.calibration.encoded)
    print(f"{arguments.model}, {examples} examples, {tokens} tokens, {torch.get_num_threads()} threads")
    for name, median in medians.items():
        print(f"{name:55}{tokens / median:9.0f} tokens/s   kvcore is {median / medians['kvcore']:.2f} times as fast")


if __name__ == "__main__":
    main()
