"Run the shell lines of the README unchanged. (Its Python lines are nbs/index.ipynb, which runs with the notebooks.)"
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


def shell_lines():
    blocks = re.findall(r'```sh\n(.*?)```', (root/'README.md').read_text(encoding='utf-8'), re.S)
    return [o for block in blocks for o in block.splitlines() if o.strip()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "Write the files that the README names: videos of twelve people, another folder, a new video and a long one"
    def write(name, motion, person, n, **kwargs):
        write_video(tmp_path/name, draw_clip(motion, person, 0, n=n, size=(64,48)), **kwargs)
    for name,people in (('my_videos', range(12)), ('other_videos', (12,))):
        for motion,p in product(list(motions)[:2], people): write(f'{name}/{motion}/p{p}_{motion}.avi', motion, p, 30)
    write('new.mp4', 'Grow', 7, 30, codec='libx264')
    write('long.mp4', 'Grow', 7, 150, codec='libx264')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vidseq.report.compare, 'epochs_for', lambda learn, seconds: 1)  # instead of two minutes
    return tmp_path


def test_the_shell_lines(folder, capsys):
    lines = shell_lines()
    commands = [o for o in lines if o.startswith('vidseq ')]
    assert len(commands) >= 8 and {o.split()[0] for o in lines} == {'vidseq','make'}
    printed = {}
    for line in commands:
        code = main(shlex.split(line, comments=True)[1:])
        out = printed[line.split()[1]] = capsys.readouterr()
        assert code == 0, (line, out.err[-500:])
    assert '24 of 24 videos are whole' in printed['check'].err
    assert '24 done' in printed['extract'].out
    assert len(list((folder/'my_videos-frames').rglob('*.jpg'))) == 720
    for name in ('index.html', 'scores.json', 'model/config.json', 'model/model.safetensors', 'model/README.md'):
        assert (folder/'vidseq-my_videos'/name).is_file()
    assert '1 group' in printed['evaluate'].out and 'new.mp4' in printed['predict'].out
    assert (folder/'model.onnx').stat().st_size


def test_the_make_targets_exist():
    targets = re.findall(r'^([a-z]+):', (root/'Makefile').read_text(encoding='utf-8'), re.M)
    wanted = re.findall(r'(?:^|`)make ([a-z]+)', (root/'README.md').read_text(encoding='utf-8'), re.M)
    assert {'demo','test','docs'} <= set(wanted) <= set(targets)
