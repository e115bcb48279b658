"""lm-eval's local-completions against its own transformers backend, on the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.coldstream import Server, serving

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("default")]

QUESTIONS = [
    ("The capital of France is", [" Paris", " London", " Rome", " Madrid"], 0),
    ("The opposite of hot is", [" warm", " cold", " red", " fast"], 1),
    ("Two plus two equals", [" five", " three", " four", " ten"], 2),
    ("The sun rises in the", [" west", " north", " south", " east"], 3),
    ("Water freezes at zero degrees", [" Celsius", " Fahrenheit", " Kelvin", " metres"], 0),
    ("A baby cat is called a", [" puppy", " kitten", " calf", " foal"], 1),
    ("The largest planet of the solar system is", [" Mars", " Venus", " Jupiter", " Earth"], 2),
    ("The author of Hamlet is", [" Dickens", " Homer", " Goethe", " Shakespeare"], 3),
    ("Bees make", [" honey", " milk", " bread and butter", " wool"], 0),
    ("There are seven days in a", [" month", " week", " year", " century"], 1),
    ("To cut wood you need a", [" spoon", " pillow", " saw", " cup of tea"], 2),
    ("The language that is spoken in Brazil is", [" Dutch", " Greek", " Finnish", " Portuguese"], 3),
]
TASK = """\
task: questions
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture(scope="module")
def server(demo_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(
        str(demo_model_dir), "--dtype", "float32", log_path=tmp_path_factory.mktemp("lm-eval") / "log"
    ) as running:
        running.wait_ready()
        yield running


def evaluated(folder: Path, backend: str, **arguments: Any) -> dict[str, Any]:
    """What lm-eval makes of the task with one of its backends."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    data = folder / "questions.jsonl"
    rows = ({"question": question, "choices": choices, "answer": answer} for question, choices, answer in QUESTIONS)
    data.write_text("\n".join(map(json.dumps, rows)))
    (folder / "questions.yaml").write_text(TASK % data)
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    found: dict[str, Any] = lm_eval.simple_evaluate(
        backend, model_args=arguments, tasks=["questions"], task_manager=tasks, bootstrap_iters=0, log_samples=True
    )
    return found


def loglikelihoods(found: dict[str, Any]) -> list[list[tuple[float, bool]]]:
    """Of every choice of every question: its logprob, and whether it is what greedy decoding says."""
    samples = sorted(found["samples"]["questions"], key=lambda sample: sample["doc_id"])
    return [[(float(score), greedy) for score, greedy in sample["filtered_resps"]] for sample in samples]


@pytest.mark.timeout(600)
def test_scores_equal_those_of_transformers(server: Server, demo_model_dir: Path, tmp_path: Path, monkeypatch):
    """Every loglikelihood within 1e-3, the same greedy verdicts and the same accuracy, from token ids with echo."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    ours = evaluated(
        tmp_path,
        "local-completions",
        model="m",
        base_url=server.url + "/v1/completions",
        tokenizer=str(demo_model_dir),
        tokenizer_backend="huggingface",
        tokenized_requests=True,
        num_concurrent=4,
    )
    theirs = evaluated(tmp_path, "hf", pretrained=str(demo_model_dir), dtype="float32", device="cpu", batch_size=4)
    pairs = [
        pair
        for one, other in zip(loglikelihoods(ours), loglikelihoods(theirs), strict=True)
        for pair in zip(one, other, strict=True)
    ]
    assert len(pairs) == 4 * len(QUESTIONS)
    furthest = max(abs(one[0] - other[0]) for one, other in pairs)
    accuracies = [
        {key: found["results"]["questions"][key] for key in ("acc,none", "acc_norm,none")} for found in (ours, theirs)
    ]
    print(f"{len(pairs)} loglikelihoods, at most {furthest:.1e} apart; {accuracies[0]}")
    assert furthest < 1e-3
    assert all(one[1] == other[1] for one, other in pairs)
    assert accuracies[0] == accuracies[1]
    assert accuracies[0]["acc,none"] > 0.5
