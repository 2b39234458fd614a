"""The command that prepares HAM10000, see the package."""

from dataclasses import dataclass

from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.base.flags import flag, parse_flags, with_default

from ..settings import DatasetPushArguments, PrepareArguments


@dataclass(kw_only=True)
class Arguments(PrepareArguments):
    output_dir: str = with_default(PrepareArguments, "output_dir", "data/ham10000")
    data_dir: str = flag(help="Folder of the raw files, zipped or not.")
    download: bool = flag(False, "First fetch what is not there from Harvard Dataverse.")


def main() -> None:
    description = "Prepare HAM10000 as Parquet with splits by lesion."
    args, push = parse_flags(Arguments, DatasetPushArguments, prog=f"python -m {__package__}", description=description)
    # Only now: these take `datasets` along, and neither --help nor a wrong flag need wait for it.
    from ..prepare import check_output_dir, next_step, prepare_parquet
    from ..publishing import check_dataset_push, push_dataset
    from .builder import HAM10000, download_raw, report

    check_output_dir(args.output_dir, args.overwrite_output_dir)
    check_dataset_push(push, args.output_dir)
    if args.download:
        download_raw(args.data_dir)
    builder = HAM10000(data_dir=args.data_dir, seed=args.seed, max_skipped_share=args.max_skipped_share)
    prepare_parquet(builder, args.output_dir, args.overwrite_output_dir, args.num_proc)
    print(report(builder))
    print(next_step(args.output_dir, "ham10000"))
    push_dataset(push, args.output_dir)


if __name__ == "__main__":
    run_command(main)
