"""Load forged settings of models: `python tests/fuzz_settings.py [NUMBER]` prints what happened.

First NUMBER random files, then those with a size out of proportion to their weights. Each file has a matching
digest. It must load or raise `ValueError`, in at most 5 seconds and 1 GB of memory."""
import copy
import itertools
import random
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

sizes = [0, 1, 2, 3, -1, 7, 64, 1000, 10**4, 10**6, 10**9, 2**31, 2**63, 10**30, .5, 2e6, 1e300, -0., 1e-300]
names = ['torchvision.models.resnet18', 'torchvision.models.get_model', 'torchvision.models.video.r3d_18',
         'timm.resnet18', 'timm.resnet18.a1_in1k', 'timm.hf-hub:a/b', 'timm.local-dir:/etc', 'timm.nothing',
         'timm.',
         'hf-hub:a/b', 'torch.nn.LSTM', 'torch.nn.Linear', 'torch.load', 'os.system', 'builtins.eval',
         'third.pt',
         '/etc/passwd', 'http://a.b/c.pth', 'DEFAULT', 'IMAGENET1K_V1', 'vidseq.models.encoders.small_cnn',
         'vidseq.models.frame_models.RNNModel', 'vidseq.models.conv3d.VideoModel',
         'vidseq.models.vit.TimeSformerViT',
         'vidseq.models.timesformer.TimeSformer', 'vidseq.models.layers.AttentionPool',
         'vidseq.models.vit.PaperBlock',
         'vidseq.models.weights.read_weights', 'vidseq.data.samplers.spread_frames',
         'vidseq.data.samplers.first_frames',
         'vidseq.models.encoders.create_encoder', 'vidseq.models.vit.load_timesformer', '', 'a', '\udce9',
         'x'*500]
values = [None, True, False, [], {}, [[]], {'name': 'torch.nn.GRU', 'kwargs': {}}, [1, 2], [1]*3, 'crop',
    'pad']
keywords = ['pretrained', 'weights', 'weights_backbone', 'checkpoint_path', 'pretrained_cfg', 'arch', 'rnn',
    'pool',
            'block', 'n_out', 'num_classes', 'hidden_size', 'num_rnn_layers', 'grid', 'n_in', 'kernel_size',
            'depth',
            'image_size', 'num_frames', 'width', 'chunk', 'low_mem', 'self', '__class__', 'kwargs', 'args']


def places(data, path=()):
    "Yield the path of each value in nested lists and dicts"
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for k,v in items:
        yield path + (k,)
        yield from places(v, path + (k,))


def mutate(settings, rng):
    "Return a copy of `settings` with one value changed, removed, added or moved"
    settings = copy.deepcopy(settings)
    *parents,last = rng.choice([o for o in places(settings) if o[0] != 'weights_sha256'])
    part = settings
    for o in parents: part = part[o]
    kind = rng.choice(['size', 'size', 'name', 'name', 'value', 'remove', 'keyword', 'keyword', 'nest',
        'repeat'])
    if kind == 'remove': part.pop(last)
    elif kind == 'nest': part[last] = [part[last]]
    elif kind == 'repeat': part[last] = [part[last]]*rng.choice([2, 17, 1000])
    elif kind == 'keyword': arguments(settings)[rng.choice(keywords)] = rng.choice(sizes + names + values)
    else: part[last] = rng.choice(dict(size=sizes, name=names, value=values)[kind])
    return settings


def arguments(settings):
    "Return the dict of arguments of the model, or the settings themselves if they have none"
    model = settings.get('model')
    kwargs = model.get('kwargs') if isinstance(model, dict) else None
    return kwargs if isinstance(kwargs, dict) else settings


def forged(originals, n, seed=0, most=3):
    "Yield `n` pairs of a name of a model and its settings with one to `most` mutations"
    rng = random.Random(seed)
    for _ in range(n):
        name = rng.choice(sorted(originals))
        settings = originals[name]
        for _ in range(rng.randint(1, most)): settings = mutate(settings, rng)
        yield name, settings


def forged_names(originals):
    "Yield pairs of a name of a model and its settings with a forged name or keyword"
    for name,settings in originals.items():
        kwargs = [dict(settings['model']['kwargs'], **{k: v}) for k,v in itertools.product(keywords, names)]
        models = [dict(settings['model'], kwargs=o) for o in kwargs]
        for model in [dict(name=o,
                kwargs={}) for o in names] + models: yield name, settings | dict(model=model)
    for k,v in itertools.product(('weights','pretrained','file'), names):
        arch = dict(name='torchvision.models.resnet18', kwargs={k: v})
        yield 'simple', originals['simple'] | dict(model=dict(originals['simple']['model'],
        kwargs=dict(arch=arch)))


def kwarg(name, value, model='conv3d'): return model,['model','kwargs',name],value


timesformer = dict(n_out=2, dim=8, depth=1, heads=1, dim_head=8)
def timesformer_with(**kwargs):
    return 'conv3d',['model'],dict(name='vidseq.models.timesformer.TimeSformer', kwargs=timesformer | kwargs)


big_resize = ['Resize', dict(size=[30000,30000], method='crop', pad_mode='zeros')]
oversized = { # name -> model, place in its settings, value
    'outputs 2e6': kwarg('n_out', 2_000_000), 'outputs 1e6': kwarg('n_out', 10**6),
    'width 1e6': kwarg('width', 10**6), 'channels 64': kwarg('n_in', 64), 'channels 1e6': kwarg('n_in',
    10**6),
    'LSTM of 16000': kwarg('hidden_size', 16_000, 'rnn'), 'LSTM of 1e6': kwarg('hidden_size', 10**6, 'rnn'),
    'LSTM of 256 layers': kwarg('num_rnn_layers', 256, 'rnn'),
    'LSTM of 1e6 layers': kwarg('num_rnn_layers', 10**6, 'rnn'), 'grid 32': kwarg('grid', 32, 'simple'),
    'resnet152': kwarg('arch', 'torchvision.models.resnet152', 'simple'),
    'vit_h_14': kwarg('arch', 'torchvision.models.vit_h_14', 'rnn'),
    'timm of 1.8e9 parameters': kwarg('arch', 'timm.vit_gigantic_patch14_224', 'simple'),
    'image of 8192': kwarg('arch', dict(name='torchvision.models.vit_b_16', kwargs=dict(image_size=8192)),
    'simple'),
    'tokens of 1e6 features': timesformer_with(dim=10**6), '256 layers': timesformer_with(depth=256),
    '1e6 layers': timesformer_with(depth=10**6), 'heads of 1e6': timesformer_with(dim_head=10**6, heads=1000),
    'frames of 8192': timesformer_with(image_size=8192, patch_size=1, rotary_emb=False),
    'clips of 3e8 frames': ('conv3d', ['clips','seq_len'], 300_000_000),
    'clips of 1024 frames': ('conv3d', ['clips','seq_len'], 1024),
    'Resize to 30000': ('conv3d', ['item_tfms',0], big_resize),
    '1e6 numbers': ('conv3d', ['labels'], dict(kind='numbers', n=10**6)),
    '2e5 classes': ('conv3d', ['labels','vocab'], list(range(200_000))),
    'lists in lists': ('conv3d', ['card'], dict(a=[[]]*10**6)), 'a long name': ('conv3d', ['card'],
    dict(name='x'*10**6))}


def peak():
    "Return the largest memory that this process has used, in MB"
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**20 if sys.platform == 'darwin' else 2**10)


def measure(folder, weights, settings):
    "Load a model; return the outcome, the seconds of processor time, and the growth of the peak memory in MB"
    from saved_models import write_model
    from vidseq.deploy.saving import load_pretrained
    folder = write_model(folder, settings, weights)
    memory,start = peak(),time.process_time()
    try: load_pretrained(folder)
    except ValueError as e: outcome = 'refused' if str(folder) in str(e) else f'no file in the message: {e}'
    except BaseException as e: outcome = f'{type(e).__name__}: {e!s:.100} {settings["model"]}'
    else: outcome = 'loaded'
    return outcome, time.process_time()-start, peak()-memory


def main(n=2000):
    "Load `n` forged models and those in `oversized`; print the outcomes, times and memory"
    import tempfile

    from saved_models import changed, makers, saved_files, settings_of
    warnings.simplefilter('ignore')
    originals = {k: settings_of(k) for k in makers}
    with tempfile.TemporaryDirectory() as tmp:
        def load(name, settings): return measure(Path(tmp)/'model', saved_files(name)[1], settings)
        for name in originals: load(name, originals[name])
        sizes = {k: load(name, changed(originals[name], *o)) for k,(name,*o) in oversized.items()}
        results = [load(*o) for o in forged(originals, n)]
    for k,(outcome,seconds,memory) in sizes.items():
        print(f'{k:26} {outcome:8} {seconds:5.2f} s {memory:5.0f} MB')
    outcomes,times,memory = zip(*results)
    print(f'{n} forged models: {dict(Counter(outcomes))}; {max(times):.1f} s at most, {sum(memory):.0f} MB')
    found = {o for o,_,_ in (*results, *sizes.values())}
    return found - {'refused','loaded'} or max(times) > 5 or sum(o[2] for o in sizes.values()) > 1000


if __name__ == '__main__': sys.exit(bool(main(*map(int, sys.argv[1:]))))
