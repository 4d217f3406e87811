"""What `PreTrainedModel` offers to every model and an unlearned one must not do, each refused in one sentence.

An unlearned model shares every weight but LoRA between its models, and the one pass has its own skeleton of them: what
puts other modules into the target would be half done, and nobody would see it.
"""

from collections.abc import Callable
from typing import Any, NoReturn

from uld.errors import ULDError


def refuse_publishing() -> NoReturn:
    """Refuse to put a run on the Hub as it lies on this machine: it names the user's files and folders.

    Raises:
        ULDError: always.
    """
    raise ULDError(
        "a run is published without the names of your files and folders, and only by uld push FOLDER ORG/NAME: save "
        "the model into a folder (save_pretrained), and its tokenizer beside it, and push that"
    )


class Refused:
    """The refusals of `uld.model.unlearned.ULDForCausalLM`."""

    get_input_embeddings: Callable[[], Any]

    def push_to_hub(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse: see `refuse_publishing`.

        Raises:
            ULDError: always.
        """
        refuse_publishing()

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> Any:
        """Give back the embeddings where nothing would change; refuse to change them.

        Raises:
            ULDError: another number of tokens than there is.
        """
        embeddings = self.get_input_embeddings()
        own = embeddings.weight.shape[0]
        wanted = own if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of:
            wanted = -(-wanted // pad_to_multiple_of) * pad_to_multiple_of
        if wanted == own:
            return embeddings
        raise ULDError(
            f"the embeddings of an unlearned model cannot be resized ({own} tokens to {wanted}), because its run was "
            "trained with those of the target: leave it out (a tokenizer may have fewer tokens than its model), and "
            "pad with a token that there is (tokenizer.pad_token = tokenizer.eos_token)"
        )

    def add_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse another adapter.

        Raises:
            ULDError: always.
        """
        raise ULDError(
            "an unlearned model takes no further adapter: several runs of one target are loaded together with "
            "uld.load([RUN, RUN]), and a target is trained before a run of it"
        )

    load_adapter = add_adapter
