"""Engines that generate text, behind one protocol."""

from pathlib import Path

from selfalign.config import EngineSettings, Policy
from selfalign.engines.protocol import Engine, Generation, GenerationRequest

__all__ = ["Engine", "Generation", "GenerationRequest", "open_engine"]


def open_engine(settings: EngineSettings, policy: Policy, model: Path) -> Engine:
    """Open the engine that the recipe names on a model directory; it lives as long as it is referenced."""
    if settings.kind == "scripted":
        from selfalign.engines.scripted import ScriptedEngine

        return ScriptedEngine(settings.script)
    from selfalign.engines.local import LocalEngine

    return LocalEngine(model, policy, settings.batch_size, settings.batch_tokens)
