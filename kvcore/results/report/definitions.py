"""What each number on the page is called, its unit, and what it means."""

from typing import NamedTuple


class Definition(NamedTuple):
    """One quantity.

    Attributes:
        label: How tables and axes call it.
        unit: Its unit or range; empty where it has none.
        meaning: One or two sentences.
    """

    label: str
    unit: str
    meaning: str


_TRUNCATION = "Keys and values are projected onto their top right singular vectors in the forward pass that uses them."

DEFINITIONS: dict[str, Definition] = {
    "effective_rank": Definition(
        "Effective rank",
        "dimensions, 1 to kv_dim",
        "exp(-sum p ln p) with p = sigma / sum(sigma), sigma the singular "
        "values of a layer's keys or values over the whole dataset (Roy & Vetterli 2007).",
    ),
    "ner": Definition(
        "NER",
        "0 to 1",
        "Normalized effective rank: the effective rank over kv_dim. Low: compressible. For a model, the "
        "plain mean over its layers, keys and values apart.",
    ),
    "ner_key": Definition("NER, keys", "0 to 1", "NER of keys, mean over layers. Low: compressible."),
    "ner_value": Definition("NER, values", "0 to 1", "NER of values, mean over layers. Low: compressible."),
    "ner_energy": Definition("NER, energy", "0 to 1", "The same as NER with p = sigma² / sum(sigma²)."),
    "stable_rank": Definition("Stable rank", "dimensions", "Sum of squared singular values over the largest square."),
    "kv_dim": Definition("kv_dim", "dimensions", "KV heads x head_dim: columns of a layer's keys or values."),
    "rank_at_energy": Definition(
        "Rank at energy", "dimensions", "How many singular values hold that share of the sum of squares."
    ),
    "tokens": Definition("Tokens", "tokens", "Real tokens, never padding, that the spectra were computed from."),
    "tokens_per_dim": Definition("Tokens per dimension", "tokens", "Tokens over the largest kv_dim."),
    "converged": Definition(
        "Converged",
        "",
        "NER depends on the number of tokens until it is far above kv_dim. Below 20 tokens per dimension "
        "it is marked with a star: it may still rise.",
    ),
    "perplexity": Definition(
        "Perplexity",
        "",
        "exp(sum NLL / tokens) of the untruncated model on examples kept from the spectra, or of the "
        "truncated one where a point is named. Each example on its own, no padding counted.",
    ),
    "bits_per_byte": Definition(
        "Bits per byte", "bits", "NLL in bits over the UTF-8 bytes of the targets, so that tokenizers compare."
    ),
    "nd_ppl": Definition(
        "ND-PPL",
        "",
        "Normalized degradation of perplexity: (PPL - PPL untruncated) / PPL untruncated. The name is from "
        "the seed of this project, the formula is ours.",
    ),
    "grid_mean_nd_ppl": Definition(
        "Mean ND-PPL",
        "",
        "Mean of ND-PPL over the grid of key and value ratios without (1, 1); 95 % bootstrap interval over examples.",
    ),
    "delta_nll": Definition(
        "Delta NLL", "nats per token", "ln(PPL / PPL untruncated): what truncation costs in log-likelihood."
    ),
    "rank_ratio": Definition(
        "Rank ratio", "0 to 1", "Rank kept over kv_dim, rounded to the nearest rank and at least 1. " + _TRUNCATION
    ),
    "budget": Definition(
        "Budget", "0 to 1", "Share of the cache's numbers that a rank budget may keep, over all layers. " + _TRUNCATION
    ),
    "share": Definition(
        "Share of uniform", "", "Delta NLL over that of the uniform rank budget at the same budget. Below 1: better."
    ),
    "gpt_score": Definition(
        "GPT-score",
        "1 to 10",
        "Mean rating, by a judge model, of answers generated under truncation against the "
        "reference. Missing judgements are counted, never scored 0; 95 % bootstrap interval over prompts.",
    ),
    "grid_mean_score": Definition(
        "Mean GPT-score",
        "1 to 10",
        "Mean GPT-score over the grid of key and value ratios without (1, 1), with its 95 % "
        "bootstrap interval over prompts.",
    ),
    "gates": Definition(
        "Gates",
        "",
        "Checks made in every run: tokens counted exactly, full rank reproduces the model, the predicted "
        "tail energy is the measured one, perplexity moves. A cell that failed one is untrusted.",
    ),
    "transfer": Definition(
        "Transfer", "nats per token", "Delta NLL on one dataset under the bases and ranks computed from another."
    ),
    "published": Definition(
        "Published NER", "0 to 1", "Values of the KV-CoRE paper, arXiv 2602.05929, in this project's names."
    ),
    "difference": Definition("Difference", "", "Measured minus published NER."),
    "state": Definition(
        "State",
        "",
        "done; untrusted: a gate failed and was let pass; failed: an error ended it; interrupted: begun, "
        "and nobody is at it; running; pending: not begun.",
    ),
}
