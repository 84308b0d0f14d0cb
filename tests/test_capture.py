"""Capture: which rows, in which order, and what happens to the model."""

import hand_written
import pytest
import torch
from conftest import TEXTS
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from kvcore.capture import capture
from kvcore.data.batches import Batch, make_batches
from kvcore.data.encoding import encode
from kvcore.data.examples import Example
from kvcore.model.geometry import LayerKind, discover


@pytest.fixture
def batch(tokenizer: PreTrainedTokenizerBase) -> Batch:
    (batch,) = make_batches(encode([Example(text) for text in TEXTS], tokenizer), batch_tokens=100_000)
    assert not batch.mask.all()
    return batch


def test_rows_are_those_of_the_real_tokens_in_order(tiny: LlamaForCausalLM, batch: Batch) -> None:
    seen: dict[LayerKind, Tensor] = {}
    with capture(tiny, discover(tiny), seen.__setitem__) as run:
        run(batch)
    assert list(seen) == [(layer, kind) for layer in range(3) for kind in ("key", "value")]
    passes = [hand_written.run(tiny, row[mask]) for row, mask in zip(batch.tokens, batch.mask, strict=True)]
    for layer in range(3):
        keys = torch.cat([done.keys["projection"][layer] for done in passes])
        values = torch.cat([done.values[layer] for done in passes])
        assert torch.allclose(seen[LayerKind(layer, "key")].double(), keys, atol=1e-4)
        assert torch.allclose(seen[LayerKind(layer, "value")].double(), values, atol=1e-4)


def test_what_follows_the_last_projection_is_never_run(tiny: LlamaForCausalLM, batch: Batch) -> None:
    ran = []
    watched = {
        "head": tiny.lm_head,
        "norm": tiny.model.norm,
        "last attention": tiny.model.layers[-1].self_attn.o_proj,
        "first attention": tiny.model.layers[0].self_attn.o_proj,
    }
    for name, module in watched.items():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    with capture(tiny, discover(tiny), lambda *_: None) as run:
        run(batch)
    assert ran == ["first attention"]


def test_hooks_are_gone_after_an_error_in_the_consumer(tiny: LlamaForCausalLM, batch: Batch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), capture(tiny, discover(tiny), fail) as run:
        run(batch)
    assert not any(module._forward_hooks for module in tiny.modules())
    assert tiny(batch.tokens).logits.requires_grad  # neither stopped early nor without gradients


def test_running_the_model_by_hand_inside_is_refused(tiny: LlamaForCausalLM, batch: Batch) -> None:
    with (
        capture(tiny, discover(tiny), lambda *_: None),
        pytest.raises(RuntimeError, match="something else than the yielded function"),
    ):
        tiny(batch.tokens)
