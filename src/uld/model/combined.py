"""How the assistants of an unlearned model are combined with its target: one setting for all runs, or one for each."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from uld.errors import ULDError
from uld.model.combine import Combination, combine_all
from uld.runs.values import shown

logger = logging.getLogger(__name__)


class Combined:
    """The settings of `uld.model.unlearned.ULDForCausalLM`.

    Attributes:
        target: The target.
        assistants: One for each of ``combinations``.
    """

    target: Any
    assistants: Any
    _combinations: list[Combination]

    @property
    def combinations(self) -> list[Combination]:
        """Rule, α and τ of each assistant; so many can be assigned."""
        return self._combinations

    @combinations.setter
    def combinations(self, values: Sequence[Combination]) -> None:
        given: Any = list(values) if isinstance(values, tuple) else values
        many = isinstance(given, list) and len(given) == len(self.assistants)
        if not many or not all(isinstance(one, Combination) for one in given):
            raise ULDError(
                f"{len(self.assistants)} assistants need as many combinations (uld.Combination), not {shown(values)}"
            )
        self._combinations = given

    @property
    def combination(self) -> Combination:
        """Rule, α and τ of the first assistant; assigning sets those of all."""
        return self.combinations[0]

    @combination.setter
    def combination(self, value: Combination) -> None:
        if not isinstance(value, Combination):
            raise ULDError(
                "combination must be a uld.Combination, such as model.combination.override(margin=3.0), not "
                f"{shown(value)}"
            )
        self.combinations = self.settings_under(value)
        self._warn_of_wide_margins()

    @property
    def combined_as(self) -> dict[str, Any]:
        """What results name of the combination: the first run's, and those of all where they are not the same."""
        found: dict[str, Any] = {"combination": self.combination.to_dict()}
        parts = self.combination.parts
        if self.combinations != parts * (len(self.combinations) // len(parts)):
            found["combinations"] = [one.to_dict() for one in self.combinations]
        return found

    def settings_under(self, how: Combination) -> list[Combination]:
        """The setting of each assistant where one holds for all runs.

        Raises:
            ULDError: a rule for pairs of models where there are none, or the other way round; or runs of both kinds.
        """
        pairs = [one.paired for one in self.combinations]
        if pairs != pairs[: len(self.combination.parts)] * (len(pairs) // len(self.combination.parts)):
            raise ULDError(
                "these runs combine pairs of models and single assistants, so no one setting holds for all: load each "
                "run with its own"
            )
        if how.paired != self.combination.paired:
            what = "pairs of models" if how.paired else "single assistants"
            raise ULDError(f"the rule {how.rule} is for {what}, and this model's rule is {self.combination.rule}")
        return how.parts * (len(self.assistants) // len(how.parts))

    def _warn_of_wide_margins(self) -> None:
        """Say it where a margin leaves nothing to be lowered: no token is more than log V nats above uniform."""
        vocab = self.target.config.get_text_config(decoder=True).vocab_size
        for how in self.combinations:
            if how.rule == "suppress" and how.margin >= math.log(vocab):
                logger.warning(
                    "a margin of %g nats lowers nothing: one token of %d is at most %.2f nats above uniform (--margin)",
                    *(how.margin, vocab, math.log(vocab)),
                )

    def combined(self, logits: Sequence[Tensor]) -> Tensor:
        """Unlearned logits from what `all_logits` returns, under the settings in force."""
        target, *assistants = logits
        return combine_all(target, [one.to(target.device) for one in assistants], self.combinations)
