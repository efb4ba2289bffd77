"""Hostile arguments, names, outputs and streams for commands, and for the functions that write files."""
import contextlib
import io
import json
import os
import socket
import stat
import sys
import warnings
from pathlib import Path

import pandas as pd
from hostile import gives, refuses

from conftest import run_command as run
from vidseq.cli import main
from vidseq.commands.arguments import (Output, SafeStream, describe_error, write_csv,
                                       write_report_csv)
from vidseq.data.show import plot_text
from vidseq.files import atomic_file, atomic_folder, check_output, check_range, preview_list, printable
from vidseq.parallel import parallel_map, progress
from vidseq.video.extract import avi2frames, check_videos, extract_videos


posix = os.name == 'posix'


# Values of arguments

def wrong_usage(folder, args, *words):
    "Return what is wrong with the end of a command with wrong arguments"
    code,out,err = run(*args)
    last = err.splitlines()[-1]
    return [o for o in words if o not in last] + [out]*bool(out) + [code]*(code != 2)

predict,evaluate,timeline = ('predict','m','v'),('evaluate','m','d'),('timeline','m','v')
train,extract,split = ('train','d'),('extract','d'),('split','d')
values = {
    ('--top', 'a whole number of at least 1'): {predict: ['-1', '0', '1.5', 'x', '', 'nan', '\x1b[2J']},
    ('--views', 'from 1 to'): {evaluate: ['0', '-3', 'inf']},
    ('--crops', 'choose from'): {evaluate: ['2']},
    ('--groups', 'not a regular expression'): {evaluate: ['(', '*'], train: ['['], split: ['(?P<a']},
    ('--window', 'a number above 0'): {timeline: ['inf', '0', '-1', 'nan', '1e300']},
    ('--stride', 'a number above 0'): {timeline: ['nan', '0', '-inf']},
    ('--fps', 'a number above 0'): {timeline: ['inf', '-1', '0']},
    ('--threshold', 'a number from 0 to 1'): {timeline: ['2', '-0.1', 'nan']},
    ('--csv', 'the path is empty'): {timeline: [''], ('check','v'): ['', ' ']},
    ('--seconds', 'a number above 0'): {train: ['inf', '0', '-5', 'nan', '1e9'], ('demo',): ['inf']},
    ('--bs', 'a whole number from 1'): {train: ['0', '-1', '1e3']},
    ('--size', 'a whole number from 1'): {train: ['0', '-1', '10000000'], extract: ['0', '-8', '70000']},
    ('--frames', 'a whole number from 1'): {train: ['0']},
    ('--step', 'a whole number from 1'): {train: ['0', '-2']},
    ('--seed', 'a whole number from 0'): {train: ['-1', str(2**32)], split: ['x']},
    ('--workers', 'a whole number from 0'): {train: ['-1', '5000'], extract: ['-1'], ('check','v'): ['-2']},
    ('--quality', 'a whole number from 1 to 95'): {extract: ['0', '100', '-1']},
    ('--out', 'the path is empty'): {extract: [''], train: [''], split: [''], ('demo',): ['']},
    ('--valid-pct', 'a number above 0 and below 1'): {split: ['5', 'nan', '0', '1', '-.2', 'inf']}}
for (option,words),commands in values.items():
    for command,wrong in commands.items():
        for o in wrong:
            gives(f'{command[0]} {option} {o!r}',
                  lambda p, a=(*command, f'{option}={o}'), w=(option,words): wrong_usage(p, a, *w), [])

gives('no command', lambda p: run()[0], 2)
gives('an unknown command', lambda p: run('transcode')[0], 2)
gives('--version', lambda p: run('--version')[:2], (0, f'vidseq {sys.modules["vidseq"].__version__}\n'))
gives('--help', lambda p: (run('--help')[0], 'COMMAND' in run('--help')[1]), (0, True))


# The same values in functions

functions = {
    'n_workers': [lambda o: parallel_map(abs, [1], n_workers=o), lambda o: check_videos(['a.avi'],
        n_workers=o)],
    'quality': [lambda o: avi2frames('a.avi', quality=o), lambda o: extract_videos(['a.avi'], quality=o)],
    'size': [lambda o: avi2frames('a.avi', size=o), lambda o: extract_videos(['a.avi'], size=o)]}
bad = dict(n_workers=[-1, 1.5, True, '2', float('nan')], quality=[0, 96, float('inf')], size=[0, -1, .5,
    10**6])
for name,fs in functions.items():
    for o in bad[name]:
        for i,f in enumerate(fs):
            refuses(f'function {i}: {name}={o!r}', lambda p, f=f, o=o: f(o), f'{name}={o!r}',
                    'out of range. Give')
refuses('a range with an odd value', lambda p: check_range('n', '\x1b[2J', 1), r'n=', r'\x1b[2J',
        'at least 1')
gives('a range and no value', lambda p: check_range('n', None, 1))


# Errors of commands: one line, exit code 1

def fails(name, args, *words):
    "Add a case: the command ends with exit code 1, one line with `words`, and nothing on stdout"
    def act(folder):
        code,out,err = run(*args(folder))
        lines = [o for o in err.splitlines() if o.startswith('vidseq: ')]
        missing = [o for o in words if o not in err]
        return missing + [out]*bool(out) + [code]*(code != 1) + ['Traceback']*('Traceback' in err) + lines[1:]
    gives(name, act, [])

def folder_of(path):
    "Create a folder"
    path.mkdir(parents=True)
    return path

def text_of(path, text='junk'):
    "Write a text file"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path

for command in ('train','extract','split'):
    fails(f'{command}: no such folder', lambda p, c=command: (c, p/'nowhere'), 'nowhere: no such folder')
    fails(f'{command}: an empty folder', lambda p, c=command: (c, folder_of(p/'e')), 'e: no videos')
fails('train: --out is a file', lambda p: ('train', folder_of(p/'d'), '--out', text_of(p/'f')),
      'f: a file, not a folder')
fails('train: --out is below a file', lambda p: ('train', folder_of(p/'d'), '--out', text_of(p/'f')/'o'),
      'f: ')
fails('check: no such file', lambda p: ('check', folder_of(p/'e')), 'e: no videos')
fails('check: --csv is a folder', lambda p: ('check', p/'a.avi', '--csv', folder_of(p/'c')), 'c: a folder')
fails('split: --out is a folder', lambda p: ('split', p, '--out', folder_of(p/'c')), 'c: a folder')
fails('export: an unknown format', lambda p: ('export', p/'m', p/'a.txt'), 'a.txt: unknown format')
fails('export: OUT is a folder', lambda p: ('export', p/'m', folder_of(p/'a.onnx')), 'a.onnx: a folder')
for command in ('predict','timeline','evaluate'):
    fails(f'{command}: no model', lambda p, c=command: (c, p/'nowhere', p), 'nowhere')
    fails(f'{command}: a file as model', lambda p, c=command: (c, text_of(p/'m.pkl'), p), 'm.pkl')
gives('info: not a video', lambda p: run('info', text_of(p/'a.avi'))[0], 1)
gives('info: a name with line breaks', lambda p: run('info', p/'a\nb\x1b[31m.avi')[2].count('\n'), 1)
gives('info: a name with terminal codes', lambda p: '\x1b' in run('info', p/'a\x1b[31m.avi')[2], False)
gives('check: names stay on one line', lambda p: run('check', p/'a\nb\t\x07.avi')[1].count('\n'), 1)
gives('check: a name with tabs has no columns', lambda p: run('check', p/'a\tb.avi')[1].count('\t'), 2)
if sys.platform == 'linux':
    odd = os.fsdecode(b'caf\xe9.avi')
    gives('check: a name that is not UTF-8', lambda p: r'caf\xe9.avi' in run('check', p/odd)[1], True)
    gives('check: a csv with a name that is not UTF-8',
          lambda p: (run('check', p/odd, '--csv', p/'c.csv')[0], b'caf\xe9.avi' in (p/'c.csv').read_bytes()),
              (1, True))


# Errors as one line

gives('describe: memory', lambda p: describe_error(MemoryError()).partition('.')[0], 'out of memory')
gives('describe: a file', lambda p: describe_error(PermissionError(13, 'Permission denied', 'a.csv')),
      'a.csv: Permission denied.')
gives('describe: several lines',
      lambda p: describe_error(RuntimeError('CUDA error\nCompile with')).partition(' `')[0],
      'RuntimeError: CUDA error')
gives('describe: no message', lambda p: 'RecursionError' in describe_error(RecursionError()), True)
gives('describe: no message of a ValueError', lambda p: describe_error(ValueError()), 'ValueError')
gives('describe: unicode',
      lambda p: describe_error(UnicodeEncodeError('ascii', 'é', 0, 1,
      'ordinal')).startswith('UnicodeEncodeError: '), True)


# Streams

def json_of(data):
    out = Output(io.StringIO())
    out.json(data)
    return json.loads(out.stream.getvalue(), parse_constant=lambda o: f'constant {o}')

nan,inf = float('nan'),float('inf')
gives('json: NaN', lambda p: json_of(dict(a=nan, b=[inf, -inf, (1, nan)])), dict(a=None, b=[None, None, [1,
      None]]))
gives('json: numpy', lambda p: json_of(pd.DataFrame(dict(a=[1, 2], b=[nan, .5])).to_dict('records')),
      [dict(a=1, b=None), dict(a=2, b=.5)])
gives('json: numpy scalars', lambda p: json_of([pd.Series([1]).sum(), pd.Series([nan]).max()]), [1, None])
gives('json: keys that are no strings', lambda p: json_of({1: 2, None: 3}), {'1': 2, 'None': 3})
gives('json: a path', lambda p: json_of([Path('a')/'b']), [str(Path('a')/'b')])
gives('json: a surrogate', lambda p: json_of(['\udce9']), ['\udce9'])

def safe(text):
    stream = io.StringIO()
    SafeStream(stream).write(text)
    return stream.getvalue()

gives('messages: colors', lambda p: safe('\x1b[31mred\n'), '\\x1b[31mred\n')
gives('messages: a bar returns to the start of the line', lambda p: safe('\r|██| 5\r'), '\r|██| 5\r')
gives('messages: the title of a terminal', lambda p: safe('\x1b]0;title\x07'), '\\x1b]0;title\\x07')
gives('messages: 8-bit codes', lambda p: safe('\x9b31m'), '\\x9b31m')
for o,escaped in {'a\nb': r'a\nb', 'a\0': r'a\x00', '\u202eabc': r'\u202eabc', '\ud800': r'\ud800',
                  'é 視頻 👍 नी': 'é 視頻 👍 नी', 'a\u2028b': r'a\u2028b', '\x7f': r'\x7f'}.items():
    gives(f'printable {o!r}', lambda p, o=o: printable(o), escaped)
gives('a preview of names with line breaks', lambda p: preview_list(['a\nb', 'c']), r'a\nb, c')

def ascii_stdout(folder):
    "Return what a command prints to a stream that has ASCII only"
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding='ascii')
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(io.StringIO()):
        code = main(['check', str(folder/'視é.avi')])
    return code,b'\\u8996\\xe9.avi' in raw.getvalue()
gives('a name that ASCII does not have', ascii_stdout, (1, True))

class Closed(io.StringIO):
    "Raise like a pipe whose reader has ended"
    def write(self, text): raise BrokenPipeError

def closed_stdout(folder):
    err = io.StringIO()
    with contextlib.redirect_stdout(Closed()), contextlib.redirect_stderr(err):
        code = main(['info', str(folder/'a.avi')])
    return code,err.getvalue()
gives('the reader of stdout has ended', closed_stdout, (141, ''))

class Full(io.StringIO):
    "Raise like a full disk when the buffer is written"
    def flush(self): raise OSError(28, 'No space left on device')

def full_stdout(folder):
    err = io.StringIO()
    with contextlib.redirect_stdout(Full()), contextlib.redirect_stderr(err): code = main(['--version'])
    return code,err.getvalue()
gives('stdout on a full disk', full_stdout, (1, 'vidseq: stdout: No space left on device.\n'))

def lines_of_progress(n, total):
    out = io.StringIO()
    with contextlib.redirect_stdout(out): items = list(progress(iter(range(n)), total, 'copied'))
    return items == list(range(n)),out.getvalue().count('\n'),'\r' in out.getvalue()
for n,total,expected in [(1000,1000,10), (3,3,3), (0,0,0), (5,None,0), (5,100,0)]:
    gives(f'progress of {n} items of {total}', lambda p, n=n, t=total: lines_of_progress(n, t), (True,
          expected, False))


# Reports that a spreadsheet opens, and tables that vidseq reads

formulas = ['=cmd|x', '+1', '-x', '@SUM(A1)', '\tx', 'run']
def written(folder, write, **columns):
    write(pd.DataFrame(columns), folder/'a.csv')
    return pd.read_csv(folder/'a.csv', keep_default_na=False, dtype=str).to_dict('list')
gives('a report with formulas', lambda p: written(p, write_report_csv, reason=formulas)['reason'],
      [f"'{o}" for o in formulas[:5]]+['run'])
gives('a report with files like formulas', lambda p: written(p, write_report_csv, file=['=a.avi',
      'b/=c.avi'])['file'], ['./=a.avi', 'b/=c.avi'])
gives('a report with a column like a formula', lambda p: list(written(p, write_report_csv, **{'=x': [1]})),
      ["'=x"])
gives('a table keeps its names', lambda p: written(p, write_csv, label=formulas)['label'], formulas)
for name in ('a,b', 'a"b', 'a\nb', "'a", ' a '):
    gives(f'a report with {name!r}', lambda p, o=name: written(p, write_report_csv, file=[o])['file'], [name])


# Where files are written

def write_to(path, text='new'):
    with atomic_file(path) as part: part.write_text(text)

def after(folder, prepare, look):
    "Write a file over what `prepare` makes, and return what `look` finds"
    path = folder/'a.txt'
    prepare(path)
    write_to(path)
    return look(path),sorted(o for o in os.listdir(folder) if o.startswith('.'))

gives('a new file in new folders', lambda p: (write_to(p/'x'/'y'/'a.txt'),
      (p/'x'/'y'/'a.txt').read_text())[1], 'new')
gives('a file is replaced', lambda p: after(p, text_of, Path.read_text), ('new', []))
refuses('a folder instead of a file', lambda p: write_to(folder_of(p/'a')),
        'a folder. Give the name of a file', "a'", error=IsADirectoryError)
refuses('below a file', lambda p: write_to(text_of(p/'a')/'b'), 'a file, not a folder', error=OSError)
refuses('below a file, two levels', lambda p: write_to(text_of(p/'a')/'b'/'c'), "a", error=OSError)
refuses('no name', lambda p: write_to(p/''), 'a folder', error=IsADirectoryError)
refuses('a check before the work', lambda p: check_output(folder_of(p/'a')), 'a folder',
        error=IsADirectoryError)
gives('a check leaves nothing', lambda p: (check_output(p/'a'), os.listdir(p))[1], [])

def failing(folder):
    "Fail while writing over a file; return what remains"
    text_of(folder/'a', 'old')
    with contextlib.suppress(ZeroDivisionError), atomic_file(folder/'a') as part:
        part.write_text('half')
        raise ZeroDivisionError
    return (folder/'a').read_text(),os.listdir(folder)
gives('an error keeps the old file', failing, ('old', ['a']))

def cleaned(folder):
    "Write beside the hidden folder of a run that was killed"
    part = folder_of(folder/'.vidseq-0123456789ab.part')
    (part/'a').write_text('half')
    os.utime(part, (0,0))
    write_to(folder/'a')
    return os.listdir(folder)
gives('leftovers are removed', cleaned, ['a'])

if posix:
    def link(path, target=None):
        target = target or path.with_name('target.txt')
        text_of(target, 'old')
        path.symlink_to(target)

    gives('a link stays a link', lambda p: after(p, link, lambda o: (o.is_symlink(),
          o.resolve().read_text())), ((True, 'new'), []))
    gives('a link to nothing', lambda p: after(p, lambda o: o.symlink_to('later.txt'),
          lambda o: (o.is_symlink(), (p/'later.txt').read_text())), ((True, 'new'), []))
    gives('a link to a link', lambda p: after(p, lambda o: (link(p/'b'), o.symlink_to(p/'b')),
          lambda o: (o.is_symlink(), (p/'b').is_symlink(), (p/'target.txt').read_text())),
          ((True, True, 'new'), []))
    refuses('a link to itself', lambda p: ((p/'a').symlink_to(p/'a'), write_to(p/'a')), 'a', error=OSError)
    refuses('a link to a folder', lambda p: ((p/'a').symlink_to(folder_of(p/'b')), write_to(p/'a')),
            'a folder', error=IsADirectoryError)
    gives('permissions stay', lambda p: after(p, lambda o: text_of(o).chmod(0o640),
          lambda o: stat.S_IMODE(o.stat().st_mode)), (0o640, []))
    gives('/dev/null stays a device', lambda p: (write_to('/dev/null'),
          stat.S_ISCHR(os.stat('/dev/null').st_mode))[1], True)
    gives('a link to a device', lambda p: after(p, lambda o: o.symlink_to('/dev/null'),
          lambda o: (o.is_symlink(), stat.S_ISCHR(os.stat('/dev/null').st_mode))), ((True, True), []))

    def through_pipe(folder):
        "Write to a named pipe; return what its reader gets and whether the pipe is still there"
        os.mkfifo(folder/'pipe')
        reader = os.open(folder/'pipe', os.O_RDONLY|os.O_NONBLOCK)
        write_to(folder/'pipe')
        return os.read(reader, 100),stat.S_ISFIFO(os.stat(folder/'pipe').st_mode)
    gives('a named pipe', through_pipe, (b'new', True))

    def through_descriptor(folder):
        "Write to /dev/fd/N of an open file that has content"
        with open(folder/'a', 'w') as f:
            f.write('old ')
            f.flush()
            write_to(f'/dev/fd/{f.fileno()}')
            f.write(' more')
        return (folder/'a').read_text(),os.listdir(folder)
    gives('a name of an open file', through_descriptor, ('old new more', ['a']))

    def to_socket(folder):
        with socket.socket(socket.AF_UNIX) as s:
            try: s.bind(str(folder/'socket'))
            except OSError: raise OSError('socket: the path is too long for this system') from None
            write_to(folder/'socket')
    refuses('a socket', to_socket, 'socket', error=OSError)

    def linked_folder(folder):
        "Replace a folder that is a link"
        (folder/'frames').symlink_to(folder_of(folder/'disk'))
        with atomic_folder(folder/'frames', replace=True) as part: (part/'0.jpg').touch()
        return (folder/'frames').is_symlink(),os.listdir(folder/'disk'),sorted(os.listdir(folder))
    gives('a folder of frames that is a link', linked_folder, (True, ['0.jpg'], ['disk', 'frames']))
if Path('/dev/full').exists():
    refuses('a full device', lambda p: write_to('/dev/full'), 'No space left', error=OSError)
if posix and os.geteuid():
    refuses('a read-only file', lambda p: write_to((text_of(p/'a').chmod(0o400), p/'a')[1]), 'read-only',
            error=PermissionError)
    refuses('a read-only folder', lambda p: write_to((folder_of(p/'a').chmod(0o500), p/'a'/'b')[1]),
            'read-only', error=PermissionError)


# Figures

for o in ('$', '$x$', '$\\frac$', 'a$b$c$'):
    gives(f'a figure with {o!r}', lambda p, o=o: plot_text(o).replace('\\$', '').count('$'), 0)

def drawn(name):
    "Draw a title with the name of a class"
    import matplotlib.pyplot as plt
    fig,ax = plt.subplots(figsize=(1,1))
    ax.set_title(plot_text(name))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # characters that the font does not have
        fig.savefig(io.BytesIO(), dpi=20)
    plt.close(fig)
    return True
for o in ('$\\bad{$', '\udce9', '\0', 'a\nb', '$$', '^_{'): gives(f'draw {o!r}', lambda p, o=o: drawn(o),
    True)
