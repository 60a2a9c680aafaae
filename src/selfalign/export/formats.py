"""Rows of a run as other libraries write them: records in, plain JSON values out.

Every row keeps the ids and scores of its record, so that what goes out can come back as the same.

Sources: TRL's dataset types; LLaMA-Factory's data/README; OpenRLHF's `--prompt_key`, `--chosen_key`,
`--input_key` with `--apply_chat_template`; AutoAlign's self-rewarding `dpo_dataset_generator.py`.
"""

from collections.abc import Sequence
from typing import Any, Literal

from selfalign.errors import RunError
from selfalign.export.contents import Exportable, Judged, Scored, What
from selfalign.records import Message, PreferencePair, Prompt, SFTExample

Format = Literal["trl", "parquet", "autoalign", "llamafactory", "openrlhf"]
Row = dict[str, Any]
SUFFIX: dict[Format, str] = {
    "trl": "jsonl",
    "parquet": "parquet",
    "autoalign": "json",
    "llamafactory": "json",
    "openrlhf": "jsonl",
}
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


def check_format(what: What, format: Format) -> None:
    """Refuse a format that has no place for a kind of rows.

    Raises:
        RunError: It has none; names those that do.
    """
    if what in ("candidates", "judgments", "prompts") and format not in ("trl", "parquet"):
        raise RunError(f"{format} has no format for {what}; export them with --to trl or --to parquet")


def row_in(format: Format, record: Exportable, iteration: int | None) -> Row:
    """Return a record as a row of a format.

    Args:
        format: One that `check_format` allows.
        record: The record.
        iteration: That made it, counted from 1; `None` for what no iteration made.
    """
    match record:
        case PreferencePair():
            return _pair(format, record) | {"iteration": iteration}
        case SFTExample():
            return _example(format, record)
        case Prompt():
            row = {"prompt": turns(record.messages), **record.model_dump(include={"prompt_id", "source"})}
            return row | {"iteration": iteration}
        case Scored():
            own = record.completion.model_dump(exclude={"text"})
            return _completed(record) | own | {"score": record.reward, "iteration": iteration}
        case Judged():
            judgment = record.judgment.model_dump(exclude={"text", "mass"})
            return _completed(record) | judgment | {"critique": record.judgment.text, "iteration": iteration}


def dataset_info(name: str, file: str, what: What) -> Row:
    """Return the entry of a file in LLaMA-Factory's `dataset_info.json`."""
    if what == "pairs":
        columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
        return {name: {"file_name": file, "formatting": "sharegpt", "ranking": True, "columns": columns}}
    return {name: {"file_name": file, "formatting": "sharegpt", "columns": {"messages": "conversations"}}}


def turns(messages: Sequence[Message]) -> list[Row]:
    """Return messages as `role` and `content`."""
    return [{"role": message.role, "content": message.content} for message in messages]


def _spoken(messages: Sequence[Message]) -> list[Row]:
    """Return messages as `from` and `value`."""
    return [{"from": _SPEAKERS[message.role], "value": message.content} for message in messages]


def _answer(text: str) -> tuple[Message, ...]:
    return (Message(role="assistant", content=text),)


def _completed(record: Scored | Judged) -> Row:
    answer = turns(_answer(str(record.completion.text)))
    return {"prompt": turns(record.messages), "completion": answer}


def _pair(format: Format, pair: PreferencePair) -> Row:
    ids = pair.model_dump(include={"pair_id", "prompt_id", "chosen_id", "rejected_id", "contrast_id"})
    sizes = pair.model_dump(include={"chosen_tokens", "rejected_tokens", "weight"})
    scores = {"score_chosen": pair.reward_chosen, "score_rejected": pair.reward_rejected}
    own = {**scores, **ids, **sizes}
    sides = {"chosen": _answer(pair.chosen), "rejected": _answer(pair.rejected)}
    match format:
        case "trl" | "parquet" | "openrlhf":
            return {"prompt": turns(pair.messages), **{k: turns(side) for k, side in sides.items()}, **own}
        case "llamafactory":
            texts = {name: _spoken(side)[0] for name, side in sides.items()}
            return {"conversations": _spoken(pair.messages), **texts, **own}
        case "autoalign":
            whole = {name: _spoken((*pair.messages, *side)) for name, side in sides.items()}
            question = pair.messages[-1].content
            return {"prompt": question, **whole, "conversations": whole["chosen"], **own}


def _example(format: Format, example: SFTExample) -> Row:
    own = example.model_dump(exclude={"messages", "completion"})
    conversation = (*example.messages, *_answer(example.completion))
    match format:
        case "trl" | "parquet" | "openrlhf":
            return {"messages": turns(conversation), **own}
        case "llamafactory" | "autoalign":
            return {"id": example.example_id, "conversations": _spoken(conversation), **own}
