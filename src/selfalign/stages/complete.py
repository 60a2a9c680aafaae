"""Drawing completions: one row for each ask, kept as soon as it is finished."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from selfalign.config import BaseRecipe, Sampling
from selfalign.engines import Engine, GenerationRequest, open_engine
from selfalign.records import Completion, Messages
from selfalign.runs import Artifact, Run, Work


@dataclass(frozen=True)
class Ask:
    """One completion to draw."""

    completion_id: str
    prompt_id: str
    messages: Messages
    sample: int
    seed: int
    temperature: float | None = None
    """In place of the sampling's."""


def complete(
    run: Run[BaseRecipe], work: Work, model: Artifact, asks: Iterable[Ask], output: str, sampling: Sampling
) -> None:
    """Draw a completion for each ask, of a list or `Repeatable`, and write them in the order of the asks."""
    engine: list[Engine] = []  # opened with the first shard: a stage with all rows kept needs none

    def shard_of_completions(shard: Sequence[Ask]) -> Iterator[Completion]:
        if not engine:
            engine.append(open_engine(run.recipe.engine, run.recipe.policy, model.path))
        asked = {ask.completion_id: ask for ask in shard}
        for temperature, requests in _by_temperature(shard).items():
            own = {} if temperature is None else {"temperature": temperature}
            for reply in engine[0].generate(requests, sampling.model_copy(update=own)):
                ask = asked[reply.key]
                yield Completion(
                    completion_id=ask.completion_id,
                    prompt_id=ask.prompt_id,
                    sample=ask.sample,
                    text=reply.text,
                    finish_reason=reply.finish_reason,
                    num_tokens=reply.num_tokens,
                )

    work.map_rows(
        output,
        asks,
        shard_of_completions,
        key=lambda ask: ask.completion_id,
        record=Completion,
        row_key=lambda completion: completion.completion_id,
    )


def _by_temperature(asks: Sequence[Ask]) -> dict[float | None, list[GenerationRequest]]:
    requests: dict[float | None, list[GenerationRequest]] = {}
    for ask in asks:
        request = GenerationRequest(ask.completion_id, ask.messages, ask.seed)
        requests.setdefault(ask.temperature, []).append(request)
    return requests
