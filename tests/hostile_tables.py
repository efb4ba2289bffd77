"""Hostile tables, labels, folders of sets and splits."""
import contextlib
import io
import json
import os
import pickle

import numpy as np
import pandas as pd
import torch
from fastai.vision.all import (CategoryBlock, IndexSplitter, L, MultiCategoryBlock, Path, RandomSplitter,
                               RegexLabeller, RegressionBlock, RegressionSetup, parent_label, using_attr)
from hostile import gives, refuses
from PIL import Image

from vidseq.data.block import VideoDataLoaders, get_action_dataloaders
from vidseq.data.list_splitter import ListSplitter
from vidseq.data.loader import get_clips
from vidseq.data.rules import default_splitter
from vidseq.data.splits import clip_paths, dls_group, leaked_groups
from vidseq.video.decode import VideoError

small = dict(seq_len=1, image_size=8, bs=2, num_workers=0, seed=1)
_jpg = io.BytesIO()
Image.new('RGB', (12,8)).save(_jpg, 'jpeg')


def make_clips(folder, names):
    "Write folders with one frame"
    for o in names:
        (folder/o).mkdir(parents=True, exist_ok=True)
        (folder/o/'1.jpg').write_bytes(_jpg.getvalue())
    return folder


def summary(dls):
    "Return the classes, or the number of values of a regression"
    tfms = dls.train_ds.tls[1].tfms.fs
    return f'{dls.c} numbers' if any(isinstance(o, RegressionSetup) for o in tfms) else list(dls.vocab)


ten = [f'{c}/c{i}' for c in 'AB' for i in range(5)]


def csv_dls(text, **kwargs):
    "Return an action that reads the table `text` with ten clips `A/c0` … `B/c4`"
    def act(folder):
        data = text if isinstance(text, bytes) else text.encode()
        (make_clips(folder, ten)/'labels.csv').write_bytes(data)
        return VideoDataLoaders.from_csv(folder, **small | kwargs)
    return act


def table(labels, clips=ten, header='clip,label', sep=','):
    "Return a table of clips and labels as text"
    return '\n'.join([header, *(f'{o}{sep}{l}' for o,l in zip(clips, labels))]) + '\n'


def then(act, f):
    "Return an action that applies `f` to the result of `act`"
    return lambda folder: f(act(folder))


def returns(name, value):
    "Decorate an action that returns `value`"
    return lambda act: gives(name, act, value)


def reads(name, act, value): gives(f'table: {name}', then(act, summary), value)


def refused(name, act, *words): refuses(f'table: {name}', act, *words)


# Cells that pandas would change

for cells in (['None','Run'], ['NA','NaN'], ['null','nan'], ['007','010'], ['0.5','1.0'], ['1e3','2e3'],
              ['True','False'], ['inf','-inf'], ['1_000','2_000'], ['+1','+2'], ['01','2'], ['-0','1'],
              ['2020-01-01','2020-01-02'], ['=cmd','@x'], ['ä','\u4f60'], ['1,5','2,5'], ['١','٢']):
    quoted = [f'"{o}"' for o in cells]*5
    reads(f'text {cells} is text', csv_dls(table(quoted)), sorted(cells))
reads('whole numbers are ints', csv_dls(table([0,1]*5)), [0,1])
reads('whole numbers in numerical order', csv_dls(table([10,9]*5)), [9,10])
reads('whole numbers as text by vocab', csv_dls(table([1,0]*5), vocab=['1','0']), ['1','0'])
reads('spaces around labels', csv_dls(table(['x',' x','x ','y','y\t']*2)), ['x','y'])
reads('numbers by y_block', csv_dls(table([.5,1,2,3,'1e1']*2), y_block=RegressionBlock), '1 numbers')
reads('byte order mark', csv_dls(b'\xef\xbb\xbf'+table('xy'*5).encode(), fn_col='clip'), ['x','y'])
reads('UTF-16', csv_dls(table('xy'*5).encode('utf-16')), ['x','y'])
reads('carriage returns', csv_dls(table('xy'*5).replace('\n', '\r\n')), ['x','y'])
reads('semicolons', csv_dls(table('xy'*5, header='clip;label', sep=';')), ['x','y'])
reads('tabs', csv_dls(table('xy'*5, header='clip\tlabel', sep='\t')), ['x','y'])
reads('no header', csv_dls(table('xy'*5, header=''), header=None), ['x','y'])
reads('separator at the end', csv_dls(table(['x,','y,']*5, header='clip,label,')), ['x','y'])
reads('paths with backslashes', csv_dls(table('xy'*5, [o.replace('/', '\\') for o in ten])), ['x','y'])
reads('spaces around paths', csv_dls(table('xy'*5, [f' {o} ' for o in ten])), ['x','y'])
reads('a column by number', csv_dls(table('xy'*5), fn_col=0, label_col=-1), ['x','y'])
reads('several labels', csv_dls(table(['x;y','',' y; ','x;;x','y']*2), label_delim=';'), ['x','y'])


@returns('table: a clip 0001 keeps its zeros', ['0001','0002','0003'])
def numbered_clips(folder):
    names = ['0001','0002','0003','0004']
    (make_clips(folder, names)/'labels.csv').write_text(table('xyxy', names))
    dls = VideoDataLoaders.from_csv(folder, splitter=IndexSplitter([3]), **small)
    return [o.name for o in clip_paths(dls.train_ds)]


def no_warning(folder):
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter('error', pd.errors.ParserWarning)
        return summary(csv_dls(table('xy'*5))(folder))
gives('table: no warning of a parser', no_warning, ['x','y'])


# Tables with mistakes

empty = ['x','y',' ']+['x']*7
refused('an empty label', csv_dls(table(empty)), 'labels.csv: line 4 (A/c2)', 'no label')
refused('an empty label among numbers', csv_dls(table(['','0']+['1']*8)), 'line 2 (A/c0)', 'no label')
refused('an empty label in a regression', csv_dls(table(['1','']+['2']*8), y_block=RegressionBlock),
        'line 3 (A/c1)')
refused('no number', csv_dls(table(['1','x']+['2']*8), y_block=RegressionBlock), 'line 3 (A/c1)', "'x'",
        'number')
refused('a decimal comma', csv_dls(table(['"1,5"']*10), y_block=RegressionBlock), "'1,5'")
refused('an infinite number', csv_dls(table(['inf']*10), y_block=RegressionBlock), "'inf'")
refused('an empty path', csv_dls(table('xy'*5, ['']+ten[1:])), 'line 2', "column 0 is empty", '`fn_col`')
refused('a missing row cell', csv_dls('clip,label\nA/c0\nA/c1,x\n'), 'line 2 (A/c0)', 'no label')
refused('too many cells', csv_dls('clip,label\nA/c0,x,y\n'), 'line 2 has 3 cells', 'quotes')
refused('an open quote', csv_dls('clip,label\nA/c0,"x\nA/c1,y\n'), 'labels.csv: not a table')
refused('not UTF-8', csv_dls(b'clip,label\nA/c0,\xe9\n'), 'not UTF-8', 'Save the table')
refused('an empty file', csv_dls(''), 'labels.csv: the table is empty')
refused('only a header', csv_dls('clip,label\n'), 'no clips in the list')
refused('one column', csv_dls('clip\nA/c0\n'), 'no column 1', 'clip', '`label_col`')
refused('a wrong name', csv_dls(table('xy'*5), label_col='lable'), "no column 'lable'", "'label'",
        'clip, label')
refused('a wrong number', csv_dls(table('xy'*5), label_col=2), 'no column 2', 'clip, label')
refused('a wrong clip column', csv_dls(table('xy'*5), fn_col='name'), "no column 'name'", '`fn_col`')
refused('a wrong group column', csv_dls(table('xy'*5), group_col='g'), "no column 'g'", '`group_col`')
refused('a wrong validation column', csv_dls(table('xy'*5), valid_col='v'), "no column 'v'", '`valid_col`')
refused('two columns of a name', csv_dls(table(['x,y']*10, header='clip,label,label'), label_col='label'),
        "2 columns 'label'")
refused('a header that is a clip', csv_dls(table('xy'*4, ten[2:], header='A/c0,x')), 'labels.csv',
        'header=None')
refused('no such table', csv_dls('', csv_fname='gone.csv'), 'gone.csv: no such file')
refused('a class that vocab lacks', csv_dls(table('xy'*5), vocab=['x']), "vocab: the label 'y'")
refused('a class twice in vocab', csv_dls(table('xy'*5), vocab=['x','y','x']), 'vocab: x is listed twice')
refused('no label at all', csv_dls(table(['']*10), label_delim=' '), 'no clip has a label')
refused('one class', csv_dls(table('x'*10)), "one class, 'x'")
refused('a clip with two labels', csv_dls(table('xy'*5+'y', [*ten, 'A/c0'])), 'line 12 (A/c0)', "'y'", "'x'")
for names,words in ((['A/c9'], ('A/c9', 'no such file', 'line 2')), (['C'], ('no such file',)),
                    (['A'], ('a folder without frames',))):
    refuses(f'table: a missing clip {names}', csv_dls(table('xy'*5, names+ten[1:])), *words, error=VideoError)


def without_suffix(folder):
    (folder/'clip.mp4').write_bytes(b'video')
    VideoDataLoaders.from_df(pd.DataFrame(dict(a=['clip'], b=['x'])), folder)
refuses('table: a suffix is missing', without_suffix, 'no such file', "give `suff='.mp4'`", error=VideoError)


# Tables in memory

def df_dls(labels, **kwargs):
    "Return an action that makes loaders from a data frame with the column `labels`, or several"
    def act(folder):
        columns = labels if isinstance(labels, dict) else dict(label=labels)
        df = pd.DataFrame(dict(clip=ten) | columns)
        return VideoDataLoaders.from_df(df, make_clips(folder, ten), **small | kwargs)
    return act


for name,labels,want in (
        ('int64', np.arange(10)%2, [0,1]), ('int8', (np.arange(10)%2).astype('int8'), [0,1]),
        ('booleans', [True,False]*5, [False,True]), ('NumPy booleans', np.arange(10)%2 == 0, [False,True]),
        ('NumPy strings', np.array(['x','y']*5), ['x','y']), ('categories', pd.Categorical(['x','y']*5),
                ['x','y']),
        ('nullable integers', pd.array([1,0]*5, 'Int64'), [0,1]), ('strings', pd.array(['x','y']*5, 'string'),
                ['x','y']),
        ('integers as objects', pd.Series([1,0]*5, dtype=object), [0,1])):
    gives(f'labels: {name} are plain values',
            then(df_dls(labels), lambda o: json.loads(json.dumps(list(o.vocab)))), want)
reads('floats are numbers', df_dls(np.arange(10)/2), '1 numbers')
reads('float32 are numbers', df_dls(np.arange(10, dtype='float32')), '1 numbers')
reads('floats as classes', df_dls([.5,1.]*5, y_block=CategoryBlock), [.5,1.])
reads('integers as numbers', df_dls(range(10), y_block=RegressionBlock()), '1 numbers')
reads('integers and floats', df_dls(pd.Series([1,.5]*5, dtype=object)), '1 numbers')
reads('lists of names', df_dls([['x'],[],['x','y'],('y',),{'x'}]*2), ['x','y'])
reads('arrays of numbers', df_dls(list(np.ones((10,3)))), '3 numbers')
reads('vocab in its order', df_dls(list('xy'*5), vocab=['y','x']), ['y','x'])
reads('a block with its own vocab', df_dls(list('xy'*5), y_block=CategoryBlock(vocab=['x','y','z'])),
        ['x','y','z'])
for name,bad in (('None', None), ('NaN', float('nan')), ('NA', pd.NA), ('empty', ''), ('NaT', pd.NaT)):
    refused(f'{name} among labels', df_dls(['x','y',bad]+['x']*7), 'df: row 2 (A/c2)', 'no label')
refused('NaN among numbers', df_dls([.5,float('nan')]*5), 'df: row 1 (A/c1)', 'no label')
refused('infinity among numbers', df_dls([.5,float('inf')]*5), 'df: row 1 (A/c1)', 'inf')
refused('text and numbers', df_dls(['x',1]*5), 'df: row 1 (A/c1)', 'the label 1 is a number')
refused('booleans and integers', df_dls(pd.Series([True,1]*5, dtype=object)), 'df: row 1', 'kind of label')
refused('lists of two lengths', df_dls([[1.,2.],[1.]]*5), 'df: row 1 (A/c1)', 'a list of 1')
refused('dates', df_dls(list(pd.date_range('2020', periods=10))), 'df: row 0 (A/c0)', 'not one class')
refused('NaN in a list', df_dls([[1.,float('nan')]]*10), 'df: row 0 (A/c0)')
for o in (None, True, 1.5, [0,1]):
    refused(f'the clip column {o!r}', df_dls(list('xy'*5), fn_col=o), f'fn_col={o!r}: not a column')
reads('a column by a NumPy integer', df_dls(list('xy'*5), label_col=np.int64(1)), ['x','y'])
for o in ([['a','x']], dict(clip=['a'], label=['x'])):
    refused(f'a {type(o).__name__}', lambda p, o=o: VideoDataLoaders.from_df(o, p), 'not a DataFrame')
refused('an empty separator', df_dls(list('xy'*5), label_delim=''), "label_delim=''")
reads('a long number is text', csv_dls(table(['9'*5000,'1']*5)), ['1','9'*5000])
refused('NaN among clips', df_dls(dict(clip=[None]+ten[1:], label=list('xy'*5))), 'df: row 0', 'empty')


# A column for each class

columns = dict(run=[0,1]*5, jump=[1]*10, sit=[0]*10)
names = list(columns)
for name,convert in (('integers', int), ('booleans', bool), ('text', str), ('floats', float),
        ('NumPy integers', np.int8)):
    values = {k: [convert(o) for o in v] for k,v in columns.items()}
    reads(f'columns of {name}', df_dls(values, label_col=names), names)
reads('columns by number', df_dls(columns, label_col=[3,1]), ['sit','run'])
reads('columns of a csv', csv_dls(table(['0,1','1,1']*5, header='clip,run,jump'), label_col=['run','jump']),
        ['run','jump'])
reads('columns of floats are numbers', df_dls(dict(x=[.5]*10, y=[2]*10), label_col=['x','y']), '2 numbers')
reads('columns of integers by y_block', df_dls(columns, label_col=names, y_block=RegressionBlock),
        '3 numbers')
reads('columns encoded by y_block',
        df_dls(columns, label_col=names, y_block=MultiCategoryBlock(encoded=True, vocab=names)), names)
reads('a list of one column', df_dls(list('xy'*5), label_col=['label']), ['x','y'])
refused('columns of other numbers', df_dls(dict(a=[0,3]*5, b=[1]*10), label_col=['a','b']), 'df: row 1', '3',
        '0 or 1')
refused('columns of names', df_dls(dict(a=['x']*10, b=['y']*10), label_col=['a','b']), "'x'", '`label_delim`')
refused('columns with an empty cell', df_dls(dict(a=[0,None]*5, b=[1]*10), label_col=['a','b']), 'df: row 1',
        "'a' is empty")
refused('columns and a separator', df_dls(columns, label_col=names, label_delim=' '), '3 label columns')


def row_labels(dls): return [dls.vocab[y.nonzero()[:,0]] for _,y in dls.train_ds]
gives('table: columns with 1 are the labels of a row',
        then(df_dls(columns, label_col=names, splitter=IndexSplitter(range(2, 10))), row_labels),
      [L('jump'), L('run','jump')])


# Validation and group columns

def valid_of(cells):
    "Return an action: the validation clips by a column, and the number of training clips"
    rows = [f'{c},{o}' for c,o in zip('xy'*5, cells)]
    def act(folder):
        dls = csv_dls(table(rows, header='clip,label,v'), valid_col='v')(folder)
        return sorted(o.parent.name+o.name for o in clip_paths(dls.valid_ds)), len(dls.train_ds)
    return act


for yes,no in (('True','False'), ('1','0'), ('yes','NO'), ('valid','train'), ('Val','Train'),
               ('test','train'), ('t','f'), ('1.0','0.0'), ('dev','training'), (' true ','false')):
    gives(f'table: validation column of {yes!r} and {no!r}', valid_of([yes]*2+[no]*8), (['Ac0','Ac1'], 8))
gives('table: a test set in a column', valid_of(['val','val','test']+['train']*7), (['Ac0','Ac1'], 7))
gives('table: a class that is only validated', valid_of(['0','1']*5),
      (['Ac1','Ac3','Bc0','Bc2','Bc4'], 5))
refuses('table: a blank cell of valid_col', valid_of(['1',' ']+['0']*8), 'line 3', "'v' is empty")
refuses('table: an odd cell of valid_col', valid_of(['1','maybe']+['0']*8), "valid_col='v'", 'maybe')
refuses('table: only validation', valid_of(['1']*10), 'no clips to train on')
refused('an empty group', df_dls(dict(label=list('xy'*5), g=['a',None]*5), group_col='g'), 'df: row 1',
        "'g' is empty")
refused('one group', df_dls(dict(label=list('xy'*5), g=['a']*10), group_col='g'), "belong to 'a'")


# Lists and functions

def func_dls(label_func, **kwargs):
    "Return an action that makes loaders with a label function"
    kwargs = small | kwargs
    return lambda p: VideoDataLoaders.from_path_func(p, get_clips(make_clips(p, ten)), label_func, **kwargs)


def seed_dls(**kwargs):
    "Return an action that calls `get_action_dataloaders`"
    kwargs = dict(seq_len=1, image_size=8, num_workers=0) | kwargs
    return lambda p: get_action_dataloaders(get_clips(make_clips(p, ten)), **kwargs)


def lists_dls(labels, clips=ten, **kwargs):
    return lambda p: VideoDataLoaders.from_lists(make_clips(p, ten), clips, labels, **small | kwargs)


reads('lists of NumPy integers', lists_dls(np.arange(10)%2), [0,1])
reads('lists of tensors', lists_dls(list(torch.arange(10)%2)), [0,1])
reads('lists as a column', lists_dls(pd.Series(list('xy'*5)), pd.Series(ten)), ['x','y'])
reads('pairs of numbers', lists_dls([(1,.5)]*10), '2 numbers')
refused('lists with None', lists_dls(['x',None]*5), 'A/c1', 'no label')
refused('lists with a missing path', lists_dls(['x']*10, [None]+ten[1:]), 'fnames: number 0 is missing')
refused('a function that returns None', func_dls(lambda o: None), 'c0: the clip has no label')
refused('a pattern that does not match', func_dls(using_attr(RegexLabeller('x(.)'), 'name')), 'c0',
        'no label', 'Correct the pattern')
reads('a function that returns NumPy integers', func_dls(lambda o: np.int64(o.parent.name == 'A')), [0,1])


# Folders of sets

def sets_of(*folders, **kwargs):
    "Return an action: the top folders of the training and of the validation clips of these class folders"
    def act(folder):
        make_clips(folder, [f'{o}/c{i}' for o in folders for i in range(2)])
        dls = VideoDataLoaders.from_folder(folder, **small | kwargs)
        sides = clip_paths(dls.train_ds),clip_paths(dls.valid_ds)
        return [sorted({o.relative_to(folder).parts[0] for o in side}) for side in sides]
    return act


def with_classes(*sets): return [f'{o}/{c}' for o in sets for c in 'AB']


for sets in ('train valid', 'train val', 'Train VAL', 'training validation testing', 'train dev test',
             'train val test', 'train test', 'TRAIN TEST', 'train eval', 'train_256 val_256',
             'trainset testset', 'train validation_videos held_out', 'train dev eval test'):
    train,valid,*_ = sets.split()
    gives(f'sets: {sets}', sets_of(*with_classes(*sets.split())), [[train],[valid]])
gives('sets: two folders to train on', sets_of(*with_classes('train_1','train_2','val')),
        [['train_1','train_2'],['val']])
gives('sets: names of the user', sets_of(*with_classes('a','b','test'), train='a', valid='b'), [['a'],['b']])
gives('sets: validation set of the user', sets_of(*with_classes('train','val','test'), valid='test'),
        [['train'],['test']])
gives('sets: a test set without classes', sets_of(*with_classes('train','val'), 'test'), [['train'],['val']])
gives('sets: classes train, bus and car', sets_of('train','bus','car'), [['bus','car','train']]*2)
gives('sets: classes train and test inside sets', sets_of('train/train','train/test','val/train','val/test'),
        [['train'],['val']])
gives('sets: a class val beside others', sets_of('val','bus'), [['bus','val']]*2)
refuses('sets: a name that is not there', sets_of(*with_classes('train','val'), valid='held'), "valid='held'",
        'no clips', 'train, val')
refuses('sets: only one set is there', sets_of(*with_classes('train'), train='train'), "train='train'")
refuses('sets: no class folders', sets_of('train','val'), 'train, val', 'names of sets')
refuses('sets: sets in class folders', sets_of('A/train','A/val','B/train','B/val'), 'names of sets')
refuses('sets: a clip beside the class folders', sets_of(*with_classes('train','val'), 'train'),
        os.path.join('train', 'c0'), 'would be train, the names of sets')
refuses('sets: a test set without classes only', sets_of(*with_classes('train'), 'test'),
        'have class folders: train')


def printed(act):
    "Return an action that returns what `act` prints"
    def run(folder):
        out = io.StringIO()
        with contextlib.redirect_stdout(out): act(folder)
        return out.getvalue()
    return run


def has(*words): return lambda text: [o for o in words if o not in text]


gives('sets: held out clips are mentioned',
        then(printed(sets_of(*with_classes('train','val','test'))),
        has('train and val', '4 clips in test', 'dls.test_dl')), [])
gives('sets: a test set for validation is mentioned',
        then(printed(sets_of(*with_classes('train','test'))),
        has('train and test', 'test is used for validation')), [])


@returns('sets: of paths in a table', [{'train'},{'val'}])
def sets_of_table(folder):
    clips = [f'{s}/{c}{i}' for s in ('train','val','test') for c in 'AB' for i in range(2)]
    df = pd.DataFrame(dict(clip=clips, label=[o.split('/')[1][0] for o in clips]))
    dls = VideoDataLoaders.from_df(df, make_clips(folder, clips), **small)
    return [{o.parent.name for o in clip_paths(ds)} for ds in (dls.train_ds, dls.valid_ds)]


@returns('sets: of get_action_dataloaders', [{'train'},{'val'}])
def sets_of_seed(folder):
    make_clips(folder, [f'{o}/c{i}' for o in with_classes('train','val','test') for i in range(2)])
    dls = get_action_dataloaders(get_clips(folder), seq_len=1, image_size=8, num_workers=0)
    return [{o.parent.parent.name for o in ds.items} for ds in (dls.train_ds, dls.valid_ds)]


# Splits

@returns('split: 20 classes of 3 clips, 30 seeds', {20})
def twenty_classes(folder):
    paths = [Path(f'c{c}/{i}.mp4') for c in range(20) for i in range(3)]
    splits = [default_splitter(seed=s)(paths) for s in range(30)]
    sides = [{parent_label(paths[i]) for i in side} for split in splits for side in split]
    return {len(o) for o in sides}


def folder_dls(classes, **kwargs):
    return lambda p: VideoDataLoaders.from_folder(make_clips(p,
            [f'{c}/c{i}' for c,n in classes.items() for i in range(n)]), **small | kwargs)


gives('split: a class of one clip is trained on',
        then(printed(folder_dls(dict(A=1, B=5))), has('No validation clips for A')), [])
gives('split: RandomSplitter stays as it is',
        then(folder_dls(dict(A=5, B=5), splitter=RandomSplitter(seed=3)), lambda o: o.split_rule), '')
gives('split: given, keeps a class out of training',
        then(folder_dls(dict(A=3, B=2), splitter=IndexSplitter([3,4])), summary), ['A','B'])
gives('split: given, with a message',
        then(printed(folder_dls(dict(A=3, B=2), splitter=IndexSplitter([3,4]))),
        has('No training clips for B')), [])
gives('split: by lists',
        then(printed(folder_dls(dict(A=3, B=2), splitter=ListSplitter(['B/c0','B/c1']))),
        has('No training clips for B')), [])
gives('split: by folder', then(printed(sets_of('train/A','val/A','val/B')), has('No training clips for B')),
        [])
gives('split: by valid_col',
        then(printed(df_dls(dict(label=list('x'*5+'y'*5), v=[0]*5+[1]*5), valid_col='v')),
        has('No training clips for y')), [])
gives('split: val_idxs', then(seed_dls(bs=2, val_idxs=range(5, 10)), summary), ['A','B'])
for i in (10, -1): refuses(f'split: the index {i}', seed_dls(val_idxs=[i]), f'the index {i}')
for o in (5, -.1, float('nan'), 1): refuses(f'split: valid_pct={o}', folder_dls(dict(A=3, B=3), valid_pct=o),
        f'valid_pct={o}', '0 to 1')
for o in ('train', [[0,1],[2,3]], RandomSplitter):
    refuses(f'split: {o!r:.20} for a function', folder_dls(dict(A=3, B=3), splitter=o), 'splitter',
            'RandomSplitter(seed=0)')
refuses('split: a mask', seed_dls(bs=2, val_idxs=[True,False]*5), 'the index True')
gives('split: one index', then(seed_dls(bs=2, val_idxs=3), lambda o: len(o.valid_ds)), 1)
refuses('split: nothing to train on', folder_dls(dict(A=3, B=3), splitter=IndexSplitter(range(6))),
        'no clips to train on')


# Batch size

for n in (2, 3, 9, 40):
    gives(f'bs: default of {n} clips',
            then(folder_dls(dict(A=n, B=n), bs=None), lambda o: len(o.train) >= min(4, len(o.train_ds)//2)),
            True)
gives('bs: default of the seed', then(seed_dls(seed=1), lambda o: len(o.train)), 4)
for o in (0, -1, 1.5, '8'): refuses(f'bs: {o!r}', folder_dls(dict(A=5, B=5), bs=o), f'bs={o!r}', '1 or more')
for o,near in (('img_size', 'image_size'), ('n_frames', 'seq_len'), ('num_worker', 'num_workers')):
    refuses(f'loaders: unknown {o}', folder_dls(dict(A=5, B=5), **{o: 4}), f'`{o}`', near)
gives('loaders: arguments of fastai',
        then(folder_dls(dict(A=5, B=5), drop_last=False, val_bs=3, shuffle_fn=list), lambda o: o.valid.bs), 3)
refuses('bs: given and too large', folder_dls(dict(A=5, B=5), bs=64), 'bs=64', '8 training clips')


# Groups

def named(n): return [f'{c}/{p}_{i}' for c in 'AB' for p in range(n) for i in range(2)]


def group_dls(group, **kwargs):
    return lambda p: VideoDataLoaders.from_folder(make_clips(p, named(3)), group=group, **small | kwargs)


gives('groups: loaders know their pattern',
        then(group_dls('^[^_]+'),
        lambda o: [f('2_1') for f in (dls_group(o), dls_group(o.new_empty()), o.new(bs=1).group, o.group)]),
        ['2']*4)
gives('groups: of a function', then(group_dls(lambda o: o.name[0]), lambda o: list(leaked_groups(o))), [])
gives('groups: of a splitter that ignores them',
        then(group_dls('^[^_]+', splitter=IndexSplitter([0,6])), lambda o: list(leaked_groups(o))), ['0'])
gives('groups: of a column',
        then(df_dls(dict(label=list('xy'*5), g=list('aabbccddee')), group_col='g'),
        lambda o: list(leaked_groups(o))), [])
gives('groups: unknown', then(group_dls(None), dls_group))
refuses('groups: unknown, asked for leaks', then(group_dls(None), leaked_groups),
        'groups of the clips are unknown', '`group`')
gives('groups: pickled',
        then(group_dls('^[^_]+'), lambda o: pickle.loads(pickle.dumps(o.train)).group('2_1')), '2')
gives('groups: a lambda is not pickled',
        then(group_dls(lambda o: o.name), lambda o: pickle.loads(pickle.dumps(o.train)).group))
