"""What both trainings do around their work."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from melanoma_fair_xai.engine.launch import explained_errors, on_main_process, start_accelerator
from melanoma_fair_xai.engine.options import TrainingOptions
from melanoma_fair_xai.engine.run_folder import open_run_folder
from melanoma_fair_xai.hub.arguments import HubArguments
from melanoma_fair_xai.hub.publish import check_push, push_run


@contextlib.contextmanager
def published_run(
    options: TrainingOptions, hub: HubArguments, memory_flags: str
) -> Iterator[tuple[Accelerator, Path]]:
    """Processes, seed and run folder of a training, and at its end the push if it was asked for.

    `memory_flags` are named where memory runs out. UserError before the work if it could not be written or pushed.
    """
    set_seed(options.seed)
    with explained_errors(memory_flags):
        accelerator = start_accelerator(options)
        if hub.push_to_hub:
            on_main_process(accelerator, lambda: check_push(hub, options.output_dir))
        resume = options.resume_from_checkpoint is not None
        with open_run_folder(
            accelerator, options.output_dir, resume=resume, overwrite=options.overwrite_output_dir
        ) as folder:
            yield accelerator, folder
        accelerator.end_training()
        if hub.push_to_hub:
            on_main_process(accelerator, lambda: push_run(hub, options.output_dir))
