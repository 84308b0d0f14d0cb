"""Importance: the dynamic allocation of Swift-SVD, for comparison.

References:
    Qi et al., "Swift-SVD: theoretical optimality meets practical efficiency in low-rank LLM compression", arXiv
    2604.01609, algorithm 2. Importance of layers: block influence, Men et al., "ShortGPT: layers in large language
    models are more redundant than you expect", arXiv 2403.03853.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from kvcore.compression.allocation import affordable_numbers, rank_at_ratio
from kvcore.data.batches import Advance, Batch, unobserved
from kvcore.model.forward import hidden_states, inference
from kvcore.model.geometry import KINDS, LayerKind
from kvcore.spectrum.metrics import tail_energy
from kvcore.spectrum.tables import Spectra, kv_dims


def importance_ranks(
    spectra: Spectra, budget: float, influence: Mapping[int, float], *, floor: float, alpha: float
) -> dict[LayerKind, int]:
    """Return a share `floor` of the uniform rank for every layer, and the rest in proportion to the layers' scores.

    score = I^alpha * ln(e + loss)^(1 - alpha), where I is the layer's influence, scaled to 1 (the least) up to 2,
    and the loss is the Frobenius error of truncating it to the uniform rank. Keys and values get the same share
    of the cache each. What a layer cannot take, being full, goes to the others.

    Args:
        spectra: Spectrum by layer and kind.
        budget: Share of the full cache to spend, in (0, 1].
        influence: Block influence by layer, see `block_influence`.
        floor: Share of the uniform rank that every layer gets in any case (the paper's delta).
        alpha: Weight of the importance against that of the loss, 0 to 1.

    Raises:
        SettingError: The budget is not enough for one rank in each layer and kind.
    """
    lowest, highest = min(influence.values()), max(influence.values())
    spread = highest - lowest or 1.0
    ranks: dict[LayerKind, int] = {}
    for kind in KINDS:
        part = {place: spectrum for place, spectrum in spectra.items() if place.kind == kind}
        uniform = {place: rank_at_ratio(budget, spectrum.kv_dim) for place, spectrum in part.items()}
        losses = {place: math.sqrt(tail_energy(part[place].singular_values, uniform[place])) for place in part}
        scores = {
            place: (1 + (influence[place.layer] - lowest) / spread) ** alpha
            * math.log(math.e + losses[place]) ** (1 - alpha)
            for place in part
        }
        least = {place: max(1, math.floor(floor * rank)) for place, rank in uniform.items()}
        limits = kv_dims(part)
        ranks |= _in_proportion(scores, least, limits, affordable_numbers(limits, budget))
    return {place: ranks[place] for place in spectra}


def _in_proportion(
    scores: Mapping[LayerKind, float], ranks: Mapping[LayerKind, int], limits: Mapping[LayerKind, int], numbers: int
) -> dict[LayerKind, int]:
    """Raise ranks by shares of what is left, in proportion to the scores; remainders go to the highest scores."""
    spent = dict(ranks)
    while (left := numbers - sum(spent.values())) > 0:
        open_places = sorted((p for p in spent if spent[p] < limits[p]), key=lambda place: -scores[place])
        total = sum(scores[place] for place in open_places)
        wanted = {place: math.floor(left * scores[place] / total) for place in open_places}
        if not any(wanted.values()):
            wanted = dict.fromkeys(open_places[:left], 1)
        for place, more in wanted.items():
            spent[place] += min(more, limits[place] - spent[place])
    return spent


def block_influence(
    model: PreTrainedModel, batches: Sequence[Batch], advance: Advance = unobserved
) -> dict[int, float]:
    """Return by layer how much it turns the hidden states: 1 - mean cosine between what goes in and what comes out.

    Args:
        model: A causal language model of a known family.
        batches: Token batches; padding is not counted.
        advance: Told the number of tokens of each batch when it is done.
    """
    wanted = torch.zeros(0, dtype=torch.bool)
    layers = list(model.base_model.get_submodule("layers").children())
    sums = dict.fromkeys(range(len(layers)), 0.0)

    def watcher(layer: int) -> Any:  # noqa: ANN401 - a hook of torch
        def watch(_module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any], output: Any) -> None:  # noqa: ANN401
            before = inputs[0] if inputs else named["hidden_states"]
            after = output if isinstance(output, Tensor) else output[0]
            cosines = functional.cosine_similarity(before.float(), after.float(), dim=-1)
            sums[layer] += float(cosines[wanted.to(cosines.device)].double().sum())

        return watch

    with ExitStack() as stack:
        stack.enter_context(inference(model))
        for layer, module in enumerate(layers):
            stack.callback(module.register_forward_hook(watcher(layer), with_kwargs=True).remove)
        for batch in batches:
            wanted = batch.mask
            hidden_states(model, batch.tokens, batch.mask)
            advance(batch.token_count)
    tokens = sum(batch.token_count for batch in batches)
    return {layer: 1 - total / tokens for layer, total in sums.items()}
