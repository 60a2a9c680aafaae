"""Blind votes: which two answers come next, on which side each stands, and writing down the verdict."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from selfalign.errors import RunError
from selfalign.evaluation.votes import Side, Vote, answer_hash
from selfalign.records import Completion, Messages, content_id
from selfalign.report.votes import VOTES, Answers, held_out_answers, held_out_prompts, read_votes
from selfalign.seeds import derive_seed
from selfalign.ui.sources import is_inside

Choice = Literal["left", "right", "tie"]


@dataclass(frozen=True)
class Material:
    """What votes are about."""

    run: str
    prompts: Mapping[str, Messages]
    answers: Answers
    votes: Sequence[Vote]
    seed: int


@dataclass(frozen=True)
class Ballot:
    """Two answers to one prompt; who gave which is not for the page before the vote."""

    prompt_id: str
    messages: Messages
    one: Completion
    other: Completion
    left: Side

    @property
    def sides(self) -> tuple[Completion, Completion]:
        """Return the answers as they are shown, left and right."""
        return (self.one, self.other) if self.left == "one" else (self.other, self.one)


@dataclass(frozen=True)
class Poll:
    """The votes on two models."""

    one: str
    other: str
    ballots: tuple[Ballot, ...]
    """Not voted on yet, in an order of their own."""
    given: int


def pairs_of_models(answers: Answers) -> list[tuple[str, str]]:
    """Return every two models, the later first; those next to each other come first."""
    names = list(answers)
    steps = range(1, len(names))
    return [(names[place + step], names[place]) for step in steps for place in range(len(names) - step)]


def material_of(root: Path, seed: int) -> Material:
    """Read what there is to vote on, and the votes so far.

    Raises:
        DataError: A row is damaged.
    """
    return Material(root.name, held_out_prompts(root), held_out_answers(root), read_votes(root), seed)


def poll_of(material: Material, one: str, other: str) -> Poll:
    """Return what is left to vote on between two models.

    Sides and order come from the seed and the prompt alone, so that they are the same whenever the page is
    loaded. Only prompts that both models answered are voted on.

    Raises:
        RunError: The run has no answers of such models, in this order.
    """
    answers = material.answers
    if (one, other) not in pairs_of_models(answers):
        raise RunError(f"{material.run}: no answers of {one} and {other} to compare, the later model first")
    voted = {
        (vote.prompt_id, vote.one_answer, vote.other_answer)
        for vote in material.votes
        if (vote.one, vote.other) == (one, other)
    }
    ballots, given = [], 0
    for prompt_id, messages in material.prompts.items():
        own, its = answers[one].get(prompt_id), answers[other].get(prompt_id)
        if own is None or its is None or own.text is None or its.text is None:
            continue
        if (prompt_id, answer_hash(own), answer_hash(its)) in voted:
            given += 1
            continue
        left: Side = (
            "one" if derive_seed(material.seed, "vote", "side", one, other, prompt_id) % 2 else "other"
        )
        ballots.append(Ballot(prompt_id, messages, own, its, left))
    ballots.sort(key=lambda ballot: derive_seed(material.seed, "vote", "order", ballot.prompt_id))
    return Poll(one, other, tuple(ballots), given)


def vote(root: Path, poll: Poll, prompt_id: str, choice: Choice) -> Vote:
    """Write down a vote and return it.

    Raises:
        RunError: There is nothing to vote on under this prompt, or no more.
    """
    ballot = next((ballot for ballot in poll.ballots if ballot.prompt_id == prompt_id), None)
    if ballot is None:
        raise RunError("this prompt has been voted on, or its answers have changed; go on to the next one")
    right: Side = "other" if ballot.left == "one" else "one"
    moment = datetime.now(UTC).isoformat(timespec="milliseconds")
    given = Vote(
        vote_id=content_id(poll.one, poll.other, prompt_id, moment),
        prompt_id=prompt_id,
        one=poll.one,
        other=poll.other,
        one_answer=answer_hash(ballot.one),
        other_answer=answer_hash(ballot.other),
        left=ballot.left,
        preferred=None if choice == "tie" else ballot.left if choice == "left" else right,
        voted=moment,
    )
    if not is_inside(root / VOTES, root):
        raise RunError(f"{root / VOTES}: a link that leads out of the run; remove it")
    _append(root / VOTES, given.model_dump_json().encode())
    return given


def names_of_sides(given: Vote) -> tuple[str, str]:
    """Return whose answers stood left and right."""
    return (given.one, given.other) if given.left == "one" else (given.other, given.one)


def _append(path: Path, line: bytes) -> None:
    """Add a line in one write, which another process's can't come between."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        whole = (b"\n" if torn else b"") + line + b"\n"
        if os.write(descriptor, whole) != len(whole):
            os.ftruncate(descriptor, size)
            raise RunError(f"{path}: no room for a vote; make room, then vote again")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
