"""A training script that writes down, in every pass, whose random numbers each image has, and the loss.

    recorded_training.py RECORD STOP SCRIPT FLAGS...

After step STOP, if it is not 0, it is asked to stop. The augmentation or the noise of an image differs between all
images and epochs.
"""

import importlib
import json
import os
import signal
import sys

from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.engine.training import Training


def record(path: str, stop: int) -> None:
    train_on = Training._train_on

    def recorded(self: Training, batch: dict) -> None:
        train_on(self, batch)
        drawn = batch["noise_seeds"] if "noise_seeds" in batch else batch["parameters"].sum(1)
        step, loss = self.losses[-1]
        images, losses = (self.accelerator.gather(values).tolist() for values in (drawn, loss[None]))
        if self.accelerator.is_main_process:
            with open(path, "a") as file:
                file.write(json.dumps({"step": step, "images": images, "losses": losses}) + "\n")
        if stop and self.progress.global_step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    Training._train_on = recorded


if __name__ == "__main__":
    _, path, stop, script, *flags = sys.argv
    record(path, int(stop))
    sys.argv = [f"{script}.py", *flags]
    sys.exit(run_command(importlib.import_module(script).main))
