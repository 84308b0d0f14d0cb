"""Speed and memory of a perplexity pass: truncated against untruncated, and with logits against without.

    python benchmarks/evaluation.py [--model gemma3_270m] [--tokens 4000] [--rounds 5]

Speed: tokens a second of a pass at half the rank, folding included, over those of a pass of the untruncated model, both
in turn in one process. Memory: the peak of a process that does a perplexity pass over that of one that runs
the forward pass up to the last hidden states; each in a process of its own, for a peak never falls.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from kvcore.command_line import prepare_libraries
from kvcore.composition import composed_settings
from kvcore.compression.budgets.uniform import uniform_ranks
from kvcore.compression.truncation import truncated
from kvcore.data.batches import Batches, make_batches
from kvcore.evaluation.perplexity import measure_likelihoods
from kvcore.model.forward import hidden_states, inference
from kvcore.preparation import Inputs, ModelLoader, identify, load_inputs
from kvcore.progress import StageProgress
from kvcore.results.record import peak_memory_bytes
from kvcore.spectrum.measurement import measure_batches


def prepared(model: str, tokens: int, batch_tokens: int) -> tuple[Inputs, Batches]:
    """Load a packaged model and batches of exactly so many tokens."""
    overrides = [f"model={model}", "evaluation.share=0", f"dataset.max_tokens={tokens}"]
    settings = composed_settings(overrides, Path(__file__).resolve().parents[1] / "conf")
    with StageProgress(visible=False) as progress:
        _, sources = identify(settings, progress)
        inputs = load_inputs(settings, sources, ModelLoader(), progress)
    return inputs, make_batches(inputs.calibration.encoded, batch_tokens=batch_tokens)


def compare_speed(inputs: Inputs, batches: Batches, rounds: int) -> None:
    """Print the throughput of both passes and its ratio."""
    model, geometry = inputs.model, inputs.geometry
    spectra = measure_batches(model, geometry, [batches]).spectra
    ranks = {"untruncated": {}, "truncated": uniform_ranks(geometry.kv_dims, 0.5)}
    seconds: dict[str, list[float]] = {name: [] for name in ranks}
    for _ in range(rounds + 1):
        for name, chosen in ranks.items():
            started = time.perf_counter()
            with truncated(geometry, spectra, chosen):
                measure_likelihoods(model, batches)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(measured[1:]) for name, measured in seconds.items()}  # the first warms up
    for name, median in medians.items():
        print(f"{name:12}{batches.token_count / median:9.0f} tokens/s")
    print(f"truncated / untruncated: {medians['untruncated'] / medians['truncated']:.3f}")


def print_peak(inputs: Inputs, batches: Batches, *, with_logits: bool) -> None:
    """Print the peak memory of this process after one pass, in bytes."""
    for parameter in inputs.model.parameters():  # weights lie in a mapped file, and count only once they are read
        parameter.sum()
    if with_logits:
        measure_likelihoods(inputs.model, batches)
    else:
        with inference(inputs.model):
            for batch in batches:
                hidden_states(inputs.model, batch.tokens, batch.mask)
    print(peak_memory_bytes(inputs.model.device))


def compare_memory(arguments: list[str]) -> None:
    """Print the peaks of two processes and their ratio."""
    peaks = {}
    for kind in ("forward", "perplexity"):
        command = [sys.executable, __file__, *arguments, "--peak", kind]
        done = subprocess.run(command, capture_output=True, check=True)  # noqa: S603 - this very file
        peaks[kind] = int(done.stdout.split()[-1])
        print(f"peak memory, {kind:10} pass {peaks[kind] / 2**20:9.0f} MiB")
    print(f"perplexity / forward: {peaks['perplexity'] / peaks['forward']:.3f}")


def main() -> None:
    """Compare speed, then memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", choices=["forward", "perplexity"], help="one of the two processes of the comparison")
    arguments = parser.parse_args()
    prepare_libraries()
    inputs, batches = prepared(arguments.model, arguments.tokens, arguments.batch_tokens)
    if arguments.peak:
        print_peak(inputs, batches, with_logits=arguments.peak == "perplexity")
        return
    print(f"{arguments.model}, {batches.token_count} tokens, {torch.get_num_threads()} threads")
    compare_speed(inputs, batches, arguments.rounds)
    compare_memory(sys.argv[1:])


if __name__ == "__main__":
    main()
