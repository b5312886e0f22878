"""The runtimes' own programs are asked in their own words, and their words are understood.

The texts are samples in the form of executor_runner and of benchmark_model, as their sources print
it: the programs themselves are not here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.devices.runner import Given, Job, Subject
from edgeprune.devices.vendor_runners import (
    BenchmarkModel,
    ExecutorRunner,
    vendor_answer,
    vendor_runner,
)
from edgeprune.errors import EdgepruneError, InputError

SAMPLES = Path(__file__).parent / "samples"
EXECUTOR_RUNNER = (SAMPLES / "executor_runner.txt").read_text()
BENCHMARK_MODEL = (SAMPLES / "benchmark_model.txt").read_text()
GIVEN = (Given("int32", "ids", (1, 128)), Given("int32", "mask", (1, 128)))


def job(kind: str, *files: str, **more: object) -> Job:
    subjects = tuple(Subject(file, file, GIVEN) for file in files)
    return Job(kind, "", subjects, **more)  # type: ignore[arg-type]


def test_executor_runner_gives_single_runs_without_its_warm_up() -> None:
    runner = vendor_runner("/data/local/tmp/executor_runner")
    asked = job("measure", "a.pte", "b.pte", rounds=15, threads=2)
    steps = runner.steps("./executor_runner", asked)
    assert [step.subject.file for step in steps] == ["a.pte", "b.pte"] * 2
    assert steps[0].words == (
        *("./executor_runner", "--model_path=a.pte", "--num_executions=30", "--cpu_threads=2"),
        "--inputs=ids,mask",
    )
    answer = vendor_answer(runner, asked, [EXECUTOR_RUNNER] * 4)
    assert [found.name for found in answer.found] == ["a.pte", "b.pte"]
    first = answer.found[0]
    assert (first.load_ms, first.first_run_ms) == (41.25, 9.75)
    # The first five runs were slower than the next ten.
    assert first.warmup_runs == 2 * 15
    assert first.samples_ms == (5.0625, 5.25, 5.0, 5.125, 5.0625) * 2
    assert answer.runtime == "executorch"
    assert (answer.moments, answer.affinity, answer.governor) == ((), (), None)
    assert first.peak_memory_mb is None and first.operators is None


def test_executor_runner_that_prints_only_a_sum_is_refused() -> None:
    old = "I 00:00:00.1 executorch:executor_runner.cpp:293] Model executed successfully 30 time(s)"
    with pytest.raises(EdgepruneError, match=r"a\.pte: executor_runner printed no iterations"):
        ExecutorRunner().found(Subject("a", "a.pte", ()), [old])


def test_benchmark_model_is_started_anew_for_each_two_runs() -> None:
    runner = vendor_runner("benchmark_model_plus_flex")
    asked = job("measure", "m.tflite", rounds=3, libraries=("libours.so",), threads=4)
    steps = runner.steps("./benchmark_model", asked)
    assert len(steps) == 2
    assert {
        *("--graph=m.tflite", "--num_threads=4", "--num_runs=2", "--min_secs=0"),
        *("--external_delegate_path=libours.so", "--input_layer=input0,input1"),
        *("--input_layer_shape=1,128:1,128", "--input_layer_value_files=input0:ids,input1:mask"),
    } <= set(steps[0].words)
    (found,) = vendor_answer(runner, asked, [BENCHMARK_MODEL] * 2).found
    assert found.samples_ms == pytest.approx((12.043, 11.98) * 2)
    assert found.load_ms == pytest.approx(33.37)
    assert found.first_run_ms == pytest.approx(21.913)
    assert found.warmup_runs == 2 * 20
    assert found.peak_memory_mb == 43.8125


def test_a_signature_is_named_to_benchmark_model() -> None:
    subject = Subject("m", "m.tflite", (), "tokens_32")
    (step,) = BenchmarkModel().steps("b", Job("memory", "", (subject,)))
    assert "--signature_to_run_for=tokens_32" in step.words


def test_benchmark_model_that_failed_is_quoted() -> None:
    text = "ERROR: Failed to load model m.tflite\nERROR: Benchmarking failed."
    with pytest.raises(EdgepruneError, match=r"no runs after warm-up.*Benchmarking failed"):
        BenchmarkModel().found(Subject("m", "m.tflite", ()), [text])


def test_what_they_cannot_do_is_said() -> None:
    wide = Subject("m", "m.tflite", (Given("int64", "ids", (1, 8)),))
    named = Subject("a", "a.pte", (), "short")
    for steps, problem in (
        (lambda: ExecutorRunner().steps("", job("profile", "a.pte")), "cannot do 'profile'"),
        (
            lambda: ExecutorRunner().steps("", job("measure", "a.pte", libraries=("x.so",))),
            "loads no libraries",
        ),
        (lambda: ExecutorRunner().steps("", Job("measure", "", (named,))), "one method"),
        (lambda: BenchmarkModel().steps("", job("run", "m.tflite")), "cannot do 'run'"),
        (
            lambda: BenchmarkModel().steps("", Job("memory", "", (wide,))),
            "ids: benchmark_model reads",
        ),
        (lambda: vendor_runner("/opt/run_model"), "got a runner called run_model"),
    ):
        with pytest.raises(InputError, match=problem):
            steps()
