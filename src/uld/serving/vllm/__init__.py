"""vLLM as an engine: the checkpoint that it reads, the model that it runs, and the server around it.

vLLM calls `register` in each of its processes (entry point ``vllm.general_plugins``): nothing heavy is imported here.
"""

ARCHITECTURE = "ULDForVLLM"
"""What ``config.json`` of an exported checkpoint names, and vLLM finds `uld.serving.vllm.model` by."""


def register() -> None:
    """Tell vLLM of the architecture; its module is imported when a checkpoint asks for it."""
    from vllm import ModelRegistry  # type: ignore[import-not-found]

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"{__name__}.model:{ARCHITECTURE}")
