"""The command that prepares Fitzpatrick17k, see the package."""

import os
from dataclasses import dataclass
from typing import Literal

from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.base.flags import flag, parse_flags, with_default

from ..settings import PrepareArguments
from .configurations import ANNOTATIONS_NAME, CONFIGURATIONS, DEFAULT_CONFIGURATION


@dataclass(kw_only=True)
class Arguments(PrepareArguments):
    output_dir: str = with_default(PrepareArguments, "output_dir", "data/fitzpatrick17k")
    data_dir: str = flag(help=f"Folder of {ANNOTATIONS_NAME} and the images.")
    config_name: Literal[tuple(CONFIGURATIONS)] = flag(DEFAULT_CONFIGURATION, "Which of the annotated rows.")
    download: bool = flag(False, "First fetch what is not there from the atlases.")
    requests_per_second: float = flag(2.0, "Of --download.", above=0)
    allow_modified_images: bool = flag(False, "Take images whose MD5 is not their name.")
    duplicates: str | None = flag(
        None,
        "CSV of known duplicates: two columns of ids, or one and `cluster`; default: found by a perceptual hash.",
    )


def main() -> None:
    description = "Prepare Fitzpatrick17k as Parquet with splits by lesion, for local use."
    (args,) = parse_flags(Arguments, prog=f"python -m {__package__}", description=description)
    # Only now: these take `datasets` along, and neither --help nor a wrong flag need wait for it.
    from melanoma_fair_xai.base.processes import available_cores

    from ..prepare import check_output_dir, next_step, prepare_parquet
    from ..splits import manifest_hash
    from .annotations import read_annotations
    from .builder import Fitzpatrick17k
    from .images import download_images

    check_output_dir(args.output_dir, args.overwrite_output_dir)
    num_proc = args.num_proc or available_cores()
    if args.download:
        annotations = read_annotations(os.path.join(args.data_dir, ANNOTATIONS_NAME))
        _, chosen = CONFIGURATIONS[args.config_name]
        wanted = annotations[chosen(annotations) & (annotations["excluded"] == "")]
        download_images(wanted, args.data_dir, args.allow_modified_images, args.requests_per_second, num_proc)
    builder = Fitzpatrick17k(
        args.config_name,
        data_dir=args.data_dir,
        duplicates=args.duplicates,
        allow_modified_images=args.allow_modified_images,
        seed=args.seed,
        max_skipped_share=args.max_skipped_share,
    )
    prepare_parquet(builder, args.output_dir, args.overwrite_output_dir, num_proc)
    print(f"split manifest {manifest_hash(builder.manifest)[:16]}; for local use only")
    print(next_step(args.output_dir, "fitzpatrick17k"))


if __name__ == "__main__":
    run_command(main)
