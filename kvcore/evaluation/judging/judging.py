"""Judging a set of items: what is cached is read, the rest is asked once, and every gap is counted."""

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from kvcore.data.batches import Advance, unobserved
from kvcore.evaluation.judging.cache import JudgementCache
from kvcore.evaluation.judging.items import JudgedItem
from kvcore.evaluation.judging.judge import Judge, Reply
from kvcore.evaluation.judging.rubric import LOWEST, Rubric
from kvcore.schema import SettingError

# The rubric's own rule for it, so that nobody needs to be asked.
EMPTY_SCORE = float(LOWEST)


def judge_answers(
    items: Sequence[JudgedItem],
    judge: Judge,
    cache: JudgementCache,
    rubric: Rubric,
    *,
    max_requests: int | None = None,
    max_missing: float,
    advance: Advance = unobserved,
) -> pd.DataFrame:
    """Have items judged, those with the same question, reference and answer once.

    An empty answer has the lowest score without being asked about. A reply is in the cache as soon as it is
    there, whatever happens after.

    Args:
        items: What is judged, in the order in which the judge sees it.
        judge: Who judges.
        cache: Where replies are kept.
        rubric: How the judge is asked.
        max_requests: Most prompts to send, of those that are not cached; retries do not count. None: no limit.
        max_missing: Largest share of the items that may be without a score.
        advance: Told the number of items that are judged, as they are; all items in the end.

    Returns:
        A row for each item, by anchor, point and prompt. Columns point (-1: an anchor), anchor (missing,
        `untruncated` or `reference`), prompt, score (1 to 10 or NaN), missing_reason (missing, `unparsable`,
        `refused` or `failed: ...`), empty, asked (false: empty, so that nobody was), cached, answer_tokens
        (missing for a reference), ended, prompt_tokens and reply_tokens (as the judge counts).

    Raises:
        UserError: The judge cannot be used, or more would be asked or is missing than allowed.
    """
    prompts: dict[str, list[JudgedItem]] = {}
    for item in items:
        if not item.answer.empty:
            prompts.setdefault(rubric.prompt(item.question, item.reference, item.answer.text), []).append(item)
    identity = judge.identity()
    keys = {prompt: cache.key(rubric, identity, prompt) for prompt in prompts}
    cached = {prompt: reply for prompt, key in keys.items() if (reply := cache.find(key)) is not None}
    wanted = [prompt for prompt in prompts if prompt not in cached]
    if max_requests is not None and len(wanted) > max_requests:
        needed = f"{len(wanted)} requests are needed, beside {len(cached)} that are cached"
        raise SettingError("judge.max_requests", max_requests, needed)
    advance(len(items) - sum(len(prompts[prompt]) for prompt in wanted))
    replies: dict[str, Reply] = dict(cached)

    def receive(index: int, reply: Reply) -> None:
        cache.keep(keys[wanted[index]], reply)
        replies[wanted[index]] = reply
        advance(len(prompts[wanted[index]]))

    if wanted:
        judge.ask(wanted, receive)
    judged = _table(prompts, replies, set(cached), [item for item in items if item.answer.empty])
    _require_few_missing(judged, max_missing, cache)
    return judged


def _table(
    prompts: dict[str, list[JudgedItem]], replies: dict[str, Reply], cached: set[str], empty: Sequence[JudgedItem]
) -> pd.DataFrame:
    rows = [_row(item, Reply(EMPTY_SCORE), asked=False, cached=False) for item in empty]
    for prompt, items in prompts.items():
        rows += [_row(item, replies[prompt], asked=True, cached=prompt in cached) for item in items]
    table = pd.DataFrame(rows).sort_values(["anchor", "point", "prompt"], na_position="first", ignore_index=True)
    types = {"anchor": "str", "missing_reason": "str", "score": "float64", "answer_tokens": "Int64"}
    return table.astype(types | {"prompt_tokens": "Int64", "reply_tokens": "Int64"})


def _row(item: JudgedItem, reply: Reply, *, asked: bool, cached: bool) -> dict[str, object]:
    return {
        "point": item.point,
        "anchor": item.anchor,
        "prompt": item.prompt,
        "score": reply.score,
        "missing_reason": reply.missing_reason,
        "empty": item.answer.empty,
        "asked": asked,
        "cached": cached,
        "answer_tokens": None if item.anchor == "reference" else item.answer.tokens,
        "ended": item.answer.ended,
        "prompt_tokens": reply.prompt_tokens,
        "reply_tokens": reply.reply_tokens,
    }


def _require_few_missing(judged: pd.DataFrame, max_missing: float, cache: JudgementCache) -> None:
    missing = judged["score"].isna()
    if missing.mean() > max_missing:
        reason, times = Counter(judged.loc[missing, "missing_reason"]).most_common(1)[0]
        found = f"{missing.sum()} of {len(judged)} judgements are missing, {times} of them: {reason}"
        raise SettingError("judge.max_missing", max_missing, f"{found}; the others are kept in {cache.folder}")
