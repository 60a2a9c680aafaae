"""One measurement of the generation benchmark: one side with one chunk of prompts, in a process of its own.

Started by `bench_generate.py` with a job as JSON and the file to write the measurement to.
"""

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from selfalign.config import EngineSettings, Policy, Sampling, Serve
from selfalign.engines import GenerationRequest, open_engine
from selfalign.models.load import compute_dtype, load_chat, load_model
from selfalign.records import Message

FILE = "self_instruct/user_oriented_instructions.jsonl"
VLLM_ARGUMENTS = (
    *("--max-model-len", "2048", "--max-num-seqs", "128", "--max-num-batched-tokens", "8192"),
    "--no-enable-chunked-prefill",  # prompts with seeds in pieces make vLLM 0.32 fail on a processor
)
TEMPERATURE = 0.7
TOP_P = 0.9
Side = Literal["ours", "one by one", "static 64", "static 128", "vLLM"]


@dataclass(frozen=True)
class Job:
    """What to measure."""

    side: Side
    first: int
    """Place of the first prompt, counted from 0."""
    prompts: int
    samples: int
    """Completions of each prompt."""
    max_new_tokens: int
    data: str
    model: str
    """A model directory."""
    vllm: str | None = None
    """Python of an environment with vLLM, which the side of that name needs."""
    every: int = 1
    """Of how many prompts one is taken."""


@dataclass(frozen=True)
class Measurement:
    """What was measured."""

    tokens: dict[str, list[int]]
    """Useful tokens of each completion, up to the end of its turn, by a hash of the prompt's token ids."""
    seconds: float
    """Without loading and tokenising; ours tokenises in it."""
    peak_bytes: int | None
    """Most memory that was resident, libraries and weights included; `None` for a server's."""


def precision() -> Literal["bfloat16", "float32"]:
    """Return the type that all sides compute in: bfloat16 where the processor has it."""
    fast = compute_dtype(Policy(device="cpu"), torch.device("cpu")) == torch.bfloat16
    return "bfloat16" if fast else "float32"


def measure(job: Job) -> Measurement:
    """Load, warm up with a few tokens, and then time the generation of all completions."""
    asked = [(Message(role="user", content=text),) for text in read_prompts(job)]
    chat = load_chat(Path(job.model), Policy())
    prompts = [tuple(chat.prompt_ids(messages)) for messages in asked]
    by_engine = job.side in ("ours", "vLLM")
    side = _engine(job, asked) if by_engine else _transformers(job, prompts, chat.tokenizer)
    side(1, 4)
    begin = time.perf_counter()
    tokens = side(len(prompts), job.max_new_tokens)
    seconds = time.perf_counter() - begin
    peak = None if job.side == "vLLM" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    names = [hashlib.sha256(repr(prompt).encode()).hexdigest()[:16] for prompt in prompts]
    return Measurement(dict(zip(names, tokens, strict=True)), seconds, peak)


def read_prompts(job: Job) -> list[str]:
    """Return the job's prompts, in the order of the file: instructions with their first inputs."""
    lines = (Path(job.data) / FILE).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[job.first : job.first + job.prompts : job.every]]
    return ["\n\n".join(filter(None, (r["instruction"], r["instances"][0]["input"]))) for r in rows]


Generate = Callable[[int, int], list[list[int]]]
"""Takes how many prompts and how many new tokens; returns the useful tokens of each completion."""


def _engine(job: Job, asked: Sequence[tuple[Message, ...]]) -> Generate:
    """Generate with our engine, or with vLLM as our server engine asks it."""
    policy = Policy(device="cpu", precision=precision())
    settings = EngineSettings()
    if job.side == "vLLM":
        settings = EngineSettings(kind="server", serve=Serve(python=job.vllm, arguments=VLLM_ARGUMENTS))
    engine = open_engine(settings, policy, Path(job.model))

    def generate(count: int, limit: int) -> list[list[int]]:
        requests = [
            GenerationRequest(f"{place} {sample}", asked[place], seed=place * job.samples + sample)
            for place in range(count)
            for sample in range(job.samples)
        ]
        sampling = Sampling(temperature=TEMPERATURE, top_p=TOP_P, max_new_tokens=limit)
        found = {g.key: g.num_tokens for g in engine.generate(requests, sampling)}
        return [[found[f"{place} {sample}"] for sample in range(job.samples)] for place in range(count)]

    return generate


def _transformers(job: Job, prompts: Sequence[tuple[int, ...]], tokenizer: Any) -> Generate:
    model = load_model(Path(job.model), Policy(device="cpu"), getattr(torch, precision())).eval()
    ends = sorted(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    sequences = job.samples if job.side == "one by one" else int(job.side.removeprefix("static "))
    together = max(1, sequences // job.samples)

    def generate(count: int, limit: int) -> list[list[int]]:
        torch.manual_seed(0)
        found: dict[int, list[int]] = {}
        order = sorted(range(count), key=lambda place: len(prompts[place]))
        for start in range(0, count, together):
            places = order[start : start + together]
            width = max(len(prompts[place]) for place in places)
            pads = [width - len(prompts[place]) for place in places]
            rows = [[ends[0]] * pad + [*prompts[place]] for pad, place in zip(pads, places, strict=True)]
            real = [[0] * pad + [1] * (width - pad) for pad in pads]
            output = model.generate(
                torch.tensor(rows),
                attention_mask=torch.tensor(real),
                do_sample=True,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                top_k=0,
                num_return_sequences=job.samples,
                max_new_tokens=limit,
                eos_token_id=ends,
                pad_token_id=ends[0],
            )[:, width:]
            # All that comes after the end of a turn is padding, which ends a turn, too.
            useful = (~torch.isin(output, torch.tensor(ends))).sum(1).view(-1, job.samples).tolist()
            found |= dict(zip(places, useful, strict=True))
        return [found[place] for place in range(count)]

    return generate


if __name__ == "__main__":
    measured = measure(Job(**json.loads(sys.argv[1])))
    Path(sys.argv[2]).write_text(json.dumps(asdict(measured)), encoding="utf-8")
