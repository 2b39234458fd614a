"""The command that draws phantoms, see the package."""

import dataclasses

from melanoma_fair_xai.base.errors import run_command
from melanoma_fair_xai.base.flags import parse_flags, with_default

from ..settings import DatasetPushArguments, PrepareArguments
from .settings import PhantomSettings


@dataclasses.dataclass(kw_only=True)
class Arguments(PhantomSettings, PrepareArguments):
    output_dir: str = with_default(PrepareArguments, "output_dir", "data/phantom")


def main() -> None:
    description = "Draw phantoms (no patient) as Parquet with splits by lesion."
    args, push = parse_flags(Arguments, DatasetPushArguments, prog=f"python -m {__package__}", description=description)
    # Only now: these take `datasets` along, and neither --help nor a wrong flag need wait for it.
    from ..prepare import check_output_dir, next_step, prepare_parquet, summarise
    from ..publishing import check_dataset_push, push_dataset
    from ..splits import manifest_hash
    from .builder import Phantom

    builder = Phantom(**{field.name: getattr(args, field.name) for field in dataclasses.fields(PhantomSettings)})
    check_output_dir(args.output_dir, args.overwrite_output_dir)
    check_dataset_push(push, args.output_dir)
    prepare_parquet(builder, args.output_dir, args.overwrite_output_dir, args.num_proc)
    print(f"phantoms (drawn, no patient): {summarise(builder.records)}")
    print(f"split manifest {manifest_hash(builder.manifest)[:16]}")
    print(next_step(args.output_dir, "phantom"))
    push_dataset(push, args.output_dir)


if __name__ == "__main__":
    run_command(main)
