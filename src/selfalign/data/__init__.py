"""Data files in, records out: what a run reads before it begins.

`rows` opens files, `formats`, `rated` and `oasst` turn rows into exchanges (a prompt with its replies), and
`readers` turns exchanges into records. A row that is malformed is refused with its file and number; a
well-formed one that can't be used is counted under a reason. `answers` and `preferences` read what enters a
run later: candidates, scores and pairs.
"""

from selfalign.data.answers import Answer, read_answers
from selfalign.data.formats import Format, recognise
from selfalign.data.oasst import Selection
from selfalign.data.preferences import read_pairs
from selfalign.data.readers import read_ift, read_prompts, read_ranked
from selfalign.data.rows import read_rows

__all__ = [
    "Answer",
    "Format",
    "Selection",
    "read_answers",
    "read_ift",
    "read_pairs",
    "read_prompts",
    "read_ranked",
    "read_rows",
    "recognise",
]
