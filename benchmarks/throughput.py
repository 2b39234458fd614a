"""How near end-to-end training comes to the bare training step, beside two peers' input pipelines.

    python -m benchmarks.throughput --data_dir HAM10000 [--image_size 224] [--model resnet18]

Every contender trains the same net on the same images at the same batch size; rounds of all of them are interleaved,
and the medians over rounds are printed with their ratios. Run it on an otherwise idle machine. Where there is a GPU it
is used; the peers, as set up here, are for a CPU: leave them out by --no-peers.
"""

import argparse
import io
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
import timm
import timm.data
import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from tqdm.auto import tqdm

from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.classifier.arguments import TrainingArguments
from melanoma_fair_xai.classifier.learner import ClassifierLearner
from melanoma_fair_xai.classifier.models import create_classifier, parameter_groups
from melanoma_fair_xai.classifier.predict import predict_logits
from melanoma_fair_xai.classifier.task import Task
from melanoma_fair_xai.data.cache import decode_once, on_device
from melanoma_fair_xai.data.images import Preprocessing
from melanoma_fair_xai.data.loading import Records, load_records
from melanoma_fair_xai.data.targets import apply_target
from melanoma_fair_xai.engine.launch import resolve_precision
from melanoma_fair_xai.engine.training import Training

EPOCHS = 4  # over which memory should stay flat


def main() -> None:
    parser = argparse.ArgumentParser(description="End-to-end training rate beside the bare step and peers.")
    parser.add_argument("--data_dir", help="raw HAM10000; without it, phantoms are drawn")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--num_images", type=int, default=640)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="time the peers, too")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each contender in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", action="store_true", help="instead: time and memory against the number of images")
    parser.add_argument("--output", help="write the figures to this JSON file")
    arguments = parser.parse_args()
    records = load_records("ham10000", data_dir=arguments.data_dir) if arguments.data_dir else load_records("phantom")
    result = {"machine": machine(), **vars(arguments), "data_dir": bool(arguments.data_dir)}
    if arguments.growth:
        result["growth"] = [growth(records, count, arguments) for count in (1_000, 2_500, 5_000, 10_000)]
    else:
        result.update(compare(records, arguments))
    print(json.dumps(result, indent=2))
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(result, indent=2) + "\n")


def machine() -> dict:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__}
    return {"device": device, "threads": torch.get_num_threads(), **versions}


def compare(records: Records, arguments: argparse.Namespace) -> dict:
    """Rates in images/s (medians over the rounds) and their ratios to the bare step, and to the bare forward."""
    task = make_task(records, arguments.num_images, arguments)
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(task, folder)
        contenders: dict[str, Callable[[], Iterator[None]]] = {
            "bare step": lambda: bare_steps(task, arguments),
            "ours, end to end": lambda: our_steps(task, arguments, folder),
        }
        if arguments.peers:
            contenders |= {
                "timm's loader and augmentation, bf16 channels_last": lambda: timm_steps(task, arguments, folder),
                "Lightning, albumentations, torchvision, fp32": lambda: lightning_steps(task, arguments, folder),
            }
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        inference: dict[str, list[float]] = {"bare forward": [], "ours, inference": []}
        for _ in tqdm(range(arguments.rounds), desc="rounds"):
            for name, steps in contenders.items():
                rates[name].append(rate(steps(), arguments.steps, arguments.batch_size))
            for name, value in inference_rates(task, arguments).items():
                inference[name].append(value)
    medians = {name: statistics.median(values) for name, values in (rates | inference).items()}
    return {
        "images_per_second": medians,
        "rounds_images_per_second": rates | inference,
        "ratio_to_bare_step": {name: medians[name] / medians["bare step"] for name in rates},
        "ratio_to_bare_forward": {name: medians[name] / medians["bare forward"] for name in inference},
    }


def now() -> float:
    """Seconds, when all that a GPU was given is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def rate(steps: Iterator[None], count: int, batch_size: int, warm_up: int = 4) -> float:
    """Images per second over `count` steps after the warm-up."""
    for _ in range(warm_up):
        next(steps)
    start = now()
    for _ in range(count):
        next(steps)
    seconds = now() - start
    steps.close()
    return count * batch_size / seconds


def make_task(records: Records, count: int, arguments: argparse.Namespace) -> Task:
    """The first `count` images, nearly all of them for training."""
    keep = np.arange(len(records.table)) < count
    records, target, labels = apply_target(records.select(keep), "melanoma_vs_rest")
    records.table["split"] = np.where(np.arange(len(records.table)) < 32, "validation", "train")
    network = create_classifier(arguments.model, target.label_names, pretrained=False, image_size=arguments.image_size)
    preprocessing = Preprocessing.from_model(network)
    cache = decode_once(records.images, preprocessing)
    pixels = on_device(cache.pixels, PartialState().device)
    return Task(records, target, labels, pixels, preprocessing, cache.content)


def write_jpegs(task: Task, folder: str) -> None:
    """The original images as files by class, as the peers' data sets want them."""
    for number, (row, label) in enumerate(zip(task.records.images, task.labels, strict=True)):
        place = Path(folder) / "images" / task.target.label_names[label]
        place.mkdir(parents=True, exist_ok=True)
        PIL.Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").save(place / f"{number}.jpg", quality=90)


def new_network(task: Task, model: str) -> torch.nn.Module:
    torch.manual_seed(0)
    size = task.preprocessing.input_size[1]
    return create_classifier(model, task.target.label_names, pretrained=False, image_size=size).train()


def training_step(
    network: torch.nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor, bf16: bool
) -> None:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        logits = network(images)
    F.cross_entropy(logits.float(), labels).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def bare_steps(task: Task, arguments: argparse.Namespace) -> Iterator[None]:
    """The same batch again and again, already on the device."""
    device = PartialState().device
    network = new_network(task, arguments.model).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(parameter_groups(network, 0.05, 1e-3), lr=1e-3, fused=True)
    images, labels = (
        fixed_batch(task, arguments.batch_size, device),
        torch.arange(arguments.batch_size, device=device) % 2,
    )
    while True:
        training_step(network, optimizer, images, labels, resolve_precision("auto") == "bf16")
        yield


def fixed_batch(task: Task, batch_size: int, device: torch.device) -> torch.Tensor:
    size = task.preprocessing.input_size[1]
    return torch.randn(batch_size, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)


def our_steps(task: Task, arguments: argparse.Namespace, folder: str) -> Iterator[None]:
    """train_classifier.py's own loop: cache, augmentation, EMA, logging and all."""
    options = TrainingArguments(train_batch_size=arguments.batch_size, num_train_epochs=1000)
    accelerator = Accelerator(mixed_precision=resolve_precision("auto"))
    network = new_network(task, arguments.model)
    learner = ClassifierLearner(accelerator, network, task, task.rows("train"), options)
    run = Training(accelerator, Path(folder), learner, options)
    while True:
        for _ in run.epoch_steps():
            yield
        run.progress.finish_epoch()


def timm_steps(task: Task, arguments: argparse.Namespace, folder: str) -> Iterator[None]:
    """timm's dataset, loader and augmentation at two workers, bf16 and channels_last."""
    loader = timm.data.create_loader(
        timm.data.create_dataset("", root=f"{folder}/images"),
        input_size=task.preprocessing.input_size,
        batch_size=arguments.batch_size,
        is_training=True,
        num_workers=2,
        use_prefetcher=False,
        color_jitter=0.2,
        device=torch.device("cpu"),
    )
    network = new_network(task, arguments.model).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(parameter_groups(network, 0.05, 1e-3), lr=1e-3)
    while True:
        for images, labels in loader:
            images = images.contiguous(memory_format=torch.channels_last)
            training_step(network, optimizer, images, labels, resolve_precision("auto") == "bf16")
            yield


def lightning_steps(task: Task, arguments: argparse.Namespace, folder: str) -> Iterator[None]:
    """The original study's stack, in fp32: each step of a Lightning fit is one `next`."""
    import queue
    import threading

    import albumentations as A
    import lightning
    import torchvision
    from albumentations.pytorch import ToTensorV2

    size = task.preprocessing.input_size[1]
    transform = A.Compose(
        [
            A.RandomResizedCrop(size=(size, size), scale=(0.5, 1.0)),
            A.HorizontalFlip(),
            A.VerticalFlip(),
            A.ColorJitter(0.2, 0.2, 0.2, 0.0),
            A.Normalize(),
            ToTensorV2(),
        ]
    )
    dataset = torchvision.datasets.ImageFolder(
        f"{folder}/images", transform=lambda image: transform(image=np.asarray(image))["image"]
    )
    loader = torch.utils.data.DataLoader(dataset, arguments.batch_size, shuffle=True, num_workers=2, drop_last=True)
    done, go = queue.Queue(), queue.Queue()

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = new_network(task, arguments.model)

        def training_step(self, batch, _):
            return F.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    class Pace(lightning.Callback):
        def on_train_batch_end(self, trainer, *_):
            done.put(None)
            trainer.should_stop = go.get()

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Pace()],
    )
    thread = threading.Thread(target=trainer.fit, args=(Module(), loader), daemon=True)
    thread.start()
    try:
        while True:
            done.get()
            yield
            go.put(False)
    finally:
        go.put(True)
        thread.join()


def inference_rates(task: Task, arguments: argparse.Namespace) -> dict[str, float]:
    """Images/s of scoring all images, and of the bare forward on a fixed batch, both in fp32 as in the report."""
    accelerator = Accelerator()
    network = new_network(task, arguments.model).eval().to(accelerator.device, memory_format=torch.channels_last)
    rows = np.arange(len(task.pixels))
    batch = 64
    images = fixed_batch(task, batch, accelerator.device)
    count = len(rows) // batch
    with torch.inference_mode():
        network(images)
        start = now()
        for _ in range(count):
            network(images)
        bare = count * batch / (now() - start)
    start = now()
    predict_logits(accelerator, network, task.pixels, rows[: count * batch], task.preprocessing, batch, "scoring")
    return {"bare forward": bare, "ours, inference": count * batch / (now() - start)}


def growth(records: Records, count: int, arguments: argparse.Namespace) -> dict:
    """Seconds to decode `count` images once and to train an epoch on them, and the memory after each epoch."""
    start = now()
    task = make_task(records, count, arguments)
    decoded = now()
    seconds, resident = [], []
    with tempfile.TemporaryDirectory() as folder:
        steps = our_steps(task, arguments, folder)
        for epoch in range(EPOCHS):
            begun = now()
            for _ in tqdm(range(count // arguments.batch_size), desc=f"{count} images, epoch {epoch}"):
                next(steps)
            seconds.append(now() - begun)
            resident.append(psutil.Process().memory_info().rss)
    return {
        "images": count,
        "cache_seconds": decoded - start,
        "cache_bytes": task.pixels.nbytes,
        "epoch_seconds": statistics.median(seconds),
        "resident_bytes": resident,
    }


if __name__ == "__main__":
    run_command(main)
