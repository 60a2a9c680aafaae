"""What all rows made elsewhere go through when they enter a run."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from selfalign.config import BaseRecipe, Policy
from selfalign.eft import normalised
from selfalign.records import Messages, RankedPrompt
from selfalign.runs import Artifact, Run, Stage
from selfalign.runs.files import hash_file, read_rows
from selfalign.stages.common import about_tokens


def content_or_absent(location: str) -> str:
    """Return the hash of a file, so that other content makes a stage stale; its name while it is missing."""
    return hash_file(Path(location)) if Path(location).is_file() else location


def foreseen(run: Run[BaseRecipe], stage: Stage, texts: Callable[[], Iterable[str]]) -> Stage:
    """Return the stage with the rows and tokens that its file holds, at most.

    A plan reads the file, and a run begins with a plan: so bad rows show before anything is trained.

    Args:
        run: That plans, or not.
        stage: That reads the file.
        texts: Reads the text of each row.
    """
    if not run.planning or run.inspect(stage).state == "done":
        return stage
    found = list(texts())
    return replace(stage, expected={"rows": len(found), "tokens": about_tokens(found)})


def not_held_out(held_out: Artifact, dropped: Counter[str]) -> Callable[[Messages], bool]:
    """Return what says whether judges are measured on other prompts only, and counts the prompts held out."""
    asked = {normalised(prompt.messages) for prompt in read_rows(held_out.path, RankedPrompt)}

    def usable(messages: Messages) -> bool:
        if normalised(messages) not in asked:
            return True
        dropped["held_out"] += 1
        return False

    return usable


def token_counter(policy: Policy, model: Artifact) -> Callable[[str], int]:
    """Return what counts the tokens of a completion, without the end of its turn."""
    from selfalign.models.load import load_chat

    chat = load_chat(model.path, policy)
    return lambda text: len(chat.completion_ids(text)) - len(chat.end_of_turn)
