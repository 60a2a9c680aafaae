"""Talking to the models of a run: one model open at a time, in a thread of its own."""

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from selfalign.config import EngineSettings, Policy, Sampling
from selfalign.engines import Generation, GenerationRequest, close_engine, open_engine
from selfalign.errors import ModelError
from selfalign.models.source import find_model, trained_models
from selfalign.records import Message
from selfalign.runs.files import read_json
from selfalign.ui.state import RESOLVED, start_of

_ROOM = 512 * 1024 * 1024
"""Bytes that a model needs besides its weights, roughly."""


class ChatRequest(BaseModel):
    """What the page asks for: the next turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)] = 0.7
    max_new_tokens: Annotated[int, Field(ge=1, le=8192)] = 256
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class _Recipe(BaseModel):
    """What shapes a model's answers besides its weights."""

    policy: Policy
    engine: EngineSettings


@dataclass(frozen=True)
class _Open:
    """What an engine was opened with."""

    settings: EngineSettings
    policy: Policy
    model: Path


class Chat:
    """Opens a model when it is first spoken to and lets go of it for the next one."""

    def __init__(self) -> None:
        """Begin with no model open."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="chat")
        self._open: _Open | None = None

    async def reply(self, root: Path, request: ChatRequest) -> Generation:
        """Return the model's next turn; requests wait for those before them.

        Raises:
            ModelError: The model isn't there, can't be loaded, or memory is short.
            ValidationError: The recipe is of another version.
        """
        return await asyncio.wrap_future(self._thread.submit(self._reply, root, request))

    def close(self) -> None:
        """Let go of the model; what waits is not answered any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        close_engine()

    def _reply(self, root: Path, request: ChatRequest) -> Generation:
        sampling = Sampling(temperature=request.temperature, max_new_tokens=request.max_new_tokens)
        asked = GenerationRequest("chat", request.messages, request.seed)
        try:
            wanted = _wanted(root, request.model)
            if wanted != self._open:
                self._open = None
                close_engine()  # what it holds is free for the next
                _check_memory(wanted)
            engine = open_engine(wanted.settings, wanted.policy, wanted.model)
            self._open = wanted
            [answer] = list(engine.generate([asked], sampling))
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            self._open = None
            close_engine()
            gc.collect()
            raise ModelError(
                f"{request.model}: the memory does not suffice for it; end what else uses it, or ask for "
                "fewer tokens"
            ) from None
        return answer


def models_of(root: Path) -> list[str]:
    """Return the models of a run that can be spoken to, in the order of training."""
    return ["M0", *trained_models(root)]


def _wanted(root: Path, name: str) -> _Open:
    recipe = _Recipe.model_validate(read_json(root / RESOLVED))
    # A chat is one sequence: no server is worth its start, and a run may be somebody else's.
    settings = recipe.engine if recipe.engine.kind == "scripted" else EngineSettings()
    trained = trained_models(root)
    if name == "M0":
        model = find_model(start_of(root).model.name, recipe.policy.revision).materialise()
    elif name in trained:
        model = trained[name]
    else:
        raise ModelError(f"{name}: no such model in {root.name}; there is {', '.join(models_of(root))}")
    return _Open(settings, recipe.policy, model)


def _check_memory(wanted: _Open) -> None:
    """Refuse a model whose weights alone don't fit: the system would end this process while it loads them."""
    if wanted.settings.kind == "scripted":
        return
    import psutil

    weights = sum(file.stat().st_size for file in wanted.model.glob("*.safetensors"))
    available = psutil.virtual_memory().available
    if weights + _ROOM > available:
        raise ModelError(
            f"{wanted.model.parent.name}: the model needs about {(weights + _ROOM) / 1e9:.1f} GB and "
            f"{available / 1e9:.1f} GB are free; end what else uses memory, then try again"
        )


def _is_out_of_memory(error: Any) -> bool:
    if isinstance(error, MemoryError):
        return True
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
