import signal

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_runs import run_to_end, running


def test_each_step_is_logged_once_although_the_run_was_killed(tmp_path):
    flags = ("--report_to", "tensorboard", "--padding", "1000", "--step_seconds", "0.02")
    with running(tmp_path / "run", *flags) as run:
        run.wait_for("step 11")
        run.signal(signal.SIGKILL)
    run_to_end(tmp_path / "run", "--resume_from_checkpoint", "latest")
    events = EventAccumulator(str(tmp_path / "run" / "logs")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 19))
    hyperparameters = (tmp_path / "run" / "logs").glob("*/hparams.yml")
    assert all("learning_rate: 0.05" in path.read_text() for path in hyperparameters)
