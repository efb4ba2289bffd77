"Train, predict and watch timelines from the command line, on drawn films"
import json
import os
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest

from conftest import child_env
from conftest import run_command as run
from vidseq.datasets.films import drawn_films
from vidseq.datasets.moments import read_moments

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
    assert len(read_moments(tmp_path/'events.csv')) == len(events)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs named pipes')
def test_watch_prints_while_frames_arrive(films, trained, tmp_path):
    "Feed a pipe in real time, and print the delay from the frame that decides to the printed line"
    import av
    film,pipe = films/'films'/'film_g01_c01.mp4',tmp_path/'pipe.ts'
    os.mkfifo(pipe)
    command = [sys.executable, '-m', 'vidseq.cli', 'watch', str(trained[0]/'model'), str(pipe), '--threshold',
               '0.3', '--json']
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child_env())
    starts = []
    def feed():
        with av.open(str(film)) as source, av.open(str(pipe), 'w', format='mpegts') as target:
            stream = target.add_stream('mpeg2video', rate=25)
            stream.width,stream.height,stream.pix_fmt = 80,64,'yuv420p'
            for i,frame in enumerate(source.decode(video=0)):
                if not starts: starts.append(time.time())
                time.sleep(max(starts[0]+i/25-time.time(), 0))
                frame.pts = None
                for packet in stream.encode(frame): target.mux(packet)
            for packet in stream.encode(None): target.mux(packet)
    thread = threading.Thread(target=feed)
    thread.start()
    printed = [(time.time(), json.loads(o)) for o in reader.stdout]
    thread.join()
    assert reader.wait() == 0 and printed
    delays = [t-starts[0]-o['start'] for t,o in printed if o['kind'] == 'start']
    print('seconds from the start of an event to its line:', [round(o, 2) for o in delays])
    assert min(delays) < 20 # before the film has ended
