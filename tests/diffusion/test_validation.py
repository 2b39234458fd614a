"""What a validation shows, against networks whose answer tells what they were asked for."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from diffusers import ImagePipelineOutput
from matplotlib.figure import Figure

from dataset_scripts.schema import SKIN_TYPES, UNKNOWN
from melanoma_fair_xai.diffusion import validation
from melanoma_fair_xai.diffusion.data import Conditions
from melanoma_fair_xai.diffusion.process import make_noise_scheduler
from melanoma_fair_xai.diffusion.validation import BANDS, REPEATS, draw_sheet, held_out_losses, sample_shared

SIZE = 12


class Told:
    """A pipeline whose images are of one colour that says what was asked, and which of its seeds came to it."""

    def __init__(self, *names: str):
        self.names = names

    def set_progress_bar_config(self, **options) -> None: ...

    def conditioner(self, conditions: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([conditions[name] for name in self.names], dim=1)

    def __call__(self, class_labels, generator, num_inference_steps, output_type):
        assert output_type == "np" and len(generator) == len(class_labels)
        colours = [colour(*ids, seeded.initial_seed()) for ids, seeded in zip(class_labels, generator, strict=True)]
        return ImagePipelineOutput(images=np.tile(np.array(colours)[:, None, None], (1, SIZE, SIZE, 1)) / 255)


def colour(first: int, second: int, seed: int = 0) -> tuple[int, int, int]:
    return 20 + 20 * int(first), 20 + 20 * int(second), 5 + seed % 7 * 30


@pytest.fixture
def labelled_cells(monkeypatch):
    """Reads a sheet drawn by `draw_sheet`: the colour at each pair of labels and number of a row."""
    drawn = []

    class Kept(Figure):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            drawn.append(self)

    monkeypatch.setattr(validation, "Figure", Kept)

    def read(path: Path) -> dict[tuple[str, str, int], tuple[int, ...]]:
        figure = drawn[-1]
        axis = figure.axes[0]
        figure.set_dpi(110)
        figure.draw_without_rendering()
        picture = np.asarray(PIL.Image.open(path))

        def at(x: float, y: float) -> tuple[int, ...]:
            column, row = axis.transData.transform((x, y)).round().astype(int)
            return tuple(picture[picture.shape[0] - 1 - row, column].tolist())

        return {
            (down.get_text(), across.get_text(), number): at(x, y)
            for number, (y, down) in enumerate(zip(axis.get_yticks(), axis.get_yticklabels(), strict=True))
            for x, across in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)
        }

    return read


def sheet(conditions: Conditions, pipeline: Told, path: Path) -> None:
    rows, columns, cells = validation.sheet_cells(conditions)
    options = {"seed": 0, "batch_size": 4, "num_inference_steps": 1}  # the last batch is not full
    images = sample_shared(Accelerator(cpu=True), pipeline, conditions.encode(cells), **options)
    draw_sheet(images, rows, columns, path, "planted")


def test_each_cell_of_the_sheet_shows_what_its_labels_say(labelled_cells, tmp_path):
    """Three diagnoses of which one was never seen, and all skin types but III."""
    counts = {"I": 9, "II": 8, "III": 0, "IV": 3, "V": 2, "VI": 1}
    types = [name for name in SKIN_TYPES if name != UNKNOWN]
    vocabularies = {"diagnosis": ["bcc", "df", "mel", "nv"], "fitzpatrick": types, "sex": ["female", "male"]}
    conditions = Conditions(
        vocabularies,
        {
            "diagnosis": {"bcc": 5, "df": 0, "mel": 90, "nv": 7},
            "fitzpatrick": counts,
            "sex": {"female": 3, "male": 4},
            "age": {"40": 9},
        },
    )
    sheet(conditions, Told("diagnosis", "fitzpatrick"), tmp_path / "sheet.png")
    found = labelled_cells(tmp_path / "sheet.png")
    assert [label for label, across, _ in found if across == "mel"] == ["I", "II", "IV", "V", "VI"]
    assert [across for _, across, number in found if number == 0] == ["bcc", "mel", "nv"]
    for (label, across, number), seen in found.items():
        seed = 3 * number + ["bcc", "mel", "nv"].index(across)
        expected = colour(vocabularies["diagnosis"].index(across), types.index(label), seed)
        np.testing.assert_allclose(seen, expected, atol=2, err_msg=f"{label} {across}")
    # What the labels do not name is left open.
    sheet(conditions, Told("sex", "sex"), tmp_path / "open.png")
    assert {seen[0] for seen in labelled_cells(tmp_path / "open.png").values()} == {colour(2, 2)[0]}


def test_without_skin_types_every_row_repeats_the_diagnoses_with_other_seeds(labelled_cells, tmp_path):
    conditions = Conditions({"diagnosis": ["mel", "nv"]}, {"diagnosis": {"mel": 1, "nv": 1}})
    sheet(conditions, Told("diagnosis", "diagnosis"), tmp_path / "sheet.png")
    found = labelled_cells(tmp_path / "sheet.png")
    assert len(found) == 2 * REPEATS
    for (label, across, number), seen in found.items():
        place = ["mel", "nv"].index(across)
        assert label == ""
        np.testing.assert_allclose(seen, colour(place, place, 2 * number + place), atol=2)


def test_the_sheet_has_the_most_frequent_names_in_the_order_of_the_vocabulary():
    words = list("abcdefghij")
    counts = dict(zip(words, (5, 1, 6, 7, 8, 2, 9, 10, 11, 12), strict=True))
    rows, columns, cells = validation.sheet_cells(Conditions({"diagnosis": words}, {"diagnosis": counts}))
    assert columns == list("acdeghij") and len(cells) == len(rows) * 8
    rows, columns, cells = validation.sheet_cells(Conditions({}, {"age": {"40": 9}}))
    assert columns == [UNKNOWN] and set(cells["age"]) == {UNKNOWN}


class Late(torch.nn.Module):
    """Predicts the black image, the more wrongly the later the timestep, and wrongly by 10 for diagnosis 1."""

    def forward(self, noisy, timesteps, vector):
        wrong = timesteps / 1000 + 10 * vector
        return ImageOutput(-1 + wrong[:, None, None, None].expand_as(noisy))


class ImageOutput:
    def __init__(self, sample: torch.Tensor):
        self.sample = sample


class Losing:
    """What `held_out_losses` reads of a pipeline."""

    scheduler = make_noise_scheduler("sample", "linear")
    config = SimpleNamespace(band_scales={"": 1.0})
    unet = Late()

    @staticmethod
    def conditioner(conditions: dict[str, torch.Tensor]) -> torch.Tensor:
        return conditions["diagnosis"].float()


@pytest.mark.parametrize("batch_size", [3, 64])
def test_held_out_errors_go_from_little_noise_to_all_of_it(batch_size):
    accelerator, alphas = Accelerator(cpu=True), Losing.scheduler.alphas_cumprod

    def losses(count: int, diagnosis: int = 0, seed: int = 0) -> np.ndarray:
        pixels, encoded = np.zeros((count, 4, 4, 3), np.uint8), {"diagnosis": np.full(count, diagnosis)}
        return np.array(
            held_out_losses(accelerator, Losing, alphas, pixels, encoded, seed=seed, batch_size=batch_size)
        )

    found = losses(20 * BANDS)
    edges = np.arange(BANDS + 1) / BANDS
    assert (found > edges[:-1] ** 2).all() and (found < edges[1:] ** 2).all()
    # The mean square of what is uniform in a band.
    np.testing.assert_allclose(found, (edges[1:] ** 3 - edges[:-1] ** 3) * BANDS / 3, atol=0.04)
    np.testing.assert_array_equal(found, losses(20 * BANDS))
    assert not np.array_equal(found, losses(20 * BANDS, seed=1))
    assert (losses(20 * BANDS, diagnosis=1) > 100).all()
    few = losses(2)
    assert np.isfinite(few[:2]).all() and np.isnan(few[2:]).all()
