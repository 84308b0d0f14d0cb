"""Stage: from the rank budget to the ranks at which cost is measured."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from kvcore.cell import Cell
from kvcore.compression.allocation import (
    Allocation,
    KvDims,
    Ranks,
    affordable_numbers,
    least_ranks,
    only,
    untruncated,
)
from kvcore.compression.budgets.energy import energy_ranks, ranks_at_energy
from kvcore.compression.budgets.importance import block_influence, importance_ranks
from kvcore.compression.budgets.ranks_file import count_ranks, read_ranks
from kvcore.compression.budgets.sensitivity import CANDIDATES, Divergence, measure_divergences, sensitivity_ranks
from kvcore.compression.budgets.uniform import ranks_at_ratios, uniform_ranks
from kvcore.compression.budgets.waterfill import waterfill_ranks
from kvcore.data.batches import Advance, Batches
from kvcore.model.geometry import KINDS
from kvcore.model.taps import Point
from kvcore.preparation import Inputs
from kvcore.progress import StageProgress
from kvcore.schema import (
    EnergyRankBudget,
    FileRankBudget,
    GridRankBudget,
    ImportanceRankBudget,
    NoRankBudget,
    RankBudgetSettings,
    SensitivityRankBudget,
    UniformRankBudget,
    WaterfillRankBudget,
)
from kvcore.spectrum.tables import Spectra, kv_dims
from kvcore.stages.checking import calibration_sample

RanksWithin = Callable[[float], Ranks]
_GlobalBudget = (
    UniformRankBudget | EnergyRankBudget | WaterfillRankBudget | ImportanceRankBudget | SensitivityRankBudget
)


def allocate(cell: Cell, inputs: Inputs, spectra: Spectra, progress: StageProgress) -> list[Allocation]:
    """Return the allocations of a cell's rank budget, that of the untruncated model first.

    Raises:
        SettingError: A budget is too small, or a file of ranks does not fit.
    """
    settings = cell.settings.rank_budget
    full = kv_dims(spectra)
    return [untruncated(full), *_truncating(cell, settings, inputs, spectra, progress)]


def count_allocations(settings: RankBudgetSettings) -> int:
    """Return how many allocations a rank budget stands for, that of the untruncated model included.

    Raises:
        SettingError: A file of ranks cannot be read.
    """
    if isinstance(settings, NoRankBudget):
        return 1
    if isinstance(settings, GridRankBudget):
        return len({(1.0, 1.0), *product(settings.key_ratios, settings.value_ratios)})
    if isinstance(settings, FileRankBudget):
        return 1 + count_ranks(Path(settings.path).expanduser())
    if isinstance(settings, EnergyRankBudget) and settings.shares:
        return 1 + len(settings.shares)
    return 1 + len(settings.budgets)


def check_rank_budget(settings: RankBudgetSettings, kv_dims: KvDims, model_revision: str) -> None:
    """Find a user's mistake before the long work.

    Raises:
        SettingError: A budget is too small, or a file of ranks does not fit.
    """
    if isinstance(settings, FileRankBudget):
        read_ranks(Path(settings.path).expanduser(), kv_dims, model_revision=model_revision)
    apart = isinstance(settings, ImportanceRankBudget) or getattr(settings, "kind", "pooled") == "apart"
    for budget in getattr(settings, "budgets", ()):
        for part in [only(kind, kv_dims) for kind in KINDS] if apart else [kv_dims]:
            affordable_numbers(part, budget)
        if isinstance(settings, WaterfillRankBudget | SensitivityRankBudget):
            least_ranks(kv_dims, settings.floor, budget)


def _truncating(
    cell: Cell, settings: RankBudgetSettings, inputs: Inputs, spectra: Spectra, progress: StageProgress
) -> list[Allocation]:
    if isinstance(settings, NoRankBudget):
        return []
    if isinstance(settings, GridRankBudget):
        return _grid(kv_dims(spectra), settings.key_ratios, settings.value_ratios)
    if isinstance(settings, FileRankBudget):
        path = Path(settings.path).expanduser()
        return read_ranks(path, kv_dims(spectra), model_revision=cell.model_revision)
    if isinstance(settings, EnergyRankBudget) and settings.shares:
        return [
            Allocation("energy", f"energy share {share:g}", ranks_at_energy(spectra, share))
            for share in settings.shares
        ]
    sample = calibration_sample(inputs, getattr(settings, "tokens", 1), cell.settings.capture.batch_tokens)
    passes = _passes(settings, len(spectra))
    with progress.running("allocation", f"{settings.name} ranks", passes * sample.token_count) as advance:
        ranks_within = _strategy(settings, inputs, spectra, sample, advance, cell.settings.capture.point)
        strategy = _name(settings)
        return [
            Allocation(strategy, f"{strategy} {budget:g}", ranks_within(budget), budget=budget)
            for budget in settings.budgets
        ]


def _grid(kv_dims: KvDims, key_ratios: Sequence[float], value_ratios: Sequence[float]) -> list[Allocation]:
    return [
        Allocation(
            "grid",
            f"keys {key_ratio:g}, values {value_ratio:g}",
            ranks_at_ratios(kv_dims, {"key": key_ratio, "value": value_ratio}),
            key_ratio=key_ratio,
            value_ratio=value_ratio,
        )
        for key_ratio, value_ratio in product(key_ratios, value_ratios)
        if (key_ratio, value_ratio) != (1.0, 1.0)
    ]


def _name(settings: _GlobalBudget) -> str:
    """Return the name of a strategy, with what sets it apart from others of its kind."""
    name: str = settings.name
    if isinstance(settings, WaterfillRankBudget) and settings.kind == "apart":
        name += " apart"
    if isinstance(settings, ImportanceRankBudget):
        name += f" (alpha {settings.alpha:g})"
    floor: float = getattr(settings, "floor", 0.0)
    return f"{name} (floor {floor:g})" if floor else name


def _passes(settings: _GlobalBudget, places: int) -> int:
    """Return how many forward passes over the sample the ranks take, at most."""
    if isinstance(settings, SensitivityRankBudget):
        return 1 + len(settings.ratios) * places + len(CANDIDATES) * len(settings.budgets)
    return int(isinstance(settings, ImportanceRankBudget))


def _strategy(
    settings: _GlobalBudget, inputs: Inputs, spectra: Spectra, sample: Batches, advance: Advance, point: Point
) -> RanksWithin:
    """Return the function from a budget to ranks, having measured what it needs to know."""
    if isinstance(settings, UniformRankBudget):
        return partial(uniform_ranks, kv_dims(spectra))
    if isinstance(settings, EnergyRankBudget):
        return partial(energy_ranks, spectra)
    if isinstance(settings, WaterfillRankBudget):
        return partial(waterfill_ranks, spectra, floor=settings.floor, kind=settings.kind)
    if isinstance(settings, ImportanceRankBudget):
        influence = block_influence(inputs.model, sample, advance)
        return partial(importance_ranks, spectra, influence=influence, floor=settings.floor, alpha=settings.alpha)
    divergence = Divergence(inputs.model, inputs.geometry, spectra, sample, advance, point=point)
    measured = measure_divergences(divergence, spectra, settings.ratios)
    return partial(sensitivity_ranks, spectra, measured=measured, divergence=divergence, floor=settings.floor)
