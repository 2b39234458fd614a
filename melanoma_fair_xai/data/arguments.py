"""The flags that name a data set, the same in every script that reads one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dataset_scripts.sources import SOURCES
from melanoma_fair_xai.data.loading import ColumnNames, Records, load_records


@dataclass
class DataArguments:
    dataset_name: str = field(
        default="phantom",
        metadata={"help": f"{', '.join(SOURCES)}, or a folder or Hub id that load_dataset reads."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": f"Folder of the raw files ({', '.join(s.name for s in SOURCES.values() if s.has_raw_files)})."
        },
    )
    split_manifest: str | None = field(
        default=None,
        metadata={"help": "A split_manifest.csv that fixes the splits; refused if a lesion crosses them."},
    )
    max_skipped_share: float = field(
        default=0.05, metadata={"help": "The share of unusable images above which the run stops."}
    )
    image_column_name: str = field(default="image", metadata={"help": "Column of the images in your own data set."})
    label_column_name: str | None = field(
        default=None, metadata={"help": "Column of the labels in your own data set."}
    )
    positive_labels: list[str] = field(default_factory=list, metadata={"help": "Its labels that mean melanoma."})
    lesion_column_name: str | None = field(default=None, metadata={"help": "Column of the group that is never split."})

    def load(self, own_columns: Sequence[str] = ()) -> Records:
        """The records that the flags name, with `own_columns` besides; raises what `load_records` raises."""
        columns = ColumnNames(
            self.image_column_name,
            self.label_column_name,
            tuple(self.positive_labels),
            self.lesion_column_name,
            tuple(own_columns),
        )
        return load_records(
            self.dataset_name,
            self.dataset_config_name,
            self.data_dir,
            columns,
            self.split_manifest,
            self.max_skipped_share,
        )
