import signal

import numpy as np
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_runs import run_to_end, running

from melanoma_fair_xai.engine.launch import create_accelerator
from melanoma_fair_xai.engine.trackers import log_images, start_trackers


def test_each_step_is_logged_once_although_the_run_was_killed(tmp_path):
    flags = ("--report_to", "tensorboard", "--padding", "1000", "--step_seconds", "0.02")
    with running(tmp_path / "run", *flags) as run:
        run.wait_for("step 11")
        run.signal(signal.SIGKILL)
    run_to_end(tmp_path / "run", "--resume_from_checkpoint", "latest")
    events = EventAccumulator(str(tmp_path / "run" / "logs")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 19))
    hyperparameters = (tmp_path / "run" / "logs").glob("*/hparams.yml")
    assert all("learning_rate: 0.05" in path.read_text() for path in hyperparameters)


class Gallery(GeneralTracker):
    """A tracker that takes images as those other than TensorBoard do: without a layout of their axes."""

    requires_logging_directory, tracker, name = False, None, "gallery"

    def __init__(self):
        super().__init__()
        self.images = []

    def store_init_configuration(self, values: dict) -> None:
        pass

    def log(self, values: dict, step: int | None = None) -> None:
        pass

    def log_images(self, values: dict, step: int | None = None) -> None:
        self.images.append((step, {name: images.shape for name, images in values.items()}))


def test_images_go_to_every_tracker_that_takes_them(tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    gallery = Gallery()
    accelerator = create_accelerator(cpu=True, log_with=[gallery, "tensorboard"], project_dir=tmp_path)
    start_trackers(accelerator, "logs")
    log_images(accelerator, "samples", np.zeros((2, 4, 6, 3), dtype=np.uint8), step=7)
    accelerator.end_training()
    assert gallery.images == [(7, {"samples": (2, 4, 6, 3)})]
    images = EventAccumulator(str(tmp_path / "logs")).Reload().Images("samples")
    assert [(image.step, image.width, image.height) for image in images] == [(7, 12, 4)]  # side by side
