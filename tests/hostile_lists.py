"""Hostile lists of clips: unknown codes, missing clips, other files."""
from pathlib import Path

from hostile import gives, refuses

from vidseq.data.list_splitter import ListSplitter
from vidseq.datasets.hmdb51 import hmdb51_splits

clips = [Path('data')/c/f'{c}_{i}.avi' for c in ('pour','wave') for i in range(4)]


def split_by(text, **kwargs):
    "Return an action that splits `clips` by a list"
    def act(folder):
        (folder/'list.txt').write_bytes(text if isinstance(text, bytes) else text.encode())
        return tuple(map(list, ListSplitter(folder/'list.txt', **kwargs)(clips)))
    return act


hmdb = ''.join(f'{o.name} {code}\n' for o,code in zip(clips, (1,1,2,0)*2))
sets = ([0,1,4,5], [2,6])
gives('list: codes of sets', split_by(hmdb), sets)
gives('list: codes, CRLF and blank lines', split_by(hmdb.replace('\n', ' \r\n\r\n')), sets)
gives('list: codes after tabs', split_by(hmdb.replace(' ', '\t')), sets)
gives('list: codes and a byte order mark', split_by(b'\xef\xbb\xbf'+hmdb.encode()), sets)
in_folders = ''.join(f'{o.parent.name}/{l}\n' for o,l in zip(clips, hmdb.split('\n')))
gives('list: codes and class folders', split_by(in_folders), sets)
gives('list: names', split_by('pour_0.avi\nwave_1\n'), ([1,2,3,4,6,7], [0,5]))
gives('list: numbers from 1', split_by('pour/pour_0.avi 1\nwave/wave_1.avi 2\n'), ([1,2,3,4,6,7], [0,5]))
gives('list: class numbers from 0', split_by('pour_0.avi 0\nwave_1.avi 1\n'), ([1,2,3,4,6,7], [0,5]))
gives('list: larger class numbers', split_by('pour_0 17\npour_1 17\nwave_1 99\n'), ([2,3,4,6,7], [0,1,5]))
for text,words in {
        'pour_0 1\npour_1 3\nwave_0 1\n': ('list.txt, line 2: pour_1: unknown code 3', 'Write 1'),
        'pour_0 1\npour_1 2\nwave_0\n': ('list.txt, line 3: wave_0: no code',),
        'pour_0 1\npour_1 0\nwave_0 1\n': ('no clip has the code 2 for validation',),
        'pour_0 2\npour_1 0\nwave_0 0\n': ('no clip has the code 1 for training',),
        'pour_0 1\npour_0.avi 2\n': ('line 2: pour_0.avi: is in the list twice',),
        'pour_0 1 120\n': ('list.txt, line 1: pour_0 1: 1 of the 1 names', 'not among the clips'),
        'name,set\npour_0,1\n': ('list.txt, line 1: name,set', '2 of the 2 names'),
        '12\n13\n': ('list.txt, line 1: 12', '2 of the 2 names'),
        'pour_0 train\npour_1 test\n': ('list.txt, line 1: pour_0 train', 'Correct the list'),
        '': ('list.txt: an empty list',), '\r\n \n': ('list.txt: an empty list',)}.items():
    refuses(f'list: {text!r}', split_by(text), *words)
refuses('list: a video', split_by(b'RIFF\xff\xfe\0'), 'list.txt: not a text in UTF-8')
refuses('list: codes beside a list for training', split_by(hmdb, train=clips[:1]), 'without `train`')
refuses('list: missing', lambda p: ListSplitter(p/'none.txt')(clips), 'none.txt', error=OSError)


def hmdb51_lists(text, **kwargs):
    "Return an action that reads the lists of a small HMDB51, in which the list of `wave` is `text`"
    def act(folder):
        lists = folder/'testTrainMulti_7030_splits'
        lists.mkdir()
        for c in ('pour','wave'):
            (folder/'hmdb51_org'/c).mkdir(parents=True)
            for i in range(4): (folder/'hmdb51_org'/c/f'{c}_{i}.avi').touch()
        (lists/'pour_test_split1.txt').write_text('pour_0.avi 1\npour_1.avi 2\n')
        (lists/'wave_test_split1.txt').write_text(text)
        return tuple([o.name for o in side] for side in hmdb51_splits(folder/'hmdb51_org', **kwargs))
    return act


whole = 'wave_0.avi 1\nwave_1.avi 2 \nwave_2.avi 0\n'
both = ['pour_0.avi','wave_0.avi'], ['pour_1.avi','wave_1.avi']
gives('hmdb51: whole lists', hmdb51_lists(whole), both)
gives('hmdb51: one side', hmdb51_lists('wave_0.avi 1\n'), (both[0], ['pour_1.avi']))
for k in (0, 4, -1, 1.5, '1', True): refuses(f'hmdb51: split {k!r}', hmdb51_lists(whole, split=k), 'split')
refuses('hmdb51: split without lists', hmdb51_lists(whole, split=2), '_7030_splits', 'list not found')
refuses('hmdb51: an unknown code', hmdb51_lists('wave_0.avi 5\n'), 'wave_test_split1.txt, line 1: unknown')
refuses('hmdb51: no code', hmdb51_lists('wave_0.avi\n'), 'wave_test_split1.txt, line 1: no code')
refuses('hmdb51: an empty list', hmdb51_lists(''), 'wave_test_split1.txt: an empty list')
refuses('hmdb51: a missing clip', hmdb51_lists('wave_9.avi 1\n'), '1 of the 3 clips', 'wave/wave_9')
subset = hmdb51_lists('wave_9.avi 1\n', missing_ok=True)
gives('hmdb51: a missing clip in a subset', subset, (['pour_0.avi'], ['pour_1.avi']))
refuses('hmdb51: a folder without lists', lambda p: hmdb51_splits(p, lists=p), 'no list *_test_split1.txt')
