"""A judge behind any endpoint that speaks the protocol of OpenAI's chat completions."""

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Literal

import httpx2
from openai import Omit, OpenAI, OpenAIError
from openai.types.chat import ChatCompletion, ChatCompletionMessage

from kvcore.evaluation.judging.faults import MALFORMED, Fault, fault_of, without_key
from kvcore.evaluation.judging.judge import REFUSED, UNPARSABLE, Judge, Receive, Reply, failure
from kvcore.evaluation.judging.retrying import Backoff
from kvcore.evaluation.judging.rubric import REPLY_SCHEMA, parse_score
from kvcore.schema import SettingError, first_line

# An endpoint that has never answered is more likely misspelt than restarting.
_FIRST_CONTACT_SECONDS = 5.0
# So many requests in a row whose retries are all used up: the endpoint is down, and the others need not wait for it.
_GIVE_UP_AFTER = 10
_KEPT_CHARACTERS = 2000

Structured = Literal["auto", "always", "never"]


class EndpointJudge(Judge):
    """Asks an endpoint, several requests at a time, each again while its fault may pass."""

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        key_variable: str,
        structured: Structured,
        temperature: float | None,
        max_reply_tokens: int,
        concurrent_requests: int,
        timeout_seconds: float,
        retry_seconds: float,
    ) -> None:
        """Read the key; nothing is sent.

        Args:
            base_url: Address of the endpoint, up to where `/chat/completions` follows.
            model: What the endpoint calls the model.
            key_variable: Environment variable that holds the key; empty: none is sent.
            structured: `auto`: ask for structured output, and do without where the endpoint refuses it with a 400
                or 422; `always`; `never`.
            temperature: Temperature of the sampling; None: not sent, for models that refuse it.
            max_reply_tokens: Longest reply.
            concurrent_requests: Requests under way at a time.
            timeout_seconds: Longest wait for each attempt.
            retry_seconds: Time for further attempts at a request, from its first failure.

        Raises:
            SettingError: The address is none, or the variable holds no key.
        """
        self._base_url = _checked_address(base_url)
        self._model = model
        self._key_variable = key_variable
        self._key = _read_key(key_variable)
        self._structured = structured
        self._temperature = temperature
        self._max_reply_tokens = max_reply_tokens
        self._concurrent_requests = concurrent_requests
        self._timeout_seconds = timeout_seconds
        self._retry_seconds = retry_seconds
        # What is learned about the endpoint.
        self._sends_schema = structured != "never"
        self._schema_accepted = False
        self._limit = "max_tokens"
        self._reached = self._answered = False
        self._failures_in_a_row = 0
        self._lock = threading.Lock()
        self._receiving = threading.Lock()
        self._stopped = threading.Event()

    def identity(self) -> dict[str, Any]:
        """Return endpoint, model, sampling and whether structured output is asked for."""
        return {
            "name": "openai",
            "base_url": self._base_url,
            "model": self._model,
            "structured": self._structured,
            "temperature": self._temperature,
            "max_reply_tokens": self._max_reply_tokens,
        }

    def ask(self, prompts: Sequence[str], receive: Receive) -> None:
        """Ask the first prompt alone, which tells whether the endpoint can be used and how, then the others.

        Raises:
            SettingError: Key, model or endpoint cannot be used, or the endpoint went down. Requests under way
                are waited for, and their replies received.
        """
        self._stopped.clear()
        self._failures_in_a_row = 0

        def ask_one(client: OpenAI, index: int) -> None:
            if self._stopped.is_set():
                return
            try:
                reply = self._reply(client, prompts[index])
                with self._receiving:
                    receive(index, reply)
            except BaseException:
                self._stopped.set()
                raise

        with self._client() as client, ThreadPoolExecutor(self._concurrent_requests) as pool:
            ask_one(client, 0)
            futures = [pool.submit(ask_one, client, index) for index in range(1, len(prompts))]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._stopped.set()
                for future in futures:
                    future.cancel()
                raise

    def _client(self) -> OpenAI:
        return OpenAI(
            base_url=self._base_url,
            api_key=self._key or "none",
            timeout=self._timeout_seconds,
            max_retries=0,
        )

    def _reply(self, client: OpenAI, prompt: str) -> Reply:
        """Ask until there is a reply, or none is to be had."""
        backoff = Backoff(self._retry_seconds, self._stopped)
        while True:
            outcome = self._negotiate(client, prompt)
            if isinstance(outcome, Reply):
                self._answered, self._failures_in_a_row = True, 0
                return outcome
            self._reached = self._reached or outcome.kind != "unreachable"
            if not outcome.passes:
                self._require_usable(outcome)
                return failure(outcome.reason)
            if not backoff.wait(outcome.wish, budget_seconds=None if self._reached else _FIRST_CONTACT_SECONDS):
                break
        if not self._stopped.is_set():
            self._require_up(outcome)
        return failure(outcome.reason)

    def _negotiate(self, client: OpenAI, prompt: str) -> Reply | Fault:
        """Ask once, leaving out or renaming what the endpoint does not know."""
        schema, limit = self._sends_schema, self._limit
        outcome = self._attempt(client, prompt, schema=schema, limit=limit)
        if _is_refused(outcome, "max_completion_tokens") and limit == "max_tokens":
            limit = self._limit = "max_completion_tokens"
            outcome = self._attempt(client, prompt, schema=schema, limit=limit)
        if not isinstance(outcome, Fault):
            self._schema_accepted = self._schema_accepted or schema
        elif _is_refused(outcome) and schema and self._structured == "auto":
            without = self._attempt(client, prompt, schema=False, limit=limit)
            if isinstance(without, Reply):
                # One prompt refused among many that were not says nothing about the others.
                self._sends_schema = self._schema_accepted
                return without
        return outcome

    def _attempt(self, client: OpenAI, prompt: str, *, schema: bool, limit: str) -> Reply | Fault:
        """Send one request."""
        options: dict[str, Any] = {limit: self._max_reply_tokens}
        if self._temperature is not None:
            options["temperature"] = self._temperature
        if not self._key:
            options["extra_headers"] = {"Authorization": Omit()}
        if schema:
            named = {"name": "score", "strict": True, "schema": REPLY_SCHEMA}
            options["response_format"] = {"type": "json_schema", "json_schema": named}
        # Nothing is raised inside `except`: an error must not carry the client's, which may quote the key.
        try:
            completion = client.chat.completions.create(
                model=self._model, messages=[{"role": "user", "content": prompt}], **options
            )
        except (OpenAIError, ValueError) as error:
            return fault_of(error, self._key)
        return _read(completion, self._key)

    def _require_usable(self, fault: Fault) -> None:
        """Raise where every other request would fail in the same way."""
        if fault.kind == "key" and not (self._answered and "answers 403" in fault.reason):
            advice = "" if self._key_variable else "; it names the environment variable that holds the key"
            raise SettingError("judge.key_variable", self._key_variable, fault.reason + advice)
        if fault.kind == "model" or (not self._answered and _is_refused(fault, self._model)):
            advice = "no such model there, or judge.base_url does not end as it should (often /v1)"
            raise SettingError("judge.model", self._model, f"{fault.reason}: {advice}")
        if _is_refused(fault, "temperature") and self._temperature is not None:
            raise SettingError("judge.temperature", self._temperature, f"{fault.reason}; null: it is not sent")
        if self._structured == "always" and (_is_refused(fault, "response_format") or _is_refused(fault, "schema")):
            raise SettingError("judge.structured", self._structured, f"{fault.reason}; allowed: auto, never")

    def _require_up(self, fault: Fault) -> None:
        """Raise where the endpoint was never reached, or has failed too often in a row."""
        if not self._reached:
            raise SettingError("judge.base_url", self._base_url, fault.reason)
        with self._lock:
            self._failures_in_a_row += 1
            failures = self._failures_in_a_row
        if failures >= _GIVE_UP_AFTER:
            found = f"{failures} requests in a row failed, each for judge.retry_seconds; the last: {fault.reason}"
            raise SettingError("judge.base_url", self._base_url, found)


def _checked_address(address: str) -> str:
    try:
        httpx2.URL(address)
    except httpx2.InvalidURL as error:
        raise SettingError("judge.base_url", address, first_line(error)) from error
    return address.rstrip("/")


def _read_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip() if variable else ""
    if variable and not key:
        advice = "for an endpoint that wants no key: judge.key_variable=''"
        raise SettingError("judge.key_variable", variable, f"this environment variable is not set; {advice}")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise SettingError("judge.key_variable", variable, "what this environment variable holds cannot be a key")
    return key


def _is_refused(outcome: Reply | Fault, word: str = "") -> bool:
    return isinstance(outcome, Fault) and outcome.kind == "refused request" and word in outcome.reason


def _read(completion: object, key: str) -> Reply | Fault:
    """Return what an answer says, whatever it really is: the client checks little."""
    choices: Any = completion.choices if isinstance(completion, ChatCompletion) else None
    message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
    if not isinstance(completion, ChatCompletion) or not isinstance(message, ChatCompletionMessage):
        return MALFORMED
    content: object = message.content
    text = without_key(content, key)[:_KEPT_CHARACTERS] if isinstance(content, str) else ""
    counts = [
        count if type(count := getattr(completion.usage, f"{name}_tokens", None)) is int else None
        for name in ("prompt", "completion")
    ]
    if message.refusal or choices[0].finish_reason == "content_filter":
        return Reply(None, REFUSED, text, *counts)
    score = parse_score(content) if isinstance(content, str) else None
    return Reply(score, None if score is not None else UNPARSABLE, text, *counts)
