"""The flags that name a data set, the same in every script that reads one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataset_scripts.settings import SkippingSettings
from dataset_scripts.sources import SOURCES
from melanoma_fair_xai.base.flags import flag

if TYPE_CHECKING:
    from melanoma_fair_xai.data.loading import Records


@dataclass
class DataArguments(SkippingSettings):
    dataset_name: str = flag(
        "phantom", f"{', '.join(SOURCES)}, or a folder or Hub id that load_dataset reads.", shown=False
    )
    dataset_config_name: str | None = flag(None, "Configuration of the data set.", shown=False)
    data_dir: str | None = flag(
        None,
        f"Folder of the raw files ({', '.join(s.name for s in SOURCES.values() if s.has_raw_files)}).",
        free=True,
    )
    split_manifest: str | None = flag(
        None, "A split_manifest.csv that fixes the splits; refused if a lesion crosses them.", shown=False
    )
    image_column_name: str = flag("image", "Column of the images in your own data set.", shown=False)
    label_column_name: str | None = flag(None, "Column of the labels in your own data set.", shown=False)
    positive_labels: list[str] = flag([], "Its labels that mean melanoma.", shown=False)
    lesion_column_name: str | None = flag(None, "Column of the group that is never split.", shown=False)

    def load(self, own_columns: Sequence[str] = ()) -> Records:
        """The records that the flags name, with `own_columns` besides; raises what `load_records` raises."""
        from melanoma_fair_xai.data.loading import ColumnNames, load_records

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
