"""Messages to token ids, the same way for generating, training and measuring.

The tokenizer's own chat template is the only source of structure. Where it has no place for a system
turn, its text opens the first user turn. Text of users and models is kept
from becoming structure: a control token spelled out in it is broken up before it is rendered.
"""

import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2

from selfalign.errors import ModelError
from selfalign.records import Message

_MARK = "selfalignmark"


class Chat:
    """The chat format of one tokenizer."""

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        """Take a tokenizer and, for a base tokenizer without a template, the name of one of ours.

        Raises:
            ModelError: The tokenizer has no template and none was named, or it has one and another was
                named, or its template can't be used.
        """
        if template is not None:
            text = (resources.files("selfalign") / "prompts" / "templates" / f"{template}.jinja").read_text()
            if tokenizer.chat_template not in (None, text):
                raise ModelError(
                    "policy.chat_template: the tokenizer has a template of its own; leave the key out"
                )
            tokenizer.chat_template = text
        if tokenizer.chat_template is None:
            raise ModelError(
                "the tokenizer has no chat template; set policy.chat_template to chatml or llama-3-instruct"
            )
        self.tokenizer = tokenizer
        control = {token.content for token in tokenizer.added_tokens_decoder.values()}
        control |= set(tokenizer.all_special_tokens)
        spelled = "|".join(re.escape(token) for token in sorted(control) if token.strip())
        # A control token may begin inside of another one, so nothing but its first letter is taken.
        self._control = re.compile(f"(?={spelled}).", re.DOTALL) if spelled else None
        self._takes_system = self._has_place_for_system()
        self.end_of_turn: tuple[int, ...] = self._find_end_of_turn()
        """Token ids that close an assistant turn; generation stops there and training learns them."""

    def prompt_ids(self, messages: Sequence[Message], reply_start: str = "") -> list[int]:
        """Return the ids of a prompt, up to where the assistant's own words begin.

        Args:
            messages: The prompt.
            reply_start: Words put into the assistant's mouth.

        Raises:
            ModelError: The template refuses the messages, such as a system turn it has no place for.
        """
        return self._ids(self.render(messages)) + (self._ids(reply_start) if reply_start else [])

    def completion_ids(self, text: str) -> list[int]:
        """Return the ids of an assistant's words and the end of its turn."""
        return [*self._ids(self.neutral(text)), *self.end_of_turn]

    def text(self, ids: Sequence[int]) -> str:
        """Return the words of generated ids; control tokens among them are left out."""
        words: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return words

    def render(self, messages: Sequence[Message], *, generation: bool = True) -> str:
        """Return messages as text: a prompt up to where the assistant's own words begin, or finished turns.

        Raises:
            ModelError: The template refuses the messages.
        """
        if not self._takes_system and len(messages) > 1 and messages[0].role == "system":
            system, first, *rest = messages
            folded = Message(role=first.role, content=f"{system.content}\n\n{first.content}")
            messages = [folded, *rest]
        turns = [{"role": m.role, "content": self.neutral(m.content)} for m in messages]
        try:
            rendered: str = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=generation
            )
        except jinja2.TemplateError as error:
            roles = ", ".join(m.role for m in messages)
            raise ModelError(f"the chat template refuses turns of {roles}: {error}") from None
        return rendered

    def neutral(self, text: str) -> str:
        """Return the text with spelled-out control tokens broken by a space, so that they stay words."""
        if self._control is None:
            return text
        return self._control.sub(r"\g<0> ", text)

    def _has_place_for_system(self) -> bool:
        """Say whether the template shows a system turn; some refuse it, some leave it out in silence."""
        turns = [{"role": "system", "content": _MARK}, {"role": "user", "content": "x"}]
        try:
            return _MARK in self.tokenizer.apply_chat_template(turns, tokenize=False)
        except jinja2.TemplateError:
            return False

    def _ids(self, text: str) -> list[int]:
        # The template writes the beginning-of-text token itself where there is one.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _find_end_of_turn(self) -> tuple[int, ...]:
        turns = [Message(role="user", content=_MARK), Message(role="assistant", content=_MARK)]
        tail = self.render(turns, generation=False).rpartition(_MARK)[2].strip()
        if not tail and self.tokenizer.eos_token is None:
            raise ModelError("the chat template closes no turn and the tokenizer has no end-of-text token")
        return tuple(self._ids(tail or self.tokenizer.eos_token))
