"""Engines that generate text, behind one protocol."""

from pathlib import Path

from selfalign.config import Endpoint, EngineSettings, Policy
from selfalign.engines.protocol import Choice, ChoiceRequest, Engine, Generation, GenerationRequest

__all__ = [
    "Choice",
    "ChoiceRequest",
    "Engine",
    "Generation",
    "GenerationRequest",
    "open_endpoint",
    "open_engine",
]


def open_engine(settings: EngineSettings, policy: Policy, model: Path) -> Engine:
    """Open the engine that the recipe names on a model directory; it lives as long as it is referenced."""
    if settings.kind == "scripted":
        from selfalign.engines.scripted import ScriptedEngine

        return ScriptedEngine(settings.script)
    if settings.kind == "server":
        from selfalign.engines.server import serve

        assert settings.serve is not None  # noqa: S101 -- the recipe is checked
        return serve(settings.serve, policy, model)
    from selfalign.engines.local import LocalEngine

    return LocalEngine(model, policy, settings.batch_size, settings.batch_tokens)


def open_endpoint(endpoint: Endpoint) -> Engine:
    """Open the engine of a model behind an API.

    Raises:
        RecipeError: The environment variable of its key is not set.
    """
    from selfalign.engines.server import connect

    return connect(endpoint)
