"""What a tokenizer's chat template writes: the text that generation starts from, the answers, and what ends them.

A chat template is a program. It may write an answer otherwise where a turn follows, ask with a prompt that it does not
answer, or open an answer with an empty block of reasoning. So nothing is taken from a rule: what stands before an
answer is rendered as a prompt and as an answered conversation, and the two are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from uld.data.clock import pinned
from uld.errors import DataError

PROBE = "0x7e57"  # a text that no template writes itself
_CHOOSE = "choose a template with --template"


@dataclass(frozen=True, slots=True)
class Turn:
    """An answer in its place.

    Attributes:
        given: Text before it, from the end of the answer before.
        learnt: The answer, and what the template ends it with.
        after: Blanks that the template writes behind that.
        ended: Whether the template ends it; else the end-of-sequence token does where nothing follows.
        alone: Whether it stands on its own, the tokenizer's special tokens before it and end-of-sequence behind it.
        shortened: Whether a part of the answer is left out; see `uld.data.prompt.Encoded`.
    """

    given: str
    learnt: str
    after: str = ""
    ended: bool = False
    alone: bool = False
    shortened: bool = False


class Chat:
    """The chat template of a tokenizer, at a fixed date."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take a tokenizer; whether it has a chat template shows when something is formatted."""
        self.tokenizer: Any = tokenizer

    def rows(self, messages: Sequence[tuple[str, str]], source: str) -> list[list[Turn]]:
        """Every answer of a conversation, each behind the very text that generation starts from.

        Args:
            messages: Pairs of role and content.
            source: ``file:line``, for messages.

        Returns:
            One row of answers; or several, where the template rewrites what stands before an answer (it drops the
            reasoning of earlier turns): a new row begins there, with all that came before as given.

        Raises:
            DataError: the template cannot format it, or not so that generation starts from the same text.
        """
        if self._reopens:
            raise DataError(
                f"{source}: the tokenizer's chat template opens another answer behind an answer (it does not heed "
                f"add_generation_prompt), and that would be learnt: {_CHOOSE}"
            )
        rows: list[list[Turn]] = []
        done = ""
        for i, (role, _) in enumerate(messages):
            if role != "assistant" or (i == 0 and len(messages) > 1):  # nobody has asked for a greeting
                continue
            turn = self._turn(messages[: i + 1], source)
            if rows and turn.given.startswith(done):
                rows[-1].append(replace(turn, given=turn.given[len(done) :]))
            else:
                rows.append([turn])
            done = turn.given + turn.learnt + turn.after
        return rows

    def text(self, messages: Sequence[tuple[str, str]], source: str, *, prompt: bool) -> str:
        """A conversation as the template writes it.

        Args:
            messages: Pairs of role and content.
            source: ``file:line``, for messages.
            prompt: Whether an answer is asked for.

        Raises:
            DataError: the template refuses it.
        """
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            template = self.tokenizer.get_chat_template()
            fixed = {} if pinned(template) == template else {"chat_template": pinned(template)}
            return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt, **fixed)
        except Exception as error:  # a template is a program, and refuses in its own ways
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            roles = ", ".join(role for role, _ in messages) or "no turn before the answer"
            raise DataError(
                f"{source}: the tokenizer's chat template refuses the roles {roles} ({reason}): change the record, or "
                f"{_CHOOSE}"
            ) from error

    def _turn(self, messages: Sequence[tuple[str, str]], source: str) -> Turn:
        """The answer of a conversation that ends in one, behind all that stands before it.

        Some templates open an answer with an empty block of reasoning: it is given, not learnt. So an answer that
        brings reasoning of its own is learnt without it.
        """
        *asked, (_, answer) = messages
        before = self.text(asked, source, prompt=True)
        said = self._answered(before, asked, answer, source)
        opening, found, closing = self._answered(before, asked, PROBE, source).partition(PROBE)
        if not found:
            raise DataError(f"{source}: the tokenizer's chat template leaves the answer out: {_CHOOSE}")
        opening = opening.rstrip(" ")  # a blank belongs to the token behind it
        if not said.startswith(opening):
            mark = opening[_shared(opening, said) :].strip()
            rest = answer.rpartition(mark)[2].lstrip() if mark and mark in answer else ""
            said = self._answered(before, asked, rest, source) if rest else ""
            if not said.startswith(opening):
                raise DataError(
                    f"{source}: generation starts behind {opening!r}, which the tokenizer's chat template does not "
                    f"write before this answer: take the answer's reasoning out, or {_CHOOSE}"
                )
        end = len(said.rstrip()) if closing.strip() else len(said)
        return Turn(
            before + opening,
            said[len(opening) : end],
            said[end:],
            ended=bool(closing.strip()),
            shortened=answer.strip() not in said,
        )

    def _answered(self, before: str, asked: Sequence[tuple[str, str]], answer: str, source: str) -> str:
        """What the template writes behind a prompt once it is answered."""
        through = self.text([*asked, ("assistant", answer)], source, prompt=False)
        if not through.startswith(before):
            same = _shared(before, through)
            wrote = through[same:].replace(PROBE, "ANSWER")[:20]
            raise DataError(
                f"{source}: the tokenizer's chat template does not put the answer behind its prompt (it writes "
                f"{wrote!r} where generation has {before[same : same + 20]!r}): {_CHOOSE}"
            )
        return through[len(before) :]

    @cached_property
    def _reopens(self) -> bool:
        """Whether the template writes behind an answer what opens one, but only where the answer is the last turn."""
        asked = (("user", PROBE),)
        answered = (*asked, ("assistant", PROBE))
        try:
            opening = self.text(asked, "", prompt=True).partition(PROBE)[2].strip()
            closing = self.text(answered, "", prompt=False).rpartition(PROBE)[2].rstrip()
            later = self.text((*answered, *asked), "", prompt=True).split(PROBE)
        except DataError:  # what it refuses is told of the record that it refuses
            return False
        return bool(opening) and closing.endswith(opening) and len(later) > 2 and not later[2].startswith(closing)


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
