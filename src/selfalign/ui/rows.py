"""The rows of a run, filtered and sorted by DuckDB straight from their JSON lines.

Nothing is indexed or kept: a question reads the columns that it needs and as many texts as it shows, so that
what a running stage writes is there at once. A row that can't be read is passed over; `damage` names it.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from selfalign.errors import DataError
from selfalign.ui.sources import Kind, Source, damaged_rows, sources_of
from selfalign.ui.tables import KINDS, Tables, ask, count_unreadable

PAGE = 50
"""Rows of a page."""
OPENING = 300
"""Characters of a text that a list shows."""
FIELDS = {
    "prompts": ("text",),
    "candidates": ("text",),
    "judgments": ("text",),
    "pairs": ("chosen", "rejected"),
}
"""Texts of each kind of rows."""
ID = {"prompts": "prompt_id", "candidates": "completion_id", "judgments": "judgment_id", "pairs": "pair_id"}

# Every view has id, prompt_id, place, score, margin, length, one and other, to filter and sort by.
_VIEWS = {
    "prompts": """
        select prompt_id as id, prompt_id, place, score, margin, length(text) as length, text as one,
            null as other, coalesce(candidates, 0) as candidates
        from (select prompt_id, place, any_value(text) as text from prompts group by all)
        left join (
            select prompt_id, place, avg(reward) as score, max(reward) - min(reward) as margin,
                count(*) as candidates
            from candidates left join rewards using (completion_id, place) group by all
        ) using (prompt_id, place)""",
    "candidates": """
        select completion_id as id, prompt_id, place, reward as score, null as margin,
            coalesce(length(text), 0) as length, text as one, null as other, sample, finish_reason,
            num_tokens, coalesce(scored, 0) as scored, coalesce(judged, 0) as judged
        from candidates left join rewards using (completion_id, place)""",
    "judgments": """
        select judgment_id as id, prompt_id, place, score, null as margin,
            coalesce(length(text), 0) as length, text as one, null as other, completion_id, sample, reason
        from judgments""",
    "pairs": """
        select pair_id as id, prompt_id, place, reward_chosen as score, margin, length(chosen) as length,
            chosen as one, rejected as other, reward_rejected, length(rejected) as other_length
        from pairs""",
}
_ORDERS = {
    "prompts": "prompt_id",
    "candidates": "sample, completion_id",
    "judgments": "sample, judgment_id",
    "pairs": "margin desc, pair_id",
}


def _none_if_blank(value: object) -> object:
    """Take the empty field of a form for one that was not filled in."""
    return None if value == "" else value


Number = Annotated[Annotated[float, Field(allow_inf_nan=False)] | None, BeforeValidator(_none_if_blank)]


class Filter(BaseModel):
    """Which rows to list, in which order; what is `None` or empty does not matter."""

    model_config = ConfigDict(extra="forbid")

    text: str = ""
    """Words in a row's own texts or in its prompt, in capitals or not."""
    place: str = ""
    score_from: Number = None
    score_to: Number = None
    margin_from: Number = None
    margin_to: Number = None
    length_from: Number = None
    length_to: Number = None
    sort: Literal["score", "margin", "length", "place"] = "score"
    order: Literal["desc", "asc"] = "desc"
    page: Annotated[int, Field(ge=1, le=10_000_000)] = 1


class Rows:
    """The rows of one run, as they are now."""

    def __init__(self, root: Path) -> None:
        """Take the run directory, resolved."""
        self._sources = sources_of(root)

    @property
    def places(self) -> list[str]:
        """Return the places that have rows, in the order of the method."""
        return list(dict.fromkeys(source.place for source in self._sources))

    @property
    def under_way(self) -> list[str]:
        """Return kind and place of the rows that a stage is still making."""
        return [f"{source.kind} of {source.place}" for source in self._sources if not source.finished]

    def select(self, kind: Kind, wanted: Filter) -> tuple[list[dict[str, Any]], int]:
        """Return a page of rows with the openings of their texts and prompt, and how many rows there are.

        Raises:
            DataError: A file can't be read at all.
        """
        conditions, values = _conditions(wanted)
        tables = self._tables(wanted.place)
        openings = ", ".join(f"left({name}, {OPENING}) as {name}" for name in ("one", "other"))
        found = ask(
            f"{tables.sql} select * replace ({openings}), count(*) over () as total from ({_VIEWS[kind]}) "
            f"where {conditions} order by {wanted.sort} {wanted.order} nulls last, id "
            f"limit {PAGE} offset {PAGE * (wanted.page - 1)}",
            tables.values | values,
        )
        if not found and wanted.page > 1:
            return [], self.select(kind, wanted.model_copy(update={"page": 1}))[1]
        asked = self._openings(tables, {row["prompt_id"] for row in found})
        rows = [row | {"prompt": asked.get(row["prompt_id"])} for row in found]
        return rows, found[0]["total"] if found else 0

    def counts(self) -> dict[str, int]:
        """Return how many readable rows of each kind there are."""
        tables = self._tables()
        columns = ", ".join(f"(select count(*) from {kind}) as {kind}" for kind in KINDS)
        return ask(f"{tables.sql} select {columns}", tables.values)[0]

    def of_prompt(self, prompt_id: str) -> dict[str, list[dict[str, Any]]]:
        """Return all rows of a prompt by kind, with their texts: candidates and judgments by sample.

        Only the places where the prompt itself is are looked through, if it is in any.
        """
        asked = self._of_prompt("prompts", prompt_id, self._sources)
        places = {row["place"] for row in asked} or set(self.places)
        there = [source for source in self._sources if source.place in places]
        kinds = ("candidates", "judgments", "pairs")
        return {"prompts": asked} | {kind: self._of_prompt(kind, prompt_id, there) for kind in kinds}

    def text(self, kind: Kind, row_id: str, field: str) -> str | None:
        """Return one whole text of a row, `None` if there is none.

        Raises:
            DataError: Rows of this kind have no such text.
        """
        if field not in FIELDS[kind]:
            raise DataError(f"{kind} have no text {field!r}; there is {', '.join(FIELDS[kind])}")
        tables = self._tables()
        found = ask(
            f"{tables.sql} select {field} as text from {kind} where {ID[kind]} = $id limit 1",
            tables.values | {"id": row_id},
        )
        return found[0]["text"] if found else None

    def damage(self) -> list[str]:
        """Return what can't be read, a line each; files that did not change are not read again."""
        return [line for source in self._sources for line in _damage(source, _stamps(source))]

    def _openings(self, tables: Tables, prompts: set[str]) -> Mapping[str, str]:
        found = ask(
            f"{tables.sql} select prompt_id, any_value(left(text, {OPENING})) as text from prompts "
            "where prompt_id in (select unnest($ids)) group by prompt_id",
            tables.values | {"ids": sorted(prompts)},
        )
        return {row["prompt_id"]: row["text"] for row in found}

    def _of_prompt(self, kind: str, prompt_id: str, sources: Sequence[Source]) -> list[dict[str, Any]]:
        tables = Tables(sources)
        return ask(
            f"{tables.sql} select * from {kind} where prompt_id = $id order by place, {_ORDERS[kind]}",
            tables.values | {"id": prompt_id},
        )

    def _tables(self, place: str = "") -> Tables:
        return Tables([source for source in self._sources if place in ("", source.place)])


def _conditions(wanted: Filter) -> tuple[str, dict[str, Any]]:
    conditions, values = ["true"], dict[str, Any]()
    for column in ("score", "margin", "length"):
        for end, compare in (("from", ">="), ("to", "<=")):
            name = f"{column}_{end}"
            if (value := getattr(wanted, name)) is not None:
                conditions.append(f"{column} {compare} ${name}")
                values[name] = value
    if wanted.text:
        holds = "contains(lower({}), lower($text))"
        conditions.append(
            f"({holds.format('one')} or {holds.format('other')} "
            f"or prompt_id in (select prompt_id from prompts where {holds.format('text')}))"
        )
        values["text"] = wanted.text
    return " and ".join(conditions), values


def _stamps(source: Source) -> tuple[tuple[int, int], ...]:
    return tuple((stat.st_mtime_ns, stat.st_size) for stat in (file.stat() for file in source.files))


@lru_cache(maxsize=256)
def _damage(source: Source, stamps: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    del stamps  # which make it another question once a file has changed
    return tuple(damaged_rows(source)) if count_unreadable(source) else ()
