"""One training as plain values, so that it can be done here or by several processes."""

from pathlib import Path
from typing import Any, Literal

from selfalign.config import DPO, Policy, Tracker, Train
from selfalign.errors import NothingToTrainError
from selfalign.records import PreferencePair, RankingExample, Record, SFTExample
from selfalign.runs import Work
from selfalign.runs.files import read_rows
from selfalign.training.dpo import ReferenceLogps, dpo_objective, tokenize_pairs
from selfalign.training.group import Group
from selfalign.training.ranking import RankingTask, ranking_objective, tokenize_rankings
from selfalign.training.session import TrainingSession
from selfalign.training.sft import sft_objective, tokenize_examples
from selfalign.training.tracking import tracking
from selfalign.training.trainer import Objective


class TrainingJob(Record):
    """What is trained on what, and how."""

    start: Path
    """Model directory to start from."""
    policy: Policy
    settings: Train
    dpo: DPO | None = None
    """The preference loss, for pairs."""
    ranking: RankingTask | None = None
    """What a judge chooses from, for rankings. Without either it is supervised fine-tuning on examples."""
    data: tuple[Path, ...]
    """Files of examples; one file of pairs or of rankings."""
    reference: Path | None = None
    """Reference log-probabilities of the pairs."""
    learning_rate: float
    """Highest rate."""
    seed: int
    report_to: tuple[Tracker, ...] = ()

    @property
    def kind(self) -> Literal["examples", "pairs", "rankings"]:
        """Return what it is trained on."""
        return "rankings" if self.ranking is not None else "examples" if self.dpo is None else "pairs"


def do(job: TrainingJob, work: Work, group: Group) -> dict[str, Any]:
    """Train, write `model/` and `training.jsonl`, and return the figures of the stage.

    Raises:
        NothingToTrainError: No example fits into the length limit.
        TrainingError: A loss or gradient is not finite, or memory runs out.
    """
    with TrainingSession(job.start, job.policy, job.settings, group) as session:
        items, too_long, objective = _prepared(job, session)
        length = session.max_length
        units = "ranked replies" if job.kind == "rankings" else job.kind
        if not items:
            raise NothingToTrainError(
                f"{work.stage}: none of {too_long} {units} fits into {length} tokens; raise max_length of "
                "this training"
            )
        if too_long:
            work.warn(f"{too_long} {units} longer than {length} tokens are skipped")
        told = job.report_to if group.rank == 0 else ()
        settings = job.settings.model_dump() | {"learning_rate": job.learning_rate, "seed": job.seed}
        with tracking(told, work.stage, work.directory.parent, settings) as report:
            figures = session.train(work, items, objective, job.learning_rate, job.seed, report)
    return {job.kind: len(items), "too_long": too_long, **figures}


def _prepared(job: TrainingJob, session: TrainingSession) -> tuple[list[Any], int, Objective[Any]]:
    """Return the items that fit, how many examples, pairs or ranked replies do not, and the objective."""
    if job.ranking is not None:
        rankings = (row for path in job.data for row in read_rows(path, RankingExample))
        objective = ranking_objective(session.chat, job.ranking)
        return *tokenize_rankings(rankings, session.chat, job.ranking, session.max_length), objective
    if job.dpo is None:
        examples = (row for path in job.data for row in read_rows(path, SFTExample))
        return *tokenize_examples(examples, session.chat, session.max_length), sft_objective()
    pairs = (row for path in job.data for row in read_rows(path, PreferencePair))
    known = {row.pair_id: row for row in read_rows(job.reference, ReferenceLogps)} if job.reference else {}
    return *tokenize_pairs(pairs, session.chat, session.max_length), dpo_objective(known, job.dpo)
