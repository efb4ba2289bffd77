"Run the shell commands of the README unchanged; its Python code is run by the notebook nbs/index.ipynb"
import re
import shlex
from itertools import product
from pathlib import Path

import pytest

import vidseq.report.compare
from vidseq.cli import main
from vidseq.datasets.shapes import draw_clip, motions
from vidseq.video.decode import write_video

root = Path(__file__).parent.parent


def read(name): return (root/name).read_text(encoding='utf-8')


def shell_lines():
    "Return the lines of all shell blocks of the README"
    blocks = re.findall(r'```sh\n(.*?)```', read('README.md'), re.S)
    return [o for block in blocks for o in block.splitlines() if o.strip()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "Write the files that the README names: two folders of videos, a new video and a long one"
    def write(name, motion, person, n, **kwargs):
        write_video(tmp_path/name, draw_clip(motion, person, 0, n=n, size=(64,48)), **kwargs)
    for name,people in (('my_videos', range(12)), ('other_videos', (12,))):
        for motion,p in product(list(motions)[:2], people):
            write(f'{name}/{motion}/p{p}_{motion}.avi', motion, p, 30)
    write('new.mp4', 'Grow', 7, 30, codec='libx264')
    write('long.mp4', 'Grow', 7, 150, codec='libx264')
    monkeypatch.chdir(tmp_path)
    # Three seconds for each model instead of two minutes
    train_for = vidseq.report.compare._train_for
    def shortly(learn, lr, _, name): return train_for(learn, lr, 3, name)
    monkeypatch.setattr(vidseq.report.compare, '_train_for', shortly)
    return tmp_path


def test_the_shell_lines(folder, capsys):
    lines = shell_lines()
    commands = [o for o in lines if o.startswith('vidseq ')]
    assert len(commands) >= 8 and {o.split()[0] for o in lines} == {'vidseq','make'}
    printed = {}
    for line in commands:
        args = shlex.split(line, comments=True)[1:]
        if args[0] == 'train': args += ['--seconds', '40', '--seq-len', '4', '--size', '64']
        code = main(args)
        out = printed[line.split()[1]] = capsys.readouterr()
        assert code == 0, (line, out.err[-500:])
    assert '24 of 24 videos are whole' in printed['check'].err
    assert '24 done' in printed['extract'].out
    assert len(list((folder/'my_videos-frames').rglob('*.jpg'))) == 720
    report = folder/'vidseq-my_videos'
    for name in ('index.html', 'scores.json'): assert (report/name).is_file()
    for name in ('config.json', 'model.safetensors', 'README.md'): assert (report/'model'/name).is_file()
    assert 'one group' in printed['evaluate'].out and 'new.mp4' in printed['predict'].out
    assert (folder/'model.onnx').stat().st_size


def test_the_make_targets_exist():
    targets = re.findall(r'^([a-z]+):', read('Makefile'), re.M)
    wanted = re.findall(r'(?:^|`)make ([a-z]+)', read('README.md'), re.M)
    assert {'demo','test','docs'} <= set(wanted) <= set(targets)
