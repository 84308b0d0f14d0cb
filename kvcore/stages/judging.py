"""Stage: answers under every allocation, and what a judge makes of them."""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from kvcore.cell import Cell
from kvcore.compression.allocation import Allocation
from kvcore.compression.truncation import truncated
from kvcore.data.encoding import encode_prompts
from kvcore.data.examples import Example
from kvcore.evaluation.generation import Answer, generate_answers, generation_tokens
from kvcore.evaluation.judging.cache import JudgementCache
from kvcore.evaluation.judging.cost import NO_COST, JudgingCost, judging_cost
from kvcore.evaluation.judging.items import anchor_prompts, judged_examples, judged_items, reference_item
from kvcore.evaluation.judging.judge import FAILED, Judge
from kvcore.evaluation.judging.judging import judge_answers
from kvcore.evaluation.judging.local import LocalJudge
from kvcore.evaluation.judging.rubric import Rubric, read_rubric
from kvcore.evaluation.judging.scores import score_table
from kvcore.model.loading import Weights, load_tokenizer, read_config
from kvcore.preparation import Inputs, ModelLoader, context_of, identify, read_parts
from kvcore.progress import StageProgress
from kvcore.schema import NoJudge, OpenAIJudge, SettingError, Settings, TransformersJudge
from kvcore.spectrum.tables import Spectra
from kvcore.stages.allocating import count_allocations

JUDGEMENTS = "judgements"  # folder of replies under the output root, shared by all cells


class Court(NamedTuple):
    """Who judges what.

    Attributes:
        judge: Who judges.
        rubric: How it is asked.
        cache: Where its replies are kept.
        examples: Those whose prompts are answered.
        prompts: (length,) token ids of each prompt.
    """

    judge: Judge
    rubric: Rubric
    cache: JudgementCache
    examples: list[Example]
    prompts: list[Tensor]


class Judged(NamedTuple):
    """What came of it.

    Attributes:
        answers: A row for each point and prompt: example (place in its dataset), text, tokens, ended.
        judgements: See `kvcore.evaluation.judging.judging.judge_answers`; the points are the allocations.
        scores: See `kvcore.evaluation.judging.scores.score_table`, and `asked`, the budget in words.
    """

    answers: pd.DataFrame
    judgements: pd.DataFrame
    scores: pd.DataFrame


def convene(
    cell: Cell, inputs: Inputs, weights: Weights | None, loader: ModelLoader, progress: StageProgress
) -> Court | None:
    """Get everything ready for judging before the long work, with a first judgement to see that the judge is there.

    Args:
        cell: The cell.
        inputs: What is measured.
        weights: Of the judge, if it is a model in this process.
        loader: Loads it.
        progress: Told what happens.

    Returns:
        None where there is no judge.

    Raises:
        SettingError: The judge cannot be used, or the prompts cannot be answered.
    """
    settings = cell.settings.judge
    if isinstance(settings, NoJudge):
        return None
    examples = judged_examples(inputs.evaluation.examples, settings.prompts)
    prompts = _prompts(cell.settings, settings, examples, inputs.tokenizer, inputs.model.config)
    with progress.running("judge", f"calling the judge ({settings.name})"):
        judge = _judge(settings, weights, loader)
        court = Court(
            judge, read_rubric(settings.rubric), JudgementCache(cell.output_root / JUDGEMENTS), examples, prompts
        )
        _make_contact(court, settings, cell.settings.seed)
    return court


def _make_contact(court: Court, settings: OpenAIJudge | TransformersJudge, seed: int) -> None:
    """Have one answer judged, a reference that is judged anyway where there are anchors.

    Raises:
        UserError: The judge cannot be used.
    """
    anchors = anchor_prompts(len(court.examples), settings.anchor_share, seed) or [0]
    first = [reference_item(court.examples, anchors[0])]
    judged = judge_answers(first, court.judge, court.cache, court.rubric, max_missing=1.0)
    reason = judged["missing_reason"][0]
    if isinstance(reason, str) and reason.startswith(FAILED):
        raise SettingError("judge.name", settings.name, f"its first judgement {reason}")


def require_judgements(cell: Cell) -> None:
    """Fail where a finished cell has fewer judgements than the settings now want.

    Raises:
        SettingError: Too many are missing.
    """
    settings, judged = cell.settings.judge, json.loads(cell.record_path.read_text(encoding="utf-8"))["judged"]
    if isinstance(settings, NoJudge) or judged is None:
        return
    missing = sum(judged["missing"].values())
    if missing > settings.max_missing * judged["items"]:
        found = f"{missing} of {judged['items']} judgements are missing in the finished cell {cell.folder}"
        raise SettingError("judge.max_missing", settings.max_missing, f"{found}; remove it to judge again")


def _prompts(
    settings: Settings,
    judge: OpenAIJudge | TransformersJudge,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
) -> list[Tensor]:
    return encode_prompts(
        examples,
        tokenizer,
        judge=judge.name,
        max_new_tokens=judge.max_new_tokens,
        context=context_of(config, settings.model),
        template=settings.model.template,
    )


def estimate_cost(settings: Settings, progress: StageProgress) -> JudgingCost:
    """Return what judging a cell would cost at most; nothing if it is finished, or has no judge.

    Tokens are counted with the tokenizer of the model that answers: the judge's may not be here.

    Raises:
        SettingError: Something the settings point at cannot be used, or the prompts cannot be answered.
    """
    judge = settings.judge
    if isinstance(judge, NoJudge):
        return NO_COST
    cell, sources = identify(settings, progress)
    if cell.is_finished():
        return NO_COST
    tokenizer = load_tokenizer(sources.weights)
    _, evaluation, _ = read_parts(settings, sources, tokenizer)
    examples = judged_examples(evaluation.examples, judge.prompts)
    _prompts(settings, judge, examples, tokenizer, read_config(sources.weights))
    return judging_cost(
        examples,
        tokenizer,
        read_rubric(judge.rubric),
        points=count_allocations(settings.rank_budget),
        max_new_tokens=judge.max_new_tokens,
        max_reply_tokens=judge.max_reply_tokens if isinstance(judge, OpenAIJudge) else 0,
        anchor_share=judge.anchor_share,
        seed=settings.seed,
    )


def _judge(settings: OpenAIJudge | TransformersJudge, weights: Weights | None, loader: ModelLoader) -> Judge:
    if isinstance(settings, TransformersJudge):
        if weights is None:
            raise ValueError("a judge in this process needs its weights")
        model, tokenizer = loader.load(weights, settings.model, role="judge")
        return LocalJudge(
            model,
            tokenizer,
            revision=weights.revision,
            context=context_of(model.config, settings.model),
            batch_tokens=settings.batch_tokens,
        )
    # Imported only now: the openai client takes half a second, and most cells have no judge.
    from kvcore.evaluation.judging.endpoint import EndpointJudge

    return EndpointJudge(
        base_url=settings.base_url,
        model=settings.model,
        key_variable=settings.key_variable,
        structured=settings.structured,
        temperature=settings.temperature,
        max_reply_tokens=settings.max_reply_tokens,
        concurrent_requests=settings.concurrent_requests,
        timeout_seconds=settings.timeout_seconds,
        retry_seconds=settings.retry_seconds,
    )


def judge_allocations(
    cell: Cell,
    inputs: Inputs,
    court: Court,
    spectra: Spectra,
    allocations: Sequence[Allocation],
    progress: StageProgress,
) -> Judged:
    """Have the prompts answered under every allocation, and the answers judged.

    Raises:
        UserError: The judge cannot be used any more, or too many judgements are missing; those that were made are
            kept.
    """
    settings = cell.settings.judge
    if isinstance(settings, NoJudge):
        raise ValueError("there is no judge")
    total = len(allocations) * generation_tokens(court.prompts, settings.max_new_tokens)
    answers: list[list[Answer]] = []
    with progress.running("answers", f"answers of {len(allocations)} allocations", total) as advance:
        for allocation in allocations:
            ranks = allocation.truncating(inputs.geometry.kv_dims)
            with truncated(inputs.geometry, spectra, ranks, point=cell.settings.capture.point):
                answers.append(
                    generate_answers(
                        inputs.model,
                        inputs.tokenizer,
                        court.prompts,
                        max_new_tokens=settings.max_new_tokens,
                        batch_tokens=settings.batch_tokens,
                        advance=advance,
                    )
                )
    items = judged_items(
        court.examples, answers, answers[0], anchor_share=settings.anchor_share, seed=cell.settings.seed
    )
    with progress.running("judge", f"judging {len(items)} answers", len(items), unit="answers") as advance:
        judgements = judge_answers(
            items,
            court.judge,
            court.cache,
            court.rubric,
            max_requests=settings.max_requests if isinstance(settings, OpenAIJudge) else None,
            max_missing=settings.max_missing,
            advance=advance,
        )
    return Judged(_answer_table(inputs, answers), judgements, _scores(judgements, allocations))


def _scores(judgements: pd.DataFrame, allocations: Sequence[Allocation]) -> pd.DataFrame:
    ratios = [
        (
            math.nan if allocation.key_ratio is None else allocation.key_ratio,
            math.nan if allocation.value_ratio is None else allocation.value_ratio,
        )
        for allocation in allocations
    ]
    scores = score_table(judgements, ratios)
    anchors = [f"anchor: {anchor}" for anchor in scores["anchor"].dropna()]
    return scores.assign(asked=[*(allocation.asked for allocation in allocations), *anchors])


def _answer_table(inputs: Inputs, answers: Sequence[Sequence[Answer]]) -> pd.DataFrame:
    numbers = inputs.evaluation.numbers
    return pd.DataFrame(
        [
            {
                "point": point,
                "prompt": prompt,
                "example": numbers[prompt],
                "text": answer.text,
                "tokens": answer.tokens,
                "ended": answer.ended,
            }
            for point, given in enumerate(answers)
            for prompt, answer in enumerate(given)
        ]
    )
