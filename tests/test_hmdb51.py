"Test loaders with the official splits of a small HMDB51, and its lists in `ListSplitter`"
import shutil

import pytest

from vidseq.data.block import VideoDataLoaders
from vidseq.data.list_splitter import ListSplitter
from vidseq.data.loader import get_clips
from vidseq.data.splits import GroupSplitter, dls_group
from vidseq.datasets.hmdb51 import hmdb_group, hmdb51_splits

classes = ('Grow','MoveLeft','Shrink')
codes = (1,1,1,2,2,0)
titles = ('April_09','April_09','RATRACE','Movie_2','Movie_2','Rhythm')


@pytest.fixture
def small_hmdb51(make_shapes, tmp_path):
    "Return the class folders of a small HMDB51, with its lists beside it"
    lists,videos = tmp_path/'testTrainMulti_7030_splits',tmp_path/'hmdb51_org'
    lists.mkdir()
    for c in classes:
        (videos/c).mkdir(parents=True)
        names = [f'{o}_{c}_f_nm_np1_fr_med_{i}.avi' for i,o in enumerate(titles)]
        sources = sorted((make_shapes((64,48))/c).iterdir())
        for source,name in zip(sources, names): shutil.copy(source, videos/c/name)
        lines = (f'{name} {code} \n' for name,code in zip(names, codes))
        (lists/f'{c}_test_split1.txt').write_text(''.join(lines))
    return videos


def names(ds): return sorted(o.name for o in ds.items)


def test_loaders_with_the_official_split(small_hmdb51):
    train,valid = hmdb51_splits(small_hmdb51)
    dls = VideoDataLoaders.from_hmdb51(small_hmdb51, bs=3, seq_len=4, image_size=32, num_workers=0)
    assert dls_group(dls) is hmdb_group
    assert names(dls.train_ds) == sorted(train.attrgot('name')) and len(train) == 9
    assert names(dls.valid_ds) == sorted(valid.attrgot('name')) and len(valid) == 6
    assert list(dls.vocab) == list(classes)
    x,y = dls.one_batch()
    assert len(x) == 4 and x[0].shape == (3,3,32,32) and len(y) == 3


def test_one_list_of_all_classes_gives_the_same_split(small_hmdb51, tmp_path):
    lists = sorted((tmp_path/'testTrainMulti_7030_splits').iterdir())
    (tmp_path/'all.txt').write_text(''.join(o.read_text() for o in lists))
    clips = get_clips(small_hmdb51)
    splits = ListSplitter(tmp_path/'all.txt')(clips)
    for side,expected in zip(splits, hmdb51_splits(small_hmdb51)): assert set(clips[side]) == set(expected)


def test_clips_of_a_title_stay_together(small_hmdb51):
    clips = get_clips(small_hmdb51)
    train,valid = GroupSplitter(hmdb_group, valid_pct=.3, seed=0)(clips)
    sides = [{hmdb_group(o) for o in clips[side]} for side in (train, valid)]
    assert sides[0] | sides[1] == set(titles) and not sides[0] & sides[1]
