"Train, predict and watch timelines from the command line, on drawn films"
import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest

from conftest import child_env
from conftest import run_command as run
from vidseq.datasets.films import drawn_films
from vidseq.datasets.moments import read_moments
from vidseq.video.decode import extract_frames, write_video

options = '--seconds', 60, '--folds', 2, '--size', 48, '--rate', 5


@pytest.fixture(scope='module')
def films(tmp_path_factory):
    path = tmp_path_factory.mktemp('films')/'data'
    return drawn_films(path, n_films=4, seconds=20, size=(80,64), n_workers=0, films_per_group=1,
                       classes=['MoveLeft','MoveRight'])


@pytest.fixture(scope='module')
def trained(films, tmp_path_factory):
    "Return the results of `vidseq train --timeline --live`"
    out = tmp_path_factory.mktemp('trained')/'out'
    code,printed,err = run('train', films/'moments.csv', '--timeline', '--live', '--out', out, *options)
    assert code == 0, err
    return out, printed


def lines_of(*args):
    code,printed,err = run(*args)
    assert code == 0, err
    return printed.splitlines()


@pytest.mark.slow
def test_train_timeline(films, trained):
    out,printed = trained
    assert 'event F1' in printed and 'that the heads had not seen' in printed
    scores = json.loads((out/'scores.json').read_text(encoding='utf-8'))
    assert scores['best'] in scores['heads']
    events = pd.read_csv(out/'events.csv')
    assert set(events.file) <= set(pd.read_csv(films/'moments.csv').file)
    page = (out/'index.html').read_text(encoding='utf-8')
    assert 'What happens when' in page and str(films) not in page


@pytest.mark.slow
def test_timeline_and_watch_agree(films, trained, tmp_path):
    "Check that a file, the same file as a stream, and a pipe have the same events, and that they are written"
    model,film = trained[0]/'model',films/'films'/'film_g01_c01.mp4'
    events = json.loads('\n'.join(lines_of('timeline', model, film, '--threshold', .3, '--json')))
    watched = [json.loads(o) for o in lines_of('watch', model, film, '--threshold', .3, '--json')]
    found = [o for o in watched if o['kind'] == 'event']
    def key(o): return o['label'], round(o['start'], 2), round(o['end'], 2)
    assert sorted(map(key, events)) == sorted(map(key, found)) and events
    started = {(o["label"],o["start"]) for o in watched if o["kind"] == "start"}
    assert {(o["label"],o["start"]) for o in found} <= started
    lines_of('timeline', model, film, '--threshold', .3, '--out', tmp_path/'events.csv')
    assert len(read_moments(tmp_path/'events.csv', overlaps=True)) == len(events)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs named pipes')
def test_watch_prints_while_frames_arrive(films, trained, tmp_path):
    "Feed a pipe in real time, and print the delay from the frame that decides to the printed line"
    film,pipe = films/'films'/'film_g01_c01.mp4',tmp_path/'pipe.ts'
    write_video(tmp_path/'film.ts', (np.asarray(o) for o in extract_frames(film)), fps=25)
    data = (tmp_path/'film.ts').read_bytes()
    os.mkfifo(pipe)
    command = [sys.executable, '-m', 'vidseq.cli', 'watch', str(trained[0]/'model'), str(pipe), '--threshold',
               '0.3', '--json']
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child_env())
    began = []
    def feed(n=400, seconds=20):
        with open(pipe, 'wb', buffering=0) as f: # waits for the reader
            began.append(time.time())
            for i in range(n):
                time.sleep(max(began[0]+seconds*i/n-time.time(), 0))
                f.write(data[len(data)*i//n:len(data)*(i+1)//n])
    threading.Thread(target=feed, daemon=True).start()
    printed = [(time.time(), json.loads(o)) for o in reader.stdout]
    assert reader.wait(60) == 0 and printed
    delays = [t-began[0]-o['start'] for t,o in printed if o['kind'] == 'start']
    print('seconds from the start of an event to its line:', [round(o, 2) for o in delays])
    assert printed[0][0] < began[0]+20 # before the film has ended
