"Run the first lines of a new user in a new process, with small settings and without a download"
import os

from conftest import run_python

start = '''
import warnings; warnings.simplefilter('ignore')
from fastai.vision.all import *
from vidseq.all import *
from vidseq.datasets.shapes import draw_clip
'''

lines = start + '''
for motion in ('Grow', 'Shrink', 'MoveLeft'):
    for p in range(10): # two people are held out
        clip = draw_clip(motion, p, 0, n=12, size=(64,48))
        write_video(f'my_videos/{motion}/p{p}_{motion}.avi', clip)
write_video('new.mp4', draw_clip('Grow', 9, 0, n=12, size=(64,48)), codec='libx264')

path  = Path('my_videos')
dls   = VideoDataLoaders.from_folder(path, group='^[^_]+', seq_len=4, image_size=32, bs=4, num_workers=0)
learn = video_learner(dls, RNNModel, arch=resnet18, metrics=accuracy, pretrained=False)
learn.fine_tune(1)
predictions = learn.predict_video('new.mp4')
print(evaluate(learn))
learn.save_pretrained('my_model')
loaded = load_pretrained('my_model').predict_video('new.mp4')

assert len(predictions) == 3 and abs(sum(p for _,p in predictions) - 1) < 1e-5
assert [name for name,_ in predictions] == [name for name,_ in loaded]
assert all(abs(p-q) < 1e-5 for (_,p),(_,q) in zip(predictions, loaded))
assert not leaked_groups(dls, '^[^_]+')
'''

methods = start + '''
names = 'predict_video predict_timeline explain explain_gif evaluate time_sensitivity frame_importance'
names += ' class_activation model_card save_pretrained to_amp'
for name in names.split(): assert getattr(Learner, name) is globals()[name], name
for name in ('save_model', 'load_model'): assert globals()[name].__module__.startswith('fastai'), name
'''


def test_from_a_folder_of_videos_to_a_saved_model(tmp_path):
    out = run_python('-c', lines, cwd=tmp_path)
    assert 'Split by group' in out and '95 % confidence interval' in out
    assert sorted(os.listdir(tmp_path/'my_model')) == ['README.md', 'config.json', 'model.safetensors']


def test_what_takes_a_trained_learner_is_a_function_and_a_method(tmp_path):
    run_python('-c', methods, cwd=tmp_path)
