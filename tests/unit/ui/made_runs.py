"""Runs written by hand, as stages leave them, with text that wants to do harm."""

import json
from pathlib import Path
from typing import Any

from selfalign.records import Completion, Judgment, Message, PreferencePair, Prompt, content_id
from selfalign.runs.files import write_json, write_rows

HARM = (
    "</script><script>document.title='harmed'</script>"
    "<img src=x onerror=\"document.title='harmed'\">\u202eevil"
)
"""Text of which nothing may ever run, and whose mark must not turn what stands beside it."""


def prompt_of(text: str) -> Prompt:
    return Prompt.of([Message(role="user", content=text)], source="made")


def completion(stage: str, prompt: Prompt, sample: int, text: str | None) -> Completion:
    return Completion(
        completion_id=content_id(stage, prompt.prompt_id, str(sample)),
        prompt_id=prompt.prompt_id,
        sample=sample,
        text=text,
        finish_reason="stop" if text is not None else "prompt_too_long",
        num_tokens=len((text or "").split()),
    )


def judgment(candidate: Completion, sample: int, score: float | None, text: str) -> Judgment:
    return Judgment(
        judgment_id=content_id("judgment", candidate.completion_id, str(sample)),
        completion_id=candidate.completion_id,
        prompt_id=candidate.prompt_id,
        sample=sample,
        score=score,
        reason=None if score is not None else "no_score",
        text=text,
        attempts=1,
    )


def pair_of(
    prompt: Prompt, chosen: Completion, rejected: Completion, rewards: tuple[float, float]
) -> PreferencePair:
    return PreferencePair(
        pair_id=content_id(chosen.completion_id, rejected.completion_id),
        prompt_id=prompt.prompt_id,
        messages=prompt.messages,
        chosen_id=chosen.completion_id,
        rejected_id=rejected.completion_id,
        chosen=chosen.text or "",
        rejected=rejected.text or "",
        reward_chosen=rewards[0],
        reward_rejected=rewards[1],
        margin=rewards[0] - rewards[1],
        chosen_tokens=chosen.num_tokens,
        rejected_tokens=rejected.num_tokens,
    )


def write_iteration(root: Path, number: int, texts: list[str], harm: str) -> None:
    """Write prompts with three candidates each, of rewards 5, 3 and none, and a pair of the first two."""
    stage = f"iteration-{number}"
    prompts = [prompt_of(f"{text} {number}?") for text in texts]
    candidates, judgments, pairs = [], [], []
    for prompt in prompts:
        said = ["good answer", f"bad {harm} answer", None]
        three = [completion(stage, prompt, sample, text) for sample, text in enumerate(said)]
        candidates += three
        judgments += [judgment(three[0], k, 5, f"Perfect. {harm}") for k in range(2)]
        judgments += [judgment(three[1], 0, 3, "So so."), judgment(three[1], 1, None, "I can't say.")]
        pairs.append(pair_of(prompt, three[0], three[1], (5, 3)))
    for name, rows in (
        ("prompts", prompts),
        ("candidates", candidates),
        ("judgments", judgments),
        ("pairs", pairs),
    ):
        write_rows(root / stage / f"{name}.jsonl", rows)  # type: ignore[arg-type]


def write_answers(root: Path, models: list[str], count: int, harm: str = "") -> None:
    """Write held-out prompts and an answer of each model to each of them."""
    prompts = [prompt_of(f"Held out {number}?{harm}") for number in range(count)]
    write_rows(root / "data" / "held_out.jsonl", prompts)
    place = root / "evaluation"
    write_json(place / "plan.json", {"models": models, "tasks": ["head_to_head"], "not_run": {}})
    for model in models:
        rows = [completion(model, p, 0, f"{model} says {n}.{harm}") for n, p in enumerate(prompts)]
        write_rows(place / model / "head_to_head_answers.jsonl", rows)
        write_json(
            place / model / "manifests" / "head_to_head_answers.json",
            manifest(f"{model}/head_to_head_answers"),
        )


def manifest(stage: str, **more: Any) -> dict[str, Any]:
    return {
        "stage": stage, "fingerprint": "f", "parts": {}, "outputs": {}, "figures": {"rows": 3},
        "warnings": [], "seconds": 1.5, "finished": "2026-01-01T00:00:00+00:00", **more,
    }  # fmt: skip


def write_models(root: Path, model: Path) -> None:
    """Give a run M0 and M1 that the scripted engine takes for models."""
    model.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (model / name).touch()
    write_json(root / "manifest.json", {"seed": 7, "model": {"name": str(model)}, "invocations": []})
    write_json(root / "eft" / "manifests" / "train.json", manifest("eft/train"))
    (root / "eft" / "model").symlink_to(model)


def write_run(root: Path, harm: str = "", **recipe: Any) -> Path:
    """Write a finished run of two iterations whose models have answered, voted on by nobody."""
    write_iteration(root, 1, ["What is water", "Why is the sky blue"], harm)
    write_iteration(root, 2, ["How are you"], harm)
    write_answers(root, ["M0", "M1", "M2"], 4, harm)
    resolved = {"method": "self_rewarding", "policy": {"model": f"m{harm}"}, "engine": {"kind": "scripted"}}
    write_json(root / "recipe.resolved.json", resolved | recipe)
    write_json(root / "manifest.json", {"seed": 7, "model": {"name": "m"}, "invocations": []})
    done = manifest("iteration-1/pairs", warnings=[f"w{harm}"])
    write_json(root / "iteration-1" / "manifests" / "pairs.json", done)
    events = [{"event": "run_started"}, {"event": "run_finished"}]
    (root / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return root
