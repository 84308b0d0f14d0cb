"""The two halves of a causal language model: its decoder and its output head."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

_LOGITS_AT_ONCE = 1 << 24


@contextmanager
def inference(model: PreTrainedModel) -> Iterator[None]:
    """Run a block without gradients and with the model in evaluation mode, restored afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def hidden_states(model: PreTrainedModel, tokens: Tensor, mask: Tensor) -> Tensor:
    """Run the decoder, without output head and without a cache.

    Args:
        model: A causal language model, or its base model alone.
        tokens: (batch, length) token ids, right-padded.
        mask: (batch, length) bool, true for real tokens.

    Returns:
        (batch, length, hidden_size).
    """
    device = model.device
    output = model.base_model(
        input_ids=tokens.to(device), attention_mask=mask.to(device=device, dtype=torch.long), use_cache=False
    )
    states: Tensor = output.last_hidden_state
    return states


def positions_at_once(model: PreTrainedModel) -> int:
    """Return for how many positions logits may exist together: 64 MB of them in float32, whatever the vocabulary."""
    return max(1, _LOGITS_AT_ONCE // int(model.config.vocab_size))


def logits(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Apply the output head.

    Args:
        model: A causal language model.
        states: (positions, hidden_size), from `hidden_states`.

    Returns:
        (positions, vocabulary) float32.
    """
    scores: Tensor = model.get_output_embeddings()(states).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return scores if cap is None else torch.tanh(scores / cap) * cap
