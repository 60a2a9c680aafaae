"""Run directories of self-rewarding made with the same pure functions as the stages use, and pages parsed."""

import json
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from selfalign.config import SelfRewardingRecipe
from selfalign.evaluation.judge_quality import judge_quality, length_baseline
from selfalign.judging import health, mean_rewards
from selfalign.pairs import make_pairs, pair_health
from selfalign.records import Completion, Judgment, Message, Prompt, RankedPrompt, RankedReply
from selfalign.report.dropped import Generation

Say = Callable[[str, str], str]
"""What is said, by kind of text and by a key that differs between texts."""

TRAINED = (
    "data/read",
    "sft/train",
    "sft/evaluate",
    "eft/judgments",
    "eft/examples",
    "eft/train",
    "eft/evaluate",
)
ITERATION = ("prompts", "candidates", "judgments", "pairs", "reference", "train", "evaluate")
STAGES = (*TRAINED, *(f"iteration-{t}/{stage}" for t in (1, 2) for stage in ITERATION))

HOSTILE = (
    "<script>alert(1)</script> </script></style></title><img src=x onerror=alert(1)> \" onclick='x' "
    "{{ 7 * 7 }} <!-- ]]> &lt;b&gt; \x00\x1b[31m\u202etxet\u202c \u2066 https://example.org/x.js"
)
HARMLESS = "{{ 7 * 7 }} <!-- ]]> &lt;b&gt; ␀␛[31m⟨U+202E⟩txet⟨U+202C⟩ ⟨U+2066⟩ https://example.org/x.js"


def calm(kind: str, key: str) -> str:
    return f"{kind} {key}"


class FakeRun:
    """Writes what the stages of a run leave, up to one of them."""

    def __init__(self, root: Path, say: Say = calm, prompts: int = 6, constant: bool = False) -> None:
        self.root, self.say, self.constant = root, say, constant
        self.prompts = [
            Prompt.of([Message(role="user", content=say("prompt", str(n)))], source=str(n))
            for n in range(prompts)
        ]
        self.ranked = [
            RankedPrompt(
                prompt_id=f"r{n}",
                messages=(Message(role="user", content="?"),),
                replies=tuple(
                    RankedReply(reply_id=f"r{n}/{k}", text="x" * (1 + k + n), rank=k) for k in range(3)
                ),
                source="",
            )
            for n in range(8)
        ]
        root.mkdir(parents=True)
        recipe = SelfRewardingRecipe().model_dump(mode="json") | {
            "judge": {"rubric": say("recipe", "rubric")}
        }
        self.json("recipe.resolved.json", recipe)
        machine = {
            "processor": "Some Processor", "cores": 2, "memory": 2**33,
            "accelerators": ["Some Accelerator"] * 2,
        }  # fmt: skip
        invocation = {
            "started": "2031-02-03T04:05:06+00:00", "selfalign": "9.8.7", "git_revision": None,
            "platform": "Some System", "machine": machine,
        }  # fmt: skip
        self.json(
            "manifest.json",
            {
                "method": "self_rewarding",
                "seed": 0,
                "model": {"name": say("model", "name"), "fingerprint": "f1"},
                "chat_template": None,
                "data": {"ift": {"path": say("data", "d1")}, "ranked": {"paths": ["d2"]}, "seed": 0},
                "invocations": [invocation],
            },
        )

    def until(self, last: str) -> "FakeRun":
        for stage in STAGES[: STAGES.index(last) + 1]:
            directory, _, name = stage.partition("/")
            figures = getattr(self, f"_{name}")(directory)
            manifest = {
                "stage": stage,
                "parts": {"prompts.per_iteration": 500},
                "figures": figures,
                "warnings": [self.say("warning", stage)] if name == "evaluate" else [],
                "seconds": 1.5,
                "finished": "2031-02-03T04:06:07+00:00",
            }
            self.json(f"{stage.replace('/', '/manifests/')}.json", manifest)
        return self

    def json(self, name: str, value: Any) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))

    def rows(self, name: str, rows: Sequence[BaseModel]) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(row.model_dump_json() + "\n" for row in rows))

    def _read(self, _: str) -> dict[str, Any]:
        self.rows("data/held_out.jsonl", self.ranked)
        ranked = {"rows": 4, "replies": 9, "tokens": 1}
        split = {"ranked": ranked, "held_out": ranked, "ranked_dropped": {}}
        return {"rows": 1234, "dropped": {"orphan": 3}, **split}

    def _train(self, directory: str) -> dict[str, Any]:
        rows = [{"step": n, "loss": 1 / n, "tokens": 8} for n in range(1, 6)]
        if directory.startswith("iteration"):
            rows = [row | {"rewards/margins": 0.1 * row["step"], "rewards/accuracies": 0.75} for row in rows]
        (self.root / directory).mkdir(exist_ok=True)
        (self.root / directory / "training.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"steps": 5, "loss_first": 1.0, "loss_last": 0.2, "training_tokens": 40}

    def _evaluate(self, directory: str) -> dict[str, Any]:
        ranked = self.ranked
        judgments = [self.judgment(reply.reply_id, reply.rank) for p in ranked for reply in p.replies]
        self.rows(f"{directory}/held_out_judgments.jsonl", judgments)
        figures = health(judgments, {j.completion_id: n for n, j in enumerate(judgments)})
        quality = judge_quality(
            ranked, mean_rewards(judgments), parse_rate=figures["parse_rate"], bootstrap=100
        )
        length = length_baseline(ranked, bootstrap=100)
        self.json(f"{directory}/judge_quality.json", {"judge": quality, "length": length})
        return {"rows": len(judgments), **figures}

    def _judgments(self, directory: str) -> dict[str, Any]:
        judgments = [
            self.judgment(f"{prompt.prompt_id}/{sample}", sample, k)
            for prompt in self.prompts
            for sample in range(4)
            for k in range(2)
        ]
        self.rows(f"{directory}/judgments.jsonl", judgments)
        return {
            "rows": len(judgments),
            **health(judgments, {j.completion_id: n for n, j in enumerate(judgments)}),
        }

    def judgment(self, completion_id: str, rank: int, k: int = 0) -> Judgment:
        score = 4.0 if self.constant else float(max(0, 5 - rank - len(completion_id) % 2 - k))
        unscored = completion_id.endswith("/3")
        return Judgment(
            judgment_id=f"{completion_id}:{k}", completion_id=completion_id, prompt_id="", sample=k,
            score=None if unscored else score, reason="no_score" if unscored else None,
            text=self.say("rationale", f"{completion_id}:{k}"), attempts=1,
        )  # fmt: skip

    def _examples(self, _: str) -> dict[str, Any]:
        return {
            "rows": 3, "replies": 9, "scores_agreed": {"0": 1, "4": 4}, "scores": {"0": 1, "4": 2},
            "dropped": {"tie": 4, "score_balance": 2},
        }  # fmt: skip

    def _prompts(self, directory: str) -> dict[str, Any]:
        self.rows(f"{directory}/prompts.jsonl", self.prompts)
        texts = [p.messages[0].content for p in self.prompts]
        replies = [f"{texts[0]} and more words of its own", "A", *texts, "left over, not refused"]
        self.rows(
            f"{directory}/generations.jsonl",
            [Generation(key=f"0:{n}", text=text, truncated=False) for n, text in enumerate(replies)],
        )
        return {
            "rows": len(self.prompts), "requests": 8, "dropped": {"near_duplicate": 7, "too_short": 1},
        }  # fmt: skip

    def _candidates(self, directory: str) -> dict[str, Any]:
        self.candidates = [
            Completion(
                completion_id=f"{prompt.prompt_id}/{sample}", prompt_id=prompt.prompt_id, sample=sample,
                text=self.say("answer", f"{prompt.prompt_id}/{sample}"),
                finish_reason="stop", num_tokens=9 + n,
            )
            for n, prompt in enumerate(self.prompts)
            for sample in range(4)
        ]  # fmt: skip
        self.rows(f"{directory}/candidates.jsonl", self.candidates)
        rows, tokens = len(self.candidates), sum(row.num_tokens for row in self.candidates)
        return {
            "rows": rows, "tokens": tokens, "mean_tokens": tokens / rows,
            "finish_reasons": {"stop": rows}, "prompts_with_identical_candidates": 0,
        }  # fmt: skip

    def _pairs(self, directory: str) -> dict[str, Any]:
        scores = {f"{p.prompt_id}/{sample}": 4.0 - sample for p in self.prompts for sample in range(4)}
        made = make_pairs(
            self.prompts, self.candidates, scores,
            strategy="best_worst", min_margin=0.0, keep_truncated=False, seed=0,
        )  # fmt: skip
        self.rows(f"{directory}/pairs.jsonl", made.pairs)
        return {"rows": len(made.pairs), **pair_health(made.pairs, made.dropped)}

    def _reference(self, _: str) -> dict[str, Any]:
        return {"rows": len(self.prompts), "too_long": 0}


class Page(HTMLParser):
    """A parsed page: its tags in order, its attributes, and its text."""

    VOID = ("meta", "br", "img", "link", "input", "hr", "polyline", "path", "rect", "circle")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
