"""Trackers (TensorBoard by default) that a resumed run goes on writing to."""

from typing import Any

import accelerate
import numpy as np

from melanoma_fair_xai.base.files import plain


def start_trackers(accelerator: accelerate.Accelerator, name: str, *instances: Any, step: int = 0) -> None:
    """Start what `log_with` named, with the fields of the dataclasses as hyper-parameters.

    `step` is the step resumed from: TensorBoard then hides what a killed run had logged after it.
    """
    config = {}
    for instance in instances:
        for key, value in plain(vars(instance)).items():
            config[key] = value if isinstance(value, bool | int | float | str) else str(value)
    accelerator.init_trackers(name, config, init_kwargs={"tensorboard": {"purge_step": step + 1}} if step else {})


def log_images(accelerator: accelerate.Accelerator, name: str, images: np.ndarray, step: int) -> None:
    """Send images, uint8 (n, height, width, 3), to those trackers that take any."""
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({name: images}, step=step, **options)
