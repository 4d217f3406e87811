"""The architecture that vLLM runs: the target, its assistants' layers beside it, and the combination behind the head.

The target is vLLM's own class, whichever it is. An assistant is the same class with K layers; everything outside its
layers is the target's own modules. One with LoRA on its last layers alone has no others of its own
(`uld.serving.vllm.together`). Its attention layers have names of their own, so each owns its pages of the cache,
and paging, prefix caching, chunked prefill and preemption hold for target and assistants alike. The states of all go
through vLLM as one row a token; `ULDForVLLM.compute_logits` takes them apart, gives them to the head in one product,
and combines in fp32. vLLM makes all logits there (of answers, of prompts, and for what a grammar or a bias then
masks), so there is no way round it.

What would be another way is not offered: this class has no LoRA, no pipeline stages, no ``compute_logits_local`` and no
drafts.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.backends import set_model_tag  # type: ignore[import-not-found]
from vllm.model_executor.models.utils import init_vllm_registered_model  # type: ignore[import-not-found]

from uld.errors import ULDError
from uld.model.assistant import slice_config
from uld.model.checkpoint import layers_of
from uld.model.combine import combine_all
from uld.model.gate import Gate
from uld.serving.vllm.checkpoint import ENTRY, Export, Kept, gate_name, load_assistants
from uld.serving.vllm.together import can_join, join


class ULDForVLLM(nn.Module):
    """Target and assistants as one model of vLLM.

    Attributes:
        target: vLLM's model of the target.
        assistants: Models of its first layers, with LoRA in their weights.
        firsts: The first layer of each assistant that is its own.
        joined: Numbers of the assistants whose states come out of the target's class.
        gates: The gate of each assistant; an identity where it has none.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        """Build the models, without weights.

        Raises:
            ULDError: the checkpoint is none of ours, or the engine was started with what the combination is not right
                under.
        """
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.place = str(vllm_config.model_config.model)
        self.export = Export.read(getattr(config, ENTRY, None), self.place)
        refuse_unfit(vllm_config)
        self.combinations = [part.how for part in self.export.parts]
        own = {"vllm_config": vllm_config, "architectures": [self.export.architecture]}
        self.target = init_vllm_registered_model(hf_config=config, prefix=prefix, **own)
        self.assistants, self.gates = nn.ModuleList(), nn.ModuleList()
        self.firsts = self.export.first_own(load_assistants(self.place, self.export))
        for number, part in enumerate(self.export.parts):
            sliced = slice_config(config, part.num_layers)
            with set_model_tag(f"uld_assistant_{number}"):  # compiled code of its own
                assistant = init_vllm_registered_model(hf_config=sliced, prefix=f"{prefix}assistant{number}", **own)
            share(self.target, assistant)
            self.assistants.append(assistant)
            self.gates.append(Gate(config.hidden_size).float() if part.gate else nn.Identity())
        self.joined = self._join(vllm_config.compilation_config)

    def _join(self, compilation: Any) -> list[int]:
        """Have assistants that are the target up to a layer go through its class; returns their numbers.

        Args:
            compilation: Holds vLLM's list of what has pages of the cache: the layers go from it that are not needed.
        """
        firsts = self.firsts
        found: Any = layers_of(self.target)
        layers = found[1]
        if not can_join(layers):
            return []
        whole = [number for number, part in enumerate(self.export.parts) if part.num_layers == len(layers)]
        joined = sorted((n for n in whole if 0 < firsts[n] < len(layers)), key=lambda number: firsts[number])
        theirs = [layers_of(self.assistants[number])[1] for number in joined]  # type: ignore[index]
        for number, own in zip(joined, theirs, strict=True):
            for depth in range(firsts[number]):
                forget_pages(own[depth], compilation)
                own[depth] = nn.Identity()
        join(layers, list(zip((firsts[number] for number in joined), theirs, strict=True)))
        return joined

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """The target's embedding."""
        return self.target.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Final states of all models side by side: ``(tokens, (1 + n) · hidden)``."""
        given = (input_ids, positions, intermediate_tensors, inputs_embeds)
        own, *theirs = self.target(*given, **kwargs).chunk(1 + len(self.joined))
        states = dict(zip(self.joined, theirs, strict=True))
        for number, assistant in enumerate(self.assistants):
            if number not in states:
                states[number] = assistant(*given, **kwargs)
        return torch.cat([own, *(states[number] for number in range(len(self.assistants)))], dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Unlearned logits.

        Args:
            hidden_states: ``(rows, (1 + n) · hidden)`` as `forward` returns them.

        Returns:
            ``(rows, vocab)`` fp32; None where another process has the logits.
        """
        states = hidden_states.chunk(1 + len(self.assistants), dim=-1)
        together = self.target.compute_logits(torch.cat(states))
        if together is None:
            return None
        target, *theirs = together.float().chunk(len(states))
        gated = [
            gate.apply_to(logits, hidden) if isinstance(gate, Gate) else logits
            for gate, logits, hidden in zip(self.gates, theirs, states[1:], strict=True)
        ]
        return combine_all(target, gated, self.combinations)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the target's weights, and make those of the assistants of them.

        Args:
            weights: The target's, by their names in its files.

        Returns:
            Names of what was loaded.

        Raises:
            ULDError: they are another target's, or the assistants' file is missing or damaged.
        """
        stored = load_assistants(self.place, self.export)
        kept = Kept(self.export)
        loaded = {f"target.{name}" for name in self.target.load_weights(kept.passing(weights))}
        kept.verify(self.place)
        models: Any = zip(self.assistants, self.gates, strict=True)
        for number, (assistant, gate) in enumerate(models):
            first = self.firsts[number] if number in self.joined else 0
            names = assistant.load_weights(kept.of_part(number, stored, first))
            loaded |= {f"assistants.{number}.{name}" for name in names}
            if isinstance(gate, Gate):
                for name, parameter in gate.named_parameters():
                    parameter.data.copy_(stored[gate_name(number, name)])
                    loaded.add(f"gates.{number}.{name}")
        return loaded


def share(target: nn.Module, assistant: nn.Module) -> None:
    """Put the target's own modules in place of an assistant's, but for its layers.

    Raises:
        ULDError: vLLM's class of the target has no list of layers, or another layout with fewer of them.
    """
    layers, theirs = layers_of(assistant), dict(target.named_modules())
    if layers is None:
        raise ULDError(f"vLLM's {type(target).__name__} has no list of decoder layers: uld cannot serve it there")
    for name, module in list(assistant.named_modules()):
        if name.startswith(f"{layers[0]}.") or not any(True for _ in module.parameters(recurse=False)):
            continue
        if name not in theirs:
            raise ULDError(f"vLLM's {type(target).__name__} has no module {name!r}: uld cannot serve it there")
        parent, _, leaf = name.rpartition(".")
        setattr(assistant.get_submodule(parent), leaf, theirs[name])


def forget_pages(layer: nn.Module, compilation: Any) -> None:
    """Take a layer that will not run out of vLLM's lists, so that it has no pages of the cache."""
    held, own = compilation.static_forward_context, set(layer.modules())
    gone = [name for name, module in held.items() if module in own]
    for name in gone:
        del held[name]
    for name in gone:
        if name in (experts := getattr(compilation, "static_all_moe_layers", [])):
            experts.remove(name)


def refuse_unfit(vllm_config: Any) -> None:
    """Refuse what the combination is not right under.

    Raises:
        ULDError: names the flag.
    """
    parallel = vllm_config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        raise ULDError(
            "--pipeline-parallel-size: the assistant's layers and the target's last ones have to be in one stage; use "
            "--tensor-parallel-size"
        )
    if vllm_config.speculative_config is not None:
        raise ULDError("--speculative-config: a draft does not know what is taken from the answers; leave it out")
    if vllm_config.lora_config is not None:
        raise ULDError("--enable-lora: an adapter would change target and assistant alike; leave it out")
