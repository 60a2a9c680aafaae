"""Engines that generate text, behind one protocol."""

import gc
from pathlib import Path

from selfalign.config import Endpoint, EngineSettings, Policy
from selfalign.engines.protocol import Choice, ChoiceRequest, Engine, Form, Generation, GenerationRequest

__all__ = [
    "Choice",
    "ChoiceRequest",
    "Engine",
    "Form",
    "Generation",
    "GenerationRequest",
    "close_engine",
    "open_endpoint",
    "open_engine",
]


_open: dict[tuple[EngineSettings, Policy, Path], Engine] = {}
"""The one engine that is open, if any."""


def open_engine(settings: EngineSettings, policy: Policy, model: Path) -> Engine:
    """Open the engine that the recipe names on a model directory.

    Stages in a row ask the same model, so the engine opened last stays open until another is wanted or until
    `close_engine`, and is given again. It is let go before the other is opened, as there may be room for one.
    """
    wanted = (settings, policy, model)
    if wanted not in _open:
        close_engine()
        _open[wanted] = _opened(settings, policy, model)
    return _open[wanted]


def _opened(settings: EngineSettings, policy: Policy, model: Path) -> Engine:
    if settings.kind == "scripted":
        from selfalign.engines.scripted import ScriptedEngine

        return ScriptedEngine(settings.script)
    if settings.kind == "server":
        from selfalign.engines.server import serve

        assert settings.serve is not None  # noqa: S101 -- the recipe is checked
        return serve(settings.serve, policy, model)
    from selfalign.engines.local import LocalEngine

    return LocalEngine(model, policy, settings.batch_size, settings.batch_tokens)


def close_engine() -> None:
    """Let go of the engine that is open, so that its memory is free for training."""
    _open.clear()
    gc.collect()  # what asked for text may hold the engine in a circle of references


def open_endpoint(endpoint: Endpoint) -> Engine:
    """Open the engine of a model behind an API.

    Raises:
        RecipeError: The environment variable of its key is not set.
    """
    from selfalign.engines.server import connect

    return connect(endpoint)
