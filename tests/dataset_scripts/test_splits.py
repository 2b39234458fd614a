import numpy as np
import pandas as pd
import pytest

from dataset_scripts import splits
from melanoma_fair_xai.base.errors import UserError


def drawn_lesions(n_lesions: int = 400, seed: int = 1) -> pd.DataFrame:
    """One row per image: lesion_id and stratum (a rare one among them), one to four images a lesion."""
    rng = np.random.default_rng(seed)
    strata = rng.choice(["nv", "mel", "df"], p=[0.8, 0.15, 0.05], size=n_lesions)
    rows = [(f"L{i:04d}", stratum) for i, stratum in enumerate(strata) for _ in range(rng.integers(1, 5))]
    return pd.DataFrame(rows, columns=["lesion_id", "stratum"])


def folds_by_lesion(table: pd.DataFrame, **kwargs) -> dict:
    return dict(
        zip(table["lesion_id"], splits.assign_folds(table["lesion_id"], table["stratum"], **kwargs), strict=True)
    )


def test_join_lesions_joins_chains_whatever_their_order():
    ids = ["a", "b", "c", "d", "e"]
    pairs = [("c", "d"), ("e", "d"), ("e", "b")]
    assert splits.join_lesions(ids, pairs) == ["a", "b", "b", "b", "b"]
    assert splits.join_lesions(ids, pairs[::-1]) == ["a", "b", "b", "b", "b"]
    assert splits.join_lesions(ids, []) == ids


def test_lesion_strata_marks_lesions_whose_images_differ():
    strata = splits.lesion_strata(["a", "a", "b", "b", "c"], ["x", "x", "x", "y", "y"], ["1", "1", "1", "1", "2"])
    assert strata.tolist() == ["x|1", "x|1", "mixed", "mixed", "y|2"]


def test_folds_keep_lesions_whole_and_depend_on_the_seed_and_the_sets_alone():
    table = drawn_lesions()
    folds = folds_by_lesion(table, seed=3)
    assigned = splits.assign_folds(table["lesion_id"], table["stratum"], seed=3)
    assert pd.Series(assigned).groupby(table["lesion_id"]).nunique().max() == 1
    assert set(assigned) == set(range(splits.N_FOLDS))
    shuffled = table.sample(frac=1, random_state=0)
    assert folds_by_lesion(shuffled, seed=3) == folds
    assert folds_by_lesion(table, seed=4) != folds


def test_folds_spread_each_stratum_and_the_images_evenly():
    table = drawn_lesions()
    table["fold"] = splits.assign_folds(table["lesion_id"], table["stratum"])
    lesions = table.drop_duplicates("lesion_id").groupby(["stratum", "fold"]).size().unstack()
    assert (lesions.max(axis=1) - lesions.min(axis=1)).max() <= 1
    assert lesions.sum().max() - lesions.sum().min() <= 1
    images = table.groupby("fold").size()
    assert images.max() - images.min() <= 0.03 * len(table)


def test_folds_refuse_a_lesion_of_two_strata():
    with pytest.raises(ValueError, match="lesion_strata"):
        splits.assign_folds(["a", "a"], ["x", "y"])


def test_fold_split_moves_with_the_test_fold():
    assert splits.fold_split(np.arange(5)).tolist() == ["test", "validation", "train", "train", "train"]
    assert splits.fold_split(np.arange(5), test_fold=4).tolist() == ["validation", "train", "train", "train", "test"]


@pytest.fixture
def manifest() -> pd.DataFrame:
    rows = [("i1", "a", "train"), ("i2", "a", "train"), ("i3", "b", "test")]
    return pd.DataFrame(rows, columns=["image_id", "lesion_id", "split"])


def test_a_manifest_comes_back_and_its_hash_knows_no_order(manifest, tmp_path):
    path = str(tmp_path / "m.csv")
    digest = splits.write_manifest(manifest.iloc[::-1], path)
    assert splits.read_manifest(path).equals(manifest.astype(str))
    assert digest == splits.manifest_hash(manifest) == splits.manifest_hash(splits.read_manifest(path))
    assert digest != splits.manifest_hash(manifest.replace("test", "validation"))


def test_a_leaking_manifest_is_refused_both_ways(manifest, tmp_path):
    path = tmp_path / "m.csv"
    leaking = manifest.assign(split=["train", "test", "test"])
    with pytest.raises(UserError, match="lesion a stands in more than one split"):
        splits.write_manifest(leaking, str(path))
    assert not path.exists()
    path.write_text(f"# sha256 {splits.manifest_hash(leaking)}\n{leaking.to_csv(index=False)}")
    with pytest.raises(UserError, match="lesion a stands in more than one split"):
        splits.read_manifest(str(path))


def test_an_altered_manifest_is_refused(manifest, tmp_path):
    path = tmp_path / "m.csv"
    splits.write_manifest(manifest, str(path))
    path.write_text(path.read_text().replace("i3,b,test", "i3,b,validation"))
    with pytest.raises(UserError, match="altered"):
        splits.read_manifest(str(path))


@pytest.mark.parametrize("text", ["", "image_id,lesion_id,split\ni1,a,train\n", "# sha256 0\nimage_id,split\n"])
def test_what_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(UserError, match="not a split manifest"):
        splits.read_manifest(str(tmp_path / "m.csv"))
    with pytest.raises(UserError, match="no such split manifest"):
        splits.read_manifest(str(tmp_path / "nowhere.csv"))


def test_a_manifest_with_an_image_twice_is_refused(manifest, tmp_path):
    path = tmp_path / "m.csv"
    doubled = pd.concat([manifest, manifest.iloc[:1]])
    with pytest.raises(UserError, match="image i1 stands more than once"):
        splits.write_manifest(doubled, str(path))
    path.write_text(f"# sha256 {splits.manifest_hash(doubled)}\n{doubled.to_csv(index=False)}")
    with pytest.raises(UserError, match="image i1 stands more than once"):
        splits.read_manifest(str(path))


@pytest.mark.parametrize("fold", range(5))
def test_another_fold_tests_other_lesions_and_loses_none(fold):
    rng = np.random.default_rng(0)
    lesions = np.array([f"lesion{number}" for number in rng.integers(0, 200, 400)])
    strata = np.array([f"stratum{name[-1] < '5'}" for name in lesions])
    given = splits.fold_split(splits.assign_folds(lesions, strata)).astype(object)
    given[lesions == lesions[0]] = "isic2018_test"
    split = splits.splits_of_fold(given, lesions, strata, fold)
    assert (split == splits.splits_of_fold(given, lesions, strata, fold)).all()
    splits.check_disjoint(lesions, split, "here")
    assert (split[lesions == lesions[0]] == "isic2018_test").all() and (split == "isic2018_test").sum() < 10
    shares = {name: (split == name).mean() for name in ("train", "validation", "test")}
    assert 0.15 < shares["test"] < 0.25 and 0.15 < shares["validation"] < 0.25
    following = splits.splits_of_fold(given, lesions, strata, (fold + 1) % 5)
    assert ((split == "validation") == (following == "test")).all()
    if fold == 0:
        assert (split == given).all()


def test_folds_are_named_k_of_five():
    assert [splits.parse_fold(f"{fold}/5") for fold in range(5)] == [0, 1, 2, 3, 4]
    for text in ("5/5", "1", "1/10", "-1/5", "a/5", ""):
        with pytest.raises(UserError, match="give 0/5 to 4/5"):
            splits.parse_fold(text)
