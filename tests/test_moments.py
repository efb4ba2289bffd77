"Annotations of moments: one annotation in each format, written again, and malformed files"
import json
import re
import warnings

import make_moments
import pandas as pd
import pytest
from make_moments import FIXTURES, FPS, MOMENTS, VIDEO

from vidseq.datasets.moment_source import MomentSource, parse_xml
from vidseq.datasets.moment_table import check_moments
from vidseq.datasets.moments import find_format, moment_formats, read_moments, write_moments

HALF_FRAME = .5/FPS + 1e-9
ACTIONS = {1: 'cut', 2: 'kühlen & mischen', 3: 'ring'}


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    "Return a folder with the video of the annotations"
    folder = tmp_path_factory.mktemp('videos')
    make_moments.make_video(folder/VIDEO)
    return folder


def write(folder, text, name='kitchen.dat', encoding='utf-8'):
    (folder/name).write_bytes(text.encode(encoding))
    return folder/name


def rows(df): return df[['file','start','end','label']].values.tolist()


def assert_same(df, expected=MOMENTS, file=VIDEO, tolerance=HALF_FRAME):
    "Check the rows of a table in order, with times to half a frame"
    assert [o[0] for o in rows(df)] == [file]*len(expected)
    assert [o[3] for o in rows(df)] == [o[2] for o in expected]
    for o,(start,end,_) in zip(rows(df), expected):
        assert abs(o[1]-start) <= tolerance and abs(o[2]-end) <= tolerance


def write_quietly(df, path, name, **kwargs):
    "Write a table with the arguments that the format needs; return the path and the messages"
    if moment_formats[name].times == 'frames': kwargs['fps'] = FPS
    if name == 'ava': kwargs['labels'] = ACTIONS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        write_moments(df, path, format=name, **kwargs)
    return path,[str(o.message).partition(' cannot hold ')[2] for o in caught]


# Read

@pytest.mark.parametrize('name', FIXTURES)
def test_all_formats_read_to_one_table(name, videos, tmp_path):
    "The format is found by the content: the suffix is .dat"
    form,text = FIXTURES[name]
    file = write(tmp_path, text)
    assert find_format(MomentSource(file)).name == form
    df = read_moments(file, videos)
    assert_same(df)
    assert df.attrs['file'] == str(file) and df.index.is_unique | (form == 'cvat')
    assert list(df.columns) == ['file','start','end','label'] + ['split']*(form == 'activitynet')


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('name', FIXTURES)
def test_byte_order_marks_and_line_ends(name, encoding, videos, tmp_path):
    text = re.sub('(?i)utf-8', encoding.removesuffix('-sig'), FIXTURES[name][1])
    assert_same(read_moments(write(tmp_path, text.replace('\n', '\r\n'), encoding=encoding), videos))


@pytest.mark.parametrize('name', FIXTURES)
def test_without_videos(name, tmp_path):
    "Frame numbers stay, or `fps` converts them; names are those of the annotation"
    df = read_moments(write(tmp_path, FIXTURES[name][1]))
    if 'start_frame' in df:
        assert [tuple(o) for o in df[['start_frame','end_frame','label']].values] == make_moments.FRAMES
        df = read_moments(write(tmp_path, FIXTURES[name][1]), fps=FPS)
    assert_same(df, file=df.file.iloc[0])
    assert 'kitchen' in df.file.iloc[0] and '://' not in df.file.iloc[0] and '?' not in df.file.iloc[0]


def test_the_index_names_the_line(tmp_path):
    text = FIXTURES['csv'][1].replace('\n', '\n\n')
    assert list(read_moments(write(tmp_path, text)).index) == [3, 5, 7]


# AVA, which has whole seconds only

AVA = '''kitchen,0001,0.077,0.151,0.283,0.811,1,0
kitchen,0001,0.177,0.251,0.383,0.911,1,1
kitchen,0002,,,,,,
kitchen,0003,0.077,0.151,0.283,0.811,2,0
'''


@pytest.mark.parametrize('text', [AVA, 'kitchen,1,1\nkitchen,3.0,2\n', 'kitchen,1,1,0\nkitchen,3,2,0\n',
                                  'kitchen,1,.1,.1,.2,.2,1\nkitchen,3,.1,.1,.2,.2,2\n'])
def test_ava(text, videos, tmp_path):
    file = write(tmp_path, text)
    assert_same(read_moments(file, videos), [(.5, 1.5, '1'), (2.5, 3.5, '2')])
    assert_same(read_moments(file, videos, labels=ACTIONS), [(.5, 1.5, 'cut'),
        (2.5, 3.5, 'kühlen & mischen')])


def test_ava_actions_from_files(videos, tmp_path):
    file = write(tmp_path, AVA)
    lists = {'a.pbtxt': 'item {\n  name: "cut"\n  id: 1\n}\nitem {\n  name: "kühlen & mischen"\n  id: 2\n}\n',
             'a.csv': 'label_id,label_name,label_type\n1,cut,PERSON\n2,kühlen & mischen,PERSON\n'}
    for name,text in lists.items():
        df = read_moments(file, labels=write(tmp_path, text, name))
        assert list(df.label) == ['cut','kühlen & mischen']


def test_ava_keeps_whole_seconds(videos, tmp_path):
    df = pd.DataFrame([(VIDEO,*o) for o in MOMENTS], columns=['file','start','end','label'])
    file,lost = write_quietly(df, tmp_path/'a.csv', 'ava')
    assert lost == ['start and end, but whole seconds.']
    res = read_moments(file, videos, labels=ACTIONS)
    assert list(res.start) == [0., .5, 1.5, 2.5, 3.5, 4.5, 5.5, 8.5]
    assert set(res.end-res.start) == {.5, 1.}


# Written and read again

def table(*moments, **columns):
    df = pd.DataFrame([(VIDEO,*o) for o in moments], columns=['file','start','end','label'])
    return df.assign(**columns)


@pytest.mark.parametrize('name', [o for o in moment_formats if o != 'ava'])
def test_written_and_read_again(name, videos, tmp_path):
    strange = (7.01, 7.99, 'a "b" <c>, d; e \' \\ 日本')
    df = table(*MOMENTS[:2], strange, MOMENTS[2])
    file,lost = write_quietly(df, tmp_path/'kitchen.dat', name)
    assert lost == []
    assert find_format(MomentSource(file)).name == name
    assert_same(read_moments(file, videos), [*MOMENTS[:2], strange, MOMENTS[2]])


@pytest.mark.parametrize('name', [o for o in moment_formats if o != 'ava'])
def test_point_events(name, videos, tmp_path):
    "A moment without duration stays one, or becomes as short as the format can store"
    file,lost = write_quietly(table((7.5, 7.5, 'ring')), tmp_path/'kitchen.dat', name)
    res = read_moments(file, videos)
    assert abs(res.start[res.index[0]]-7.5) < 1e-6
    length = float((res.end-res.start).iloc[0])
    if moment_formats[name].points: assert length == 0 and lost == []
    else: assert 0 < length <= 1/FPS+1e-6 and lost == ['events without duration.']


def test_point_events_in_boris(videos, tmp_path):
    text = FIXTURES['boris tabular'][1] + f'one\tAnn\tring\t\tPOINT\t5\t{VIDEO}\t1\n'
    res = read_moments(write(tmp_path, text), videos)
    assert [5., 5., 'ring'] in res[['start','end','label']].values.tolist()


LOST = dict(csv=[], tsv=[], activitynet=['the column group.'],
            ava=['the column group, the column split, start and end, but whole seconds.'])


@pytest.mark.parametrize('name', moment_formats)
def test_what_is_lost_is_reported(name, tmp_path):
    df = table(*MOMENTS, group='Ann', split='train')
    _,lost = write_quietly(df, tmp_path/'kitchen.dat', name)
    assert lost == LOST.get(name, ['the column group, the column split.'])


@pytest.mark.parametrize('name', ['audacity','webvtt','srt'])
def test_a_file_with_another_name_loses_the_video(name, tmp_path):
    assert write_quietly(table(*MOMENTS), tmp_path/'x.dat', name)[1] == [f"the name of the video '{VIDEO}'."]


@pytest.mark.parametrize('name', moment_formats)
def test_several_videos(name, tmp_path):
    df = pd.concat([table(*MOMENTS).assign(file=o) for o in (VIDEO, 'b/10.mp4', 'b/9.mp4')])
    if moment_formats[name].videos != 'many':
        with pytest.raises(ValueError, match='3 videos'): write_quietly(df, tmp_path/'a', name)
    else:
        file,_ = write_quietly(df, tmp_path/'a', name)
        res = read_moments(file, labels=ACTIONS if name == 'ava' else None)
        assert list(dict.fromkeys(res.file)) == ['b/9.mp4','b/10.mp4',VIDEO]


def test_other_columns_stay_in_csv(tmp_path):
    df = table(*MOMENTS, group='Ann', split='valid', camera='3')
    res = read_moments(write_moments(df, tmp_path/'a.csv'))
    assert res.values.tolist() == df.values.tolist() and list(res.columns) == list(df.columns)


def test_tables_of_frames(tmp_path):
    df = read_moments(write(tmp_path, FIXTURES['cvat'][1]))
    assert read_moments(write_moments(df, tmp_path/'a.csv')).values.tolist() == df.values.tolist()
    with pytest.raises(ValueError, match='fps: activitynet stores seconds'):
        write_moments(df, tmp_path/'a.json')
    assert_same(read_moments(write_moments(df, tmp_path/'a.json', fps=FPS)))


def test_a_failed_write_leaves_the_file(tmp_path):
    file = write(tmp_path, 'old', 'a.srt')
    for df in (table((2, 1, 'x')), table((0, 1, '')), table(), table((0, 1, 'a\0'))):
        with pytest.raises(ValueError): write_moments(df, file)
    assert file.read_text() == 'old' and [o.name for o in tmp_path.iterdir()] == ['a.srt']


# Overlaps, repeated rows, videos

def test_overlaps(tmp_path):
    df = table((0, 2, 'a'), (1.5, 3, 'b'), (1, 1, 'c'), (3, 4, 'c'), (0, 2, 'a'))
    file = write_moments(df, tmp_path/'a.csv')
    with pytest.raises(ValueError, match=r"a\.csv: line 4: 'b' from 1\.5 to 3 .* \(line 2\).* overlaps=True"):
        read_moments(file)
    assert len(read_moments(file, overlaps=True)) == 4 # a repeated row is read once


def test_the_same_moment_with_two_labels(tmp_path):
    file = write_moments(table((0, 2, 'a'), (0, 2, 'b')), tmp_path/'a.csv')
    with pytest.raises(ValueError, match="line 3: 'b' from 0 to 2 .* is also 'a'"): read_moments(file)


def test_overlaps_equal_a_search_of_all_pairs():
    import random
    rng = random.Random(0)
    for _ in range(300):
        moments = [(a, a+rng.randint(0, 3), rng.choice('ab')) for a in (rng.randint(0, 20) for _ in range(5))]
        def overlap(a, b): return a[2] != b[2] and min(a[1], b[1]) > max(a[0], b[0])
        expected = any(overlap(a, b) for a in moments for b in moments)
        try: check_moments(table(*moments))
        except ValueError: assert expected
        else: assert not expected


def test_beyond_the_end(videos, tmp_path):
    file = write_moments(table((9., 10.4, 'a')), tmp_path/'a.csv')
    assert rows(read_moments(file, videos)) == [[VIDEO, 9., 10., 'a']]
    file = write_moments(table((9., 10.6, 'a')), tmp_path/'a.csv')
    msg = r"line 2: the moment ends at 10\.600 s, but 'kitchen\.mp4' has 10\.000 s"
    with pytest.raises(ValueError, match=msg): read_moments(file, videos)


def test_variable_frame_rate(tmp_path, monkeypatch):
    "Frame numbers become the times of the frames"
    from fastcore.all import AttrDict
    from vidseq.datasets import moment_videos
    make_moments.make_video(tmp_path/VIDEO, 3)
    info = AttrDict(fps=3/1.5, frames=3, duration=1.5, times=[0., .2, 1.])
    monkeypatch.setattr(moment_videos, 'video_info', lambda path: info)
    df = pd.DataFrame([(VIDEO, 0, 1, 'a'),
        (VIDEO, 1, 3, 'b')], columns=['file','start_frame','end_frame','label'])
    file = write_moments(df, tmp_path/'a.csv')
    assert rows(read_moments(file, tmp_path)) == [[VIDEO, 0., .2, 'a'], [VIDEO, .2, 1.5, 'b']]


def test_many_rows(tmp_path):
    text = ''.join(f'v{i//100},{i%100},{i%100+1},c{i%7}\n' for i in range(100_000))
    df = read_moments(write(tmp_path, 'file,start,end,label\n'+text))
    assert len(df) == 100_000 and list(df.file[:200:100]) == ['v0','v1']


# Malformed files: fixture -> replacement, message. The message names the place and the problem

BAD_ROWS = [('0.0,3.2', 'x,3.2', "line 2: start='x'"), ('0.0,3.2', ',3.2', "line 2: start=''"),
            ('0.0,3.2', '-1,3.2', "line 2: start='-1'"), ('0.0,3.2', 'nan,3.2', "line 2: start='nan'"),
            ('0.0,3.2', '0,inf', "line 2: end='inf'"),
            ('3.2,7.0', '7,3.2', 'line 3: end=3.2 is before start=7'),
            ('9.5,cut', '9.5,', 'line 4: the label is missing'),
            ('kitchen.mp4,8.1', ',8.1', 'line 4: the file is'),
            ('9.5,cut', '9.5,cut,x', 'line 4: 5 cells'), ('9.5,cut', '9.5,"cut', 'not a row of a table'),
            ('file,', 'video,', "line 1: no column 'file'"), ('start,', '', "line 1: no column 'start'"),
            ('end,', 'end,end,', "line 1: several columns 'end'"), ('3.2,7.0', '3.1,7.0', 'line 3: '),
            ('kitchen.mp4,8.1', 'garden.mp4,8.1', "line 4: no video 'garden.mp4'"),
            ('8.1,9.5', '8.1,19.5', 'line 4: the moment ends at 19.500')]
BAD = {
    'csv': BAD_ROWS,
    'tsv': [(a.replace(',', '\t'), b.replace(',', '\t'), msg) for a,b,msg in BAD_ROWS],
    'csv of frames': [
        ('cut,96,0', 'cut,96.5,0', "line 2: end_frame='96.5'"),
        ('cut,96,0', 'cut,96,-1', "line 2: start_frame='-1'"),
        ('cut,96,0', 'cut,9,20', 'line 2: end_frame=9 is before start_frame=20'),
        ('cut,285', 'cut,385', 'line 4: the moment ends at 12.833')],
    'activitynet': [
        ('"kitchen": {', '"kitchen": [{', 'damaged JSON'),
        ('"kitchen"', '"garden"', "annotation 1 of 'garden': no video"),
        ('"database": {', '"database": [], "x": {', '`database` is not an object'),
        ('3.2\n', '"x"\n', "annotation 1 of 'kitchen': end='x'"),
        ('3.2\n', '-3.2\n', "annotation 1 of 'kitchen': end=-3.2"),
        ('8.1,', '', "annotation 3 of 'kitchen': segment=[9.5]"),
        ('8.1', 'NaN', "annotation 3 of 'kitchen': start=nan"),
        ('8.1', 'Infinity', "annotation 3 of 'kitchen': start=inf"),
        ('8.1', 'true', "annotation 3 of 'kitchen': start=True"),
        ('8.1', '9.6', "annotation 3 of 'kitchen': end=9.5 is before start=9.6"),
        ('"segment"', '"seconds"', "annotation 1 of 'kitchen': segment=None"),
        ('"label": "cut"', '"label": 3', "annotation 1 of 'kitchen': label=3"),
        ('"label": "cut"', '"label": " "', "annotation 1 of 'kitchen': the label is missing"),
        ('"annotations": [', '"annotations": ["x", ', "annotation 1 of 'kitchen': 'x'"),
        ('"annotations"', '"actions"', "'kitchen': no list of annotations"),
        ('9.5', '19.5', "annotation 3 of 'kitchen': the moment ends at 19.500"),
        ('8.1', '6.5', "annotation 3 of 'kitchen': 'cut' from 6.5 to 9.5"),
        ('8.1', '1'*5000, 'damaged JSON (a number has too many digits)')],
    'labelstudio': [
        ('"start": 1,', '"start": 0,', 'task 12, result 1: start=0'),
        ('"start": 1,', '"start": -4,', 'task 12, result 1: start=-4'),
        ('"start": 1,', '"start": 1.5,', 'task 12, result 1: start=1.5'),
        ('"start": 1,', '', 'task 12, result 1: start=None'),
        ('"end": 210', '"end": 50', 'task 12, result 2: end=50 is before start=97'),
        ('"end": 210', '"end": "x"', "task 12, result 2: end='x'"),
        ('"end": 285', '"end": 1285', 'task 12, result 3: the moment ends at 42.833'),
        ('"start": 97', '"start": 90', 'task 12, result 2: '),
        ('"result"', '"results"', 'task 12: result=None'),
        ('"cut"', '', 'task 12, result 1: timelinelabels=[]'),
        ('"cut"', '7', 'task 12, result 1: timelinelabels=[7]'),
        ('"cut"', '""', 'task 12, result 1: the label is missing'),
        ('kitchen.mp4', 'garden.mp4', "task 12, result 1: no video '0a1b2c3d-garden.mp4'"),
        (make_moments.upload, 'text', 'task 12, result 1: no video'),
        ('"annotations": [', '"annotations": [3, ', 'task 12: the annotations are not a list'),
        ('"ranges": [', '"ranges": [3, ', 'task 12, result 1: ranges=[3, '),
        ('"id": 12,', '"id": 12', 'damaged JSON')],
    'cvat': [
        ('frame="0"', 'frame="x"', "line 7: frame='x'"), ('frame="0"', 'frame="-1"', "line 7: frame='-1'"),
        ('frame="0"', 'frame="0.5"', "line 7: frame='0.5'"), ('frame="0" ', '', 'line 7: frame=None'),
        ('frame="0"', 'frame="96"', 'line 8: frame=96 is not after 96'),
        ('outside="1"', 'outside="yes"', "line 8: outside='yes'"),
        ('frame="285"', 'frame="385"', 'line 14: the moment ends at 12.833'),
        ('frame="96" outside="0"', 'frame="90" outside="0"', 'line 10: '),
        (' label="cut"', '', 'line 6: the label is missing'),
        ('<task>', '<none>', 'XML refused: mismatched tag'),
        (VIDEO, 'garden.mp4', "line 6: no video 'garden.mp4'"),
        ('<annotations>', '<!DOCTYPE annotations><annotations>',
                                                               'a document type definition'),
        ('</annotations>', '', 'XML refused: no element found'), ('&amp;', '&x;', 'undefined entity'),
        ('<box', '<circle', 'XML refused'),
        ('<annotations>', '<annotations><track label="x"/>', 'line 2: a track without')],
    'elan': [
        ('TIME_VALUE="0"', 'TIME_VALUE="x"', "line 7: TIME_VALUE='x'"),
        ('TIME_VALUE="0"', 'TIME_VALUE="-1"', "line 7: TIME_VALUE='-1'"),
        (' TIME_VALUE="0"', '', 'line 15: time slot ts1 has no time'),
        ('REF1="ts1"', 'REF1="ts99"', "line 15: TIME_SLOT_REF1='ts99'"),
        (' TIME_SLOT_REF1="ts1"', '', 'line 15: TIME_SLOT_REF1=None'),
        ('milliseconds', 'PAL-frames', "times in 'PAL-frames'"),
        ('TIME_VALUE="8100"', 'TIME_VALUE="9600"', 'line 21: end=9.5 is before start=9.6'),
        ('TIME_VALUE="9500"', 'TIME_VALUE="19500"', 'line 21: the moment ends at 19.500'),
        ('<ANNOTATION_VALUE>cut<', '<ANNOTATION_VALUE><', 'line 15: the label is missing'),
        (VIDEO, 'garden.mp4', "line 15: no video 'D:/films/garden.mp4'"),
        ('TIME_VALUE="8100"', 'TIME_VALUE="6000"', 'line 21: '),
        ('</TIER>', '</TIERS>', 'XML refused: mismatched tag: line 24'), ('UTF-8', 'UTF-99', 'XML refused'),
        ('<ANNOTATION_DOCUMENT', '<!DOCTYPE a><ANNOTATION_DOCUMENT', 'a document type definition'),
        ('ALIGNABLE_ANNOTATION', 'REF_ANNOTATION', 'no moments')],
    'boris aggregated': [
        ('0.000,3.200', 'x,3.200', "line 2: Start (s)='x'"),
        ('0.000,3.200', '0.000,x', "line 2: Stop (s)='x'"),
        ('0.000,3.200', '-1,3.200', "line 2: Start (s)='-1'"),
        ('0.000,3.200', 'nan,3.200', "line 2: Start (s)='nan'"),
        ('0.000,3.200', '4,3.200', 'line 2: end=3.2 is before start=4'),
        ('0.000,3.200', '0.000,', 'line 2: a state without'),
        ('subject,cut', 'subject,', 'line 2: the label is missing'),
        ('Behavior,', 'Action,', 'unknown format'),
        (f'player #1:D:\\films\\{VIDEO},{VIDEO}', ',', 'line 2: no media file'),
        ('8.100,9.500', '8.100,19.500', 'line 4: the moment'),
        ('3.200,7.000', '3.100,7.000', 'line 3: '), ('one,', 'one,"', 'not a row of a table'),
        (f',{VIDEO}', ',garden.mp4', 'line 2: no video')],
    'boris tabular': [
        ('STOP', 'START', "line 3: 'cut' has no STOP"), ('START', 'STOP', 'line 2: a STOP without START'),
        ('START', 'BEGIN', "line 2: an event of type 'BEGIN'"), ('START', '', "line 2: an event of type ''"),
        ('\t0.0\t', '\tx\t', "line 2: Time='x'"), ('\t0.0\t', '\t-1\t', "line 2: Time='-1'"),
        ('\t0.0\t', '\tinf\t', "line 2: Time='inf'"),
        ('\t0.0\t', '\t5\t', 'line 2: end=3.2 is before start=5'),
        ('\t9.5\t', '\t19.5\t', 'line 6: the moment ends at 19.500'),
        ('subject\tcut', 'subject\t', 'line 3: a STOP without START'),
        (f'3.2\t{VIDEO}', '3.2\tb.mp4', "line 3: stops in 'b.mp4'"),
        (VIDEO, '', 'line 2: no media file'), ('\t1\n', '\n', 'line 2: 7 cells')],
    'audacity': [
        ('\t7.000000', '\tx', "line 3: end='x'"), ('8.100000', '-1', "line 5: start='-1'"),
        ('8.100000', 'nan', "line 5: start='nan'"),
        ('8.100000', '9.6', 'line 5: end=9.5 is before start=9.6'),
        ('8.100000', '8,1', "line 5: start='8,1'"),
        ('\tkühlen', '\t\tkühlen', 'line 3: 4 cells'), ('8.100000\t', '', "line 5: end='cut'"),
        ('9.500000\tcut', '9.5', 'line 5: the label is'),
        ('9.500000\tcut', '', "line 5: end=''"), ('9.500000', '19.5', 'line 5: the moment ends at 19.500'),
        ('3.200000\t7', '3.1\t7', 'line 3: ')],
    'webvtt': [
        ('00:00:00.000', '00:00:0x', 'line 10: '), ('00:00:00.000', '', 'line 10: '),
        ('00:00:00.000', '-00:00:00.000', 'line 10: '),
        ('00:00:00.000', '00:75:00.000', 'line 10: '), ('00:00:00.000', '0', 'line 10: '),
        ('00:00:03.200\ncut', '\ncut', 'line 10: '),
        ('00:00:08.100', '00:00:09.600', 'line 18: end=9.5 is before start=9.6'),
        ('\ncut', '', 'line 10: the label is missing'),
        ('00:00:08.100 -->', '00:00:08.100', "line 17: '3' without times"),
        ('00:00:09.500', '00:00:19.500', 'line 18: the moment'),
        ('WEBVTT', 'VTT', 'unknown format'), ('00:00:03.200 -->', '00:00:03.100 -->', 'line 14: ')],
}


def as_srt(old, new, msg):
    msg = re.sub(r'\d+', lambda o: str(int(o[0])-8), msg, count=1) # no head before the first cue
    return old.replace('.', ','), new.replace('.', ','), msg


BAD['srt'] = [as_srt(*o) for o in BAD['webvtt'] if o[0] != 'WEBVTT']
BAD['srt'].append(('2\n', '2\n\n', "line 5: '2' without times"))
AVA_BAD = [('0001', 'x', 'line 1: timestamp'), ('0003', '-3', 'line 4: timestamp'),
           ('0003', 'nan', 'line 4: timestamp'),
           ('0003', '0103', 'line 4: the moment ends at 103.500'),
           ('811,2,0', '811,x,0', "line 4: action_id='x'"),
           ('811,2,0', '811,-2,0', "line 4: action_id='-2'"),
           ('811,2,0', '811,2.5,0', "line 4: action_id='2.5'"),
           ('811,2,0', '811,9,0', 'line 4: action 9 is not in'),
           ('811,2,0', '811,,0', "line 4: action_id=''"),
           ('0.811,2,0', '2,0', 'line 4: '), ('2,0', '2,0,0', 'line 4: 9 cells'),
           ('kitchen,0003', ',0003', 'line 4: the file is'),
           ('kitchen', 'garden', "line 1: no video 'garden'"), ('0003', '0001', 'line 4: ')]
CASES = [(k,*o) for k,v in BAD.items() for o in v] + [('ava',*o) for o in AVA_BAD]


@pytest.mark.parametrize('name,old,new,msg', CASES)
def test_malformed_files_are_refused_with_the_place(name, old, new, msg, videos, tmp_path):
    text = AVA if name == 'ava' else FIXTURES[name][1]
    assert old in text
    count = -1 if old == 'ALIGNABLE_ANNOTATION' else 1
    file = write(tmp_path, text.replace(old, new, count))
    kwargs = dict(labels=ACTIONS, format='ava') if name == 'ava' else {}
    with pytest.raises(ValueError) as e: read_moments(file, videos, **kwargs)
    found = str(e.value)
    assert found.startswith(f'{file}: ') and msg in found and found.endswith('.'), found


def test_each_format_refuses_ten_inputs():
    counts = {o: sum(len(v) for k,v in BAD.items() if k.split()[0] == o) for o in moment_formats}
    assert all(v >= 10 for k,v in counts.items() if k != 'ava') and len(AVA_BAD) >= 10


@pytest.mark.parametrize('name', FIXTURES)
def test_truncated_files_never_crash(name, tmp_path):
    "Each format reads, or refuses with ValueError, what is left of a file of any format"
    text = FIXTURES[name][1]
    for n in (1, 5, len(text)//3, len(text)//2, len(text)-3):
        file = write(tmp_path, text[:n])
        for form in moment_formats:
            try: read_moments(file, format=form)
            except ValueError as e: assert str(e).startswith(f'{file}: ')


@pytest.mark.parametrize('text', [
    'null', '[]', '{}', '[null]', '[[]]', '[{}]', '{"database": null}', '<a/>', '<', '[1', '{"a": 1}',
    '['*100_000, '{"a": {"annotations": 3}}', '\0', 'file,label', '"', 'WEBVTT', '1\n-->', '0\t1'])
def test_other_content_is_refused(text, tmp_path):
    file = write(tmp_path, text)
    for form in (None, *moment_formats):
        with pytest.raises(ValueError, match='kitchen.dat: '): read_moments(file, format=form)


def test_xml_is_data(tmp_path):
    "Entities do not expand, and the depth of a document is not limited by the stack"
    bomb = '<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;">]><annotations>&c;</annotations>'
    for encoding in ('utf-8','utf-16'):
        file = write(tmp_path, bomb, encoding=encoding)
        with pytest.raises(ValueError, match='document type'): read_moments(file)
    deep = parse_xml(b'<a>'*100_000 + b'</a>'*100_000)
    assert sum(1 for _ in deep.iter('a')) == 99_999


def test_messages_do_not_control_the_terminal(tmp_path):
    file = write(tmp_path, json.dumps({'\x1b[2J': dict(annotations=[dict(segment='\x1b[31m')])}))
    with pytest.raises(ValueError) as e: read_moments(file)
    assert '\x1b' not in str(e.value)


@pytest.mark.parametrize('seed', range(3))
def test_damaged_bytes_never_crash(seed, tmp_path):
    import random
    rng = random.Random(seed)
    for form,text in FIXTURES.values():
        for _ in range(15):
            data = bytearray(text.encode())
            for _ in range(rng.randint(1, 4)): data[rng.randrange(len(data))] = rng.randrange(256)
            (tmp_path/'a').write_bytes(data)
            for name in (None, form):
                try: read_moments(tmp_path/'a', format=name)
                except ValueError as e: assert str(e).startswith(f'{tmp_path/"a"}: ')
