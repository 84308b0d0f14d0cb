"""The accumulators alone against the machine's best and against other streaming decompositions.

    python benchmarks/engine.py [--kv-dims 192 256 1024] [--rows 512 2048] [--rounds 5]

All variants run in turn in one process; medians. Speed is counted as kv_dim^2 multiplications a row for every variant.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from kvcore.spectrum.streaming import StreamingSVD
from kvcore.spectrum.triangular import TriangularSVD


def stacked_svd(batches: list[Tensor]) -> Tensor:
    """Decompose [S V^T; batch] anew for every batch, in float32 as it is published."""
    state = torch.zeros(0, batches[0].shape[1])
    for batch in batches:
        _, values, vectors = torch.linalg.svd(torch.cat([state, batch]), full_matrices=False)
        state = values[:, None] * vectors
    return state


def incremental_pca(batches: list[Tensor]) -> None:
    """scikit-learn's IncrementalPCA, which centres as well."""
    from sklearn.decomposition import IncrementalPCA

    fitted = IncrementalPCA()
    for batch in batches:
        fitted.partial_fit(batch.numpy())


def accumulate(made: type[StreamingSVD], batches: list[Tensor]) -> None:
    """Add all batches."""
    accumulator = made(batches[0].shape[1])
    for batch in batches:
        accumulator.update(batch)
    accumulator.current_triangle()


def double_product(batches: list[Tensor]) -> None:
    """A plain float64 product of every batch: twice the multiplications that are needed."""
    total = torch.zeros(batches[0].shape[1], batches[0].shape[1], dtype=torch.float64)
    for batch in batches:
        exact = batch.double()
        total.addmm_(exact.T, exact)


def symmetric_product(batches: list[Tensor]) -> None:
    """The machine's best float64 symmetric product: dsyrk of scipy's BLAS on rows that are float64 already."""
    from scipy.linalg.blas import dsyrk

    total = torch.zeros(batches[0].shape[1], batches[0].shape[1], dtype=torch.float64).numpy().T
    for batch in batches:
        dsyrk(1.0, batch.double().numpy().T, beta=1.0, c=total, lower=1, overwrite_c=1)


def measure(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each variant, run in turn, the first round left out."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, variant in variants.items():
            time.sleep(0.2)  # lets the threads of the one library go to sleep before the other's begin
            started = time.perf_counter()
            variant()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(measured[1:]) for name, measured in seconds.items()}


def main() -> None:
    """Run all variants for each size and print their speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kv-dims", type=int, nargs="+", default=[192, 256, 1024])
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads; 10^9 multiplications a second, and how many times as fast kvcore is")
    for kv_dim in arguments.kv_dims:
        for rows in arguments.rows:
            torch.manual_seed(0)
            batches = [torch.randn(rows, kv_dim) for _ in range(max(1, 4096 // rows))]
            medians = measure(
                {
                    "kvcore, standard": lambda batches=batches: accumulate(StreamingSVD, batches),
                    "kvcore, exact": lambda batches=batches: accumulate(TriangularSVD, batches),
                    "float64 product": lambda batches=batches: double_product(batches),
                    "dsyrk of scipy": lambda batches=batches: symmetric_product(batches),
                    "SVD of [S V^T; batch]": lambda batches=batches: stacked_svd(batches),
                    "IncrementalPCA": lambda batches=batches: incremental_pca(batches),
                },
                arguments.rounds,
            )
            own = medians["kvcore, standard"]
            multiplications = kv_dim**2 * rows * len(batches)
            print(f"\nkv_dim {kv_dim}, batches of {rows} rows")
            for name, median in medians.items():
                print(f"  {name:24}{multiplications / median / 1e9:8.1f}{median / own:9.2f}")


if __name__ == "__main__":
    main()
