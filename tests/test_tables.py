"""Tables and folders of sets from end to end: loaders, commands and saved models."""
import pandas as pd
import pytest
from fastai.vision.all import Path, load_learner
from PIL import Image

from vidseq.cli import main
from vidseq.data.block import VideoDataLoaders
from vidseq.data.splits import clip_paths, leaked_groups
from vidseq.deploy.saving import load_pretrained, save_pretrained
from vidseq.models.conv3d import Conv3dModel
from vidseq.train.learner import video_learner

small = dict(seq_len=2, image_size=16, bs=2, num_workers=0)


def make_clips(folder, names):
    "Write folders of two frames"
    for o in names:
        (folder/o).mkdir(parents=True)
        for i in range(2): Image.new('RGB', (24,16), (100*i,)*3).save(folder/o/f'{i}.jpg')
    return folder


@pytest.fixture
def sets(tmp_path):
    "Return a data set with the folders `train`, `val` and `test`"
    folders = [f'{s}/{c}' for s in ('train','val','test') for c in ('None','007')]
    return make_clips(tmp_path/'data', [f'{o}/{i}' for o in folders for i in range(2)])


def test_split_excludes_the_test_set(sets, tmp_path, capsys):
    "The table of `vidseq split` has the sets of the folders, and loaders read the classes as written"
    assert main(['split', str(sets), '--out', str(tmp_path/'split.csv')]) == 0
    table = pd.read_csv(tmp_path/'split.csv', dtype=str, keep_default_na=False)
    sides = {o.split('/')[0]: v for o,v in zip(table['clip'], table['is_valid'])}
    assert sides == {'train': 'False', 'val': 'True'} and len(table) == 8
    assert '4 clips in test are neither' in capsys.readouterr().err
    dls = VideoDataLoaders.from_csv(tmp_path, 'split.csv', folder='data', valid_col='is_valid', **small)
    assert list(dls.vocab) == ['007','None']
    assert {o.parent.parent.name for o in clip_paths(dls.valid_ds)} == {'val'}


def test_split_covers_every_class(tmp_path, capsys):
    folder = make_clips(tmp_path/'data', [f'c{c}/{i}' for c in range(6) for i in range(3)])
    for seed in range(5):
        assert main(['split', str(folder), '--seed', str(seed)]) == 0
        rows = [o.split(',') for o in capsys.readouterr().out.splitlines()[1:]]
        expected = {(f'c{i}',o) for i in range(6) for o in ('True','False')}
        assert {(label,side) for _,label,side in rows} == expected


@pytest.mark.parametrize('labels', [['0','1'], ['007','008'], ['None','NA'], ['0.5','1.0']])
def test_a_saved_model_has_the_classes_of_the_table(tmp_path, labels):
    "The classes of a saved model are those of the csv file; whole numbers are integers of Python"
    names = [f'{i:04}' for i in range(8)]
    make_clips(tmp_path, names)
    rows = [f'{o},{labels[i%2]}' for i,o in enumerate(names)]
    (tmp_path/'labels.csv').write_text('\n'.join(['clip,label', *rows]))
    dls = VideoDataLoaders.from_csv(tmp_path, seed=0, **small)
    save_pretrained(video_learner(dls, Conv3dModel), tmp_path/'model')
    vocab = list(load_pretrained(tmp_path/'model').dls.vocab)
    assert vocab == ([0,1] if labels == ['0','1'] else sorted(labels))


def test_groups_survive_an_export(tmp_path):
    "An exported learner remembers groups by a pattern; a lambda is lost, and the groups are unknown"
    folder = make_clips(tmp_path/'data', [f'{c}/p{p}_{i}' for c in 'ab' for p in range(4) for i in range(2)])
    for group,known in (('^[^_]+', True), (lambda o: o.name[:2], False)):
        dls = VideoDataLoaders.from_folder(folder, group=group, seed=0, **small)
        assert leaked_groups(dls) == []
        learn = video_learner(dls, Conv3dModel)
        learn.export(tmp_path/'export.pkl')
        found = load_learner(tmp_path/'export.pkl').dls.group
        assert (found and found(Path('p1_0'))) == ('p1' if known else None)
