"""A deterministic engine that answers by rule, for tests and for trying a recipe without a model.

A script is a TOML file with a list of `[[rules]]`. The first rule whose `match`, a regular expression,
is found in the last message answers with its `reply`, a jinja2 template that may use `words(n)` (n words
drawn from the script's `vocabulary`), `number(low, high)`, `choice(list)` and `prompt` (the last
message). All draws come from the request's seed.
"""

import random
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from selfalign.config import Sampling
from selfalign.engines.protocol import Choice, ChoiceRequest, Generation, GenerationRequest
from selfalign.errors import RecipeError


@dataclass(frozen=True)
class _Rule:
    match: re.Pattern[str]
    reply: jinja2.Template


class ScriptedEngine:
    """Answers by the rules of a script; a token is a word."""

    def __init__(self, script: str | None) -> None:
        """Read the script, or the shipped one.

        Raises:
            RecipeError: The script is missing or broken, or has no rule that always matches.
        """
        self._source = source = (
            Path(script) if script else resources.files("selfalign") / "prompts" / "scripts" / "default.toml"
        )
        environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined)
        try:
            content = tomllib.loads(source.read_text(encoding="utf-8"))
            self._vocabulary: list[str] = content["vocabulary"].split()
            self._rules = [
                _Rule(re.compile(rule["match"]), environment.from_string(rule["reply"]))
                for rule in content["rules"]
            ]
        except FileNotFoundError:
            raise RecipeError(f"engine.script: {source}: no such file") from None
        except (KeyError, TypeError, AttributeError) as error:
            needed = "a text `vocabulary` and `[[rules]]` with `match` and `reply`"
            raise RecipeError(f"engine.script: {source}: it has to have {needed} ({error})") from None
        except (ValueError, re.error, jinja2.TemplateSyntaxError) as error:
            raise RecipeError(f"engine.script: {source}: {error}") from None
        if not self._rules or self._rules[-1].match.pattern:
            raise RecipeError(f'engine.script: {source}: the last rule must match everything (match = "")')

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> Iterator[Generation]:
        """Yield a generation for each request, in order; see `Engine`."""
        for request in requests:
            reply = self._reply(request)
            words = re.findall(r"\S+\s*", reply)
            if len(words) > sampling.max_new_tokens:
                text = "".join(words[: sampling.max_new_tokens])
                yield Generation(request.key, text, "length", sampling.max_new_tokens)
            else:
                yield Generation(request.key, reply, "stop", len(words))

    def choose(self, requests: Sequence[ChoiceRequest]) -> Iterator[Choice]:
        """Yield probabilities drawn from the text of each request, in order; see `Engine`."""
        for request in requests:
            last = request.messages[-1].content
            draw = random.Random(last + request.reply_start)  # noqa: S311
            drawn = [draw.random() for _ in request.choices]
            yield Choice(request.key, tuple(weight / sum(drawn) for weight in drawn))

    def _reply(self, request: GenerationRequest) -> str:
        last = request.messages[-1].content
        draw = random.Random(request.seed)  # noqa: S311 -- reproducible text, no secret
        rule = next(rule for rule in self._rules if rule.match.search(last))
        try:
            return rule.reply.render(
                prompt=last,
                words=lambda n: " ".join(draw.choice(self._vocabulary) for _ in range(n)),
                number=draw.randint,
                choice=draw.choice,
            )
        except jinja2.TemplateError as error:
            raise RecipeError(f"engine.script: {self._source}: {error}") from None
