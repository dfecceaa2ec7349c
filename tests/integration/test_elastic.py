"""Another number of processes and another ZeRO stage in the middle of an epoch: the same samples, the same curve."""

import signal
from pathlib import Path

import pytest

from tests.integration.commands import SGD, TINY, make_shards, records, result
from tests.integration.jobs import Job, clips, steps_done, wait_until

pytestmark = pytest.mark.integration

EPOCHS, PER_EPOCH, BATCH, CLIPS = 4, 6, 6, 36
# A batch that 1, 2 and 3 processes share, in micro-batches of at most 2 clips: 3, 2 (of 1 and 2) or 1 of them a step.
SETTINGS = (*SGD, f"epochs={EPOCHS}", f"batch={BATCH}", "micro_batch=2", "record_clips=true", "eval_every=4")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_shards(tmp_path_factory.mktemp("data"), "dfew", clips=45)
    path = made / "config.yaml"
    path.write_text(TINY.replace("shards: shards", f"shards: {made / 'shards'}"))
    return path


@pytest.mark.timeout(600)
def test_two_one_three_processes_and_zero_two_none_one(config: Path, tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "run"
    code, told = Job(config, f"run={straight}", *SETTINGS, "engine.zero=2", processes=2).end()
    assert code == 0, told
    # Stops in the middle of the second and of the third epoch.
    for processes, zero, until in ((2, 2, 8), (1, 0, 15)):
        job = Job(config, f"run={run}", *SETTINGS, f"engine.zero={zero}", processes=processes)
        assert wait_until(job, lambda until=until: steps_done(run) >= until)  # type: ignore[misc]
        job.send(signal.SIGTERM)
        code, told = job.end()
        assert code == 9, told
        assert steps_done(run) % PER_EPOCH, "the stop came between two epochs; choose another step"
    code, told = Job(config, f"run={run}", *SETTINGS, "engine.zero=1", processes=3).end()
    assert code == 0, told
    assert clips(run) == clips(straight)
    for epoch in range(EPOCHS):
        seen = [index for step, ids in clips(run) if (step - 1) // PER_EPOCH == epoch for index in ids]
        assert sorted(seen) == list(range(CLIPS)), "every sample once an epoch"
    losses = [[record["loss"] for record in records(which, "train")] for which in (run, straight)]
    assert len(losses[0]) == EPOCHS * PER_EPOCH
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert result(run)["count"] == result(straight)["count"] and result(run)["clips"] == 9
