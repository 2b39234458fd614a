"""Fitzpatrick17k's images: which of them a folder has, whole and unmodified, and fetching those that it lacks."""

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from melanoma_fair_xai.base.errors import READ_ERRORS, read_problem
from melanoma_fair_xai.base.files import atomic_path
from melanoma_fair_xai.base.images import image_content_problem, open_image
from melanoma_fair_xai.base.tables import write_csv

from ..downloads import fetch_all
from ..duplicates import perceptual_hash
from ..raw_files import index_files, inspect_files, read_bytes

FAILURES_NAME = "download_failures.csv"


def content_problem(image_id: str, content: bytes, allow_modified: bool) -> str:
    """Why bytes are not the image of that id, "" if they are: whole, and with the id as MD5 unless that is waived."""
    problem = image_content_problem(content)
    if problem:
        return problem
    found = hashlib.md5(content).hexdigest()
    if allow_modified or found == image_id:
        return ""
    return f"modified: its md5 is {found}, not its name; --allow_modified_images takes it"


class ImageFile(NamedTuple):
    """What was found of an image: `file` is "" where there is none, `problem` is "" where it is usable."""

    image_id: str
    file: str = ""
    problem: str = "missing"
    modified: bool = False
    hash: np.ndarray | None = None


def inspect_image(found: tuple[str, Sequence[str]], allow_modified: bool, hashed: bool = True) -> ImageFile:
    """The first usable of an image's files, else the first; with its perceptual hash if `hashed`.

    `found` is the image's id, and references to its files.
    """
    image_id, references = found
    first = ImageFile(image_id)
    for reference in references:
        try:
            content = read_bytes(reference)
        except READ_ERRORS as error:
            problem = f"cannot be read ({read_problem(error)})"
        else:
            problem = content_problem(image_id, content, allow_modified)
        if not problem:
            modified = hashlib.md5(content).hexdigest() != image_id
            hash = perceptual_hash(open_image(content)) if hashed else None
            return ImageFile(image_id, reference, "", modified, hash)
        first = first if first.file else ImageFile(image_id, reference, problem)
    return first


def inspect_images(
    image_ids: Sequence[str],
    index: Mapping[str, Sequence[str]],
    allow_modified: bool,
    hashed: bool = True,
    num_proc: int = 1,
) -> pd.DataFrame:
    """`inspect_image` of many, by `num_proc` processes; `index` is that of `index_files`. A row per id, in order."""
    look = functools.partial(inspect_image, allow_modified=allow_modified, hashed=hashed)
    found = inspect_files(look, [(name, index.get(name, ())) for name in image_ids], num_proc)
    return pd.DataFrame(found, columns=ImageFile._fields)


def download_images(
    annotations: pd.DataFrame,
    folder: str,
    allow_modified: bool = False,
    requests_per_second: float = 2.0,
    num_proc: int = 1,
    **options,
) -> pd.DataFrame:
    """Fetch what `folder` lacks into its `images/`, and write what could not be had to `download_failures.csv` there.

    Files that are there and whole are kept, so an interrupted download goes on where it stopped. `options` go to
    `fetch_all`. Returns the failures: image_id, url, reason.
    """
    files = inspect_images(annotations["image_id"], index_files(folder), allow_modified, False, num_proc)
    lacking = annotations[(files["problem"] != "").to_numpy()]
    url_of = dict(zip(lacking["image_id"], lacking["url"], strict=True))
    failures = [(image_id, "", "the annotations give no URL") for image_id, url in url_of.items() if not url]
    wanted = {image_id: url for image_id, url in url_of.items() if url}
    print(f"{len(annotations) - len(lacking):,} images are there, {len(wanted):,} to fetch", flush=True)
    images = os.path.join(folder, "images")
    os.makedirs(images, exist_ok=True)
    try:
        for image_id, content, reason in fetch_all(wanted, requests_per_second=requests_per_second, **options):
            reason = reason or content_problem(image_id, content, allow_modified)
            if reason:
                failures.append((image_id, wanted[image_id], reason))
            else:
                with atomic_path(os.path.join(images, f"{image_id}.jpg")) as path:
                    path.write_bytes(content)
    finally:
        table = pd.DataFrame(failures, columns=["image_id", "url", "reason"])
        write_csv(table, os.path.join(folder, FAILURES_NAME))
    print(f"{len(url_of) - len(table):,} fetched; {len(table):,} could not be had, listed in {FAILURES_NAME}")
    return table
