"""The perceptual hash: planted copies are found, different drawn lesions are not merged."""

import io

import numpy as np
import pandas as pd
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter
import pytest

from dataset_scripts.duplicates import duplicate_clusters, near_duplicates, perceptual_hash, read_duplicates
from melanoma_fair_xai.base.errors import UserError


def draw_lesion(seed: int, size: tuple[int, int] = (360, 270)) -> PIL.Image.Image:
    """A dark blob near the centre of skin with moles and hairs, like all the others: the hard case."""
    rng = np.random.default_rng(seed)
    width, height = size
    image = PIL.Image.new("RGB", size, tuple(int(v) for v in rng.normal((215, 170, 150), 12)))
    draw = PIL.ImageDraw.Draw(image)
    for radius, shade, count in ((60, 80, 1), (20, 100, 4), (7, 130, 15)):
        for _ in range(count):
            x, y = rng.normal((width / 2, height / 2), radius if count == 1 else 90)
            a, b = radius * rng.uniform(0.6, 1.3, 2)
            draw.ellipse((x - a, y - b, x + a, y + b), fill=tuple(int(v) for v in rng.normal(shade, 15, 3)))
    for _ in range(6):
        draw.line([tuple(rng.uniform(0, size)) for _ in range(2)], fill=(60, 40, 30), width=2)
    noise = np.asarray(image.filter(PIL.ImageFilter.GaussianBlur(3))) + rng.normal(0, 6, (height, width, 3))
    return PIL.Image.fromarray(noise.clip(0, 255).astype(np.uint8))


def jpeg(image: PIL.Image.Image, quality: int = 75) -> PIL.Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return PIL.Image.open(buffer)


def crop(image: PIL.Image.Image, left: float, top: float, right: float, bottom: float) -> PIL.Image.Image:
    width, height = image.size
    return image.crop((left * width, top * height, (1 - right) * width, (1 - bottom) * height))


COPIES = {
    "rescaled": lambda image: jpeg(image.resize((180, 135))),
    "squeezed": lambda image: image.resize((256, 256)),
    "recompressed": lambda image: jpeg(image, 20),
    "brightened": lambda image: image.point(lambda value: min(255, int(value * 1.15))),
    "grey": lambda image: image.convert("L"),
    "cropped": lambda image: jpeg(crop(image, 0.02, 0.03, 0.03, 0.02)),
    "cropped at one side": lambda image: crop(image, 0, 0, 0, 0.04),
    "mirrored": lambda image: jpeg(image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)),
    "upside down": lambda image: image.transpose(PIL.Image.Transpose.FLIP_TOP_BOTTOM),
    "turned": lambda image: jpeg(image.transpose(PIL.Image.Transpose.ROTATE_90)),
    "turned and rescaled": lambda image: jpeg(image.transpose(PIL.Image.Transpose.ROTATE_270).resize((150, 200))),
    "transposed": lambda image: image.transpose(PIL.Image.Transpose.TRANSPOSE),
}


@pytest.fixture(scope="module")
def lesions() -> list[PIL.Image.Image]:
    return [draw_lesion(seed) for seed in range(150)]


@pytest.fixture(scope="module")
def hashes(lesions) -> list[np.ndarray]:
    return [perceptual_hash(image) for image in lesions]


def test_different_lesions_are_not_merged(hashes):
    assert near_duplicates(hashes) == []


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_found_and_nothing_else(lesions, hashes, copy):
    copies = [perceptual_hash(COPIES[copy](image)) for image in lesions[:20]]
    expected = [(i, len(hashes) + i) for i in range(20)]
    assert near_duplicates(hashes + copies) == expected
    # Which of the two comes first does not matter, nor does the size of a block.
    assert near_duplicates(copies + hashes, block=7) == [(i, 20 + i) for i in range(20)]


def test_distances_agree_with_a_plain_loop(hashes):
    """The matrix products against counting differing bits, at a distance where strangers merge."""
    views = np.unpackbits(np.stack(hashes[:30]), axis=2).reshape(30, 16, 16, 16)
    odd = np.arange(16) % 2

    def poses(bits):
        for turned in (bits, bits.T):
            for flip in (0 * odd[None], odd[None], odd[:, None], odd[None] ^ odd[:, None]):
                yield turned ^ flip.astype(np.uint8)

    def distance(i, j):
        pairs = [(views[i, 0], pose) for pose in poses(views[j, 0])]
        pairs += [(views[i, 0], view) for view in views[j]] + [(views[j, 0], view) for view in views[i]]
        return min(int((a != b).sum()) for a, b in pairs)

    expected = [(i, j) for i in range(30) for j in range(i + 1, 30) if distance(i, j) <= 100]
    assert 10 < len(expected) < 425
    assert near_duplicates(hashes[:30], max_distance=100) == expected


def test_images_without_anything_on_them_are_like_nothing():
    rng = np.random.default_rng(0)
    shades = [PIL.Image.new("RGB", (300, 200), (shade, shade, shade)) for shade in (0, 128, 128, 255)]
    noisy = [PIL.Image.fromarray(rng.normal(128, 2, (200, 300)).astype(np.uint8)) for _ in range(2)]
    hashes = [perceptual_hash(image) for image in shades + noisy]
    assert hashes == [None] * 6
    lesion = perceptual_hash(draw_lesion(0))
    assert near_duplicates([*hashes, lesion, None, lesion]) == [(6, 8)]
    assert near_duplicates([]) == near_duplicates(hashes) == near_duplicates([lesion]) == []


@pytest.mark.slow
def test_real_lesions_are_not_merged(real_data):
    """HAM10000: of 50 million pairs, only images that were published as duplicates or of one lesion are merged."""
    folder = real_data / "ham10000"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    lesion_of = pd.read_csv(folder / "HAM10000_metadata.csv").set_index("image_id")["lesion_id"]
    published = pd.read_csv(folder / "newly_discovered_duplicates.csv")
    known = {frozenset(pair) for pair in published[["from_img", "to_img"]].map(lambda name: name[:-4]).to_numpy()}
    paths = sorted(folder.glob("HAM10000_images_part_*/*.jpg"))
    hashes = [perceptual_hash(PIL.Image.open(path)) for path in paths]
    pairs = [(paths[i].stem, paths[j].stem) for i, j in near_duplicates(hashes)]
    false = [pair for pair in pairs if lesion_of[pair[0]] != lesion_of[pair[1]] and frozenset(pair) not in known]
    assert false == []
    assert len(pairs) > 100 and sum(frozenset(pair) in known for pair in pairs) >= 2


# --- a given list ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("first,second\na,b\nb,c\n", [("a", "b"), ("b", "c")]),
        ("similarity,from_img,to_img\n0.98,a.jpg,b.jpg\n", [("a", "b")]),
        ("image,cluster\na,7\nb,9\nc,7\nd,7\n", [("a", "c"), ("c", "d")]),
        ("cluster\tmd5hash\n1\ta\n1\tb\n", [("a", "b")]),
    ],
)
def test_a_list_of_duplicates_has_pairs_or_clusters(tmp_path, text, expected):
    path = tmp_path / "duplicates.csv"
    path.write_text(text)
    assert sorted(read_duplicates(str(path), "abcd")) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first,second\na,b\nb,z\n", "line 3: second 'z'"),
        ("image,cluster\na,1\nz,1\n", "line 3: image 'z'"),
        ("image,group\na,1\nb,1\n", "column named cluster"),
        ("a,b\nb,c\n", "needs a header"),
        ("first,second\nx,y\n", "two columns of image ids"),
        ("", "duplicates.csv: "),
    ],
)
def test_a_list_of_duplicates_that_cannot_be_meant(tmp_path, text, message):
    path = tmp_path / "duplicates.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_duplicates(str(path), "abcd")


def test_clusters_are_listed_with_the_largest_first():
    records = pd.DataFrame(
        {
            "image_id": list("abcdef"),
            "lesion_id": list("abbddd"),
            "diagnosis": ["acne", "acne", "melanoma", "acne", "acne", "acne"],
            "fitzpatrick": ["I", "II", "I", "V", "V", "VI"],
        }
    )
    clusters = duplicate_clusters(records)
    assert clusters.to_dict("list") == {
        "lesion_id": ["d", "b"],
        "images": [3, 2],
        "diagnoses": ["acne", "acne; melanoma"],
        "fitzpatrick": ["V; VI", "I; II"],
        "image_ids": ["d e f", "b c"],
    }
    assert len(duplicate_clusters(records.assign(lesion_id=records["image_id"]))) == 0
