"The README's lines for a shell, run as they stand, in a folder that has the files they name. (Its Python is nbs/index.ipynb, run with the notebooks.)"
import re
import shlex
from pathlib import Path

import pytest

import vidseq.report
from vidseq.cli import main
from vidseq.shapes import draw_clip, motions
from vidseq.video import write_video

root = Path(__file__).parent.parent


def shell_lines():
    blocks = re.findall(r'```sh\n(.*?)```', (root/'README.md').read_text(encoding='utf-8'), re.S)
    return [o for block in blocks for o in block.splitlines() if o.strip()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "Class folders of twelve people's videos, another such folder, a new video and a long one"
    for name,people in (('my_videos', range(12)), ('other_videos', (12,))):
        for motion in list(motions)[:2]:
            for p in people: write_video(tmp_path/name/motion/f'p{p}_{motion}.avi', draw_clip(motion, p, 0, n=30, size=(64,48)))
    write_video(tmp_path/'new.mp4', draw_clip('Grow', 7, 0, n=30, size=(64,48)), codec='libx264')
    write_video(tmp_path/'long.mp4', draw_clip('Grow', 7, 0, n=150, size=(64,48)), codec='libx264')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vidseq.report, 'epochs_for', lambda learn, seconds: 1)  # an epoch in place of two minutes
    return tmp_path


def test_the_shell_lines(folder, capsys):
    lines = shell_lines()
    commands = [o for o in lines if o.startswith('vidseq ')]
    assert len(commands) >= 8 and {o.split()[0] for o in lines} == {'vidseq','make'}
    said = {}
    for line in commands:
        code = main(shlex.split(line, comments=True)[1:])
        said[line.split()[1]] = printed = capsys.readouterr()
        assert code == 0, (line, printed.err[-500:])
    assert '24 of 24 videos are whole' in said['check'].err
    assert '24 done' in said['extract'].out and len(list((folder/'my_videos-frames').rglob('*.jpg'))) == 720
    for name in ('index.html','scores.json','model.json','model.safetensors'): assert (folder/'vidseq-my_videos'/name).is_file()
    assert 'over 1 groups' in said['evaluate'].out and 'new.mp4' in said['predict'].out and (folder/'model.onnx').stat().st_size


def test_the_make_targets_are_there():
    targets = re.findall(r'^([a-z]+):', (root/'Makefile').read_text(encoding='utf-8'), re.M)
    wanted = re.findall(r'(?:^|`)make ([a-z]+)', (root/'README.md').read_text(encoding='utf-8'), re.M)
    assert {'demo','test','docs'} <= set(wanted) <= set(targets)
