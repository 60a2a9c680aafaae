"""Making values fit for a person: text of any origin, counts, shares and times."""

import unicodedata

LIMIT = 4000
"""Characters of one text that the report shows at most."""

# Joiners shape Persian and Indic words and emoji; letters of private use and those newer than this Python
# are somebody's letters.
_KEPT_CHARACTERS = "\n\t\u200c\u200d"
_KEPT_CATEGORIES = ("Zs", "Co", "Cn")


def readable(text: str) -> str:
    """Return text in which nothing is hidden, cut after `LIMIT` characters with a note of how many follow.

    Line breaks and tabs stay. Other control and format characters, among them those that turn the reading
    direction, are shown by a symbol or as ⟨U+202E⟩; so are surrogates, which no file can hold.
    """
    shown = "".join(c if c.isprintable() else _visible(c) for c in text[:LIMIT].replace("\r\n", "\n"))
    return shown if len(text) <= LIMIT else f"{shown} […] ({len(text) - LIMIT:,} more characters)"


def short(text: str, most: int = 400) -> str:
    """Return the beginning of a text, with a note of how much follows."""
    return text if len(text) <= most else f"{text[:most]} […] ({len(text) - most:,} more characters)"


def _visible(character: str) -> str:
    if character in _KEPT_CHARACTERS or unicodedata.category(character) in _KEPT_CATEGORIES:
        return character
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


def words_of(name: str) -> str:
    """Return a reason or a key of a figure as words."""
    return name.replace("_", " ")


def whole(number: int) -> str:
    """Return a whole number with its thousands apart."""
    return f"{number:,}"


def plural(number: int, noun: str) -> str:
    """Return a whole number and what it counts."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def share(part: float) -> str:
    """Return a share of 1 in per cent, to a tenth, on one line."""
    return f"{100 * part:.1f}\N{NO-BREAK SPACE}%"


def signed(change: float) -> str:
    """Return a change to two places with its sign, the minus as long as the plus; ±0.00 for none."""
    shown = f"{change:+.2f}".replace("-", "−")
    return "±0.00" if shown[1:] == "0.00" else shown


def duration(seconds: float) -> str:
    """Return a time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60:,} h {minutes % 60:02} min"


def rate(per_second: float) -> str:
    """Return how many there are in a second, or in a minute where they are slow."""
    return f"{per_second:,.3g} a second" if per_second >= 0.1 else f"{60 * per_second:,.3g} a minute"


def moment(iso: str) -> str:
    """Return an ISO time in UTC to the minute, as people write it."""
    return f"{iso[:10]} {iso[11:16]} UTC"
