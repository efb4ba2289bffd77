"""Load many forged settings of models: `python tests/fuzz_settings.py [NUMBER]` prints what happened.

Each file has a matching digest. It must load or raise `ValueError`, in at most 5 seconds and 1 GB of memory."""
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
         'timm.resnet18', 'timm.resnet18.a1_in1k', 'timm.hf-hub:a/b', 'timm.local-dir:/etc', 'timm.nothing', 'timm.',
         'hf-hub:a/b', 'torch.nn.LSTM', 'torch.nn.Linear', 'torch.load', 'os.system', 'builtins.eval', 'third.pt',
         '/etc/passwd', 'http://a.b/c.pth', 'DEFAULT', 'IMAGENET1K_V1', 'vidseq.models.encoders.small_cnn',
         'vidseq.models.frame_models.RNNModel', 'vidseq.models.conv3d.VideoModel', 'vidseq.models.vit.TimeSformerViT',
         'vidseq.models.timesformer.TimeSformer', 'vidseq.models.layers.AttentionPool', 'vidseq.models.vit.PaperBlock',
         'vidseq.models.weights.read_weights', 'vidseq.data.samplers.spread_frames', 'vidseq.data.samplers.first_frames',
         'vidseq.models.encoders.create_encoder', 'vidseq.models.vit.load_timesformer', '', 'a', '\udce9', 'x'*500]
values = [None, True, False, [], {}, [[]], {'name': 'torch.nn.GRU', 'kwargs': {}}, [1, 2], [1]*3, 'crop', 'pad']
keywords = ['pretrained', 'weights', 'weights_backbone', 'checkpoint_path', 'pretrained_cfg', 'arch', 'rnn', 'pool',
            'block', 'n_out', 'num_classes', 'hidden_size', 'num_rnn_layers', 'grid', 'n_in', 'kernel_size', 'depth',
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
    kind = rng.choice(['size', 'size', 'name', 'name', 'value', 'remove', 'keyword', 'keyword', 'nest', 'repeat'])
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
    for i in range(n):
        name = rng.choice(sorted(originals))
        settings = originals[name]
        for _ in range(rng.randint(1, most)): settings = mutate(settings, rng)
        yield name, settings


def forged_names(originals):
    "Yield pairs of a name of a model and its settings with a forged name or keyword"
    for name,settings in originals.items():
        kwargs = [dict(settings['model']['kwargs'], **{k: v}) for k,v in itertools.product(keywords, names)]
        models = [dict(settings['model'], kwargs=o) for o in kwargs]
        for model in [dict(name=o, kwargs={}) for o in names] + models: yield name, settings | dict(model=model)
    for k,v in itertools.product(('weights','pretrained','file'), names):
        arch = dict(name='torchvision.models.resnet18', kwargs={k: v})
        yield 'simple', originals['simple'] | dict(model=dict(originals['simple']['model'], kwargs=dict(arch=arch)))


def main(n=2000):
    "Load `n` forged models and print the outcomes, the longest time and the largest memory"
    import resource
    import tempfile

    from saved_models import makers, saved_files, settings_of, write_model
    from vidseq.deploy.saving import load_pretrained
    warnings.simplefilter('ignore')
    originals = {k: settings_of(k) for k in makers}
    outcomes,times,problems = Counter(),[],[]
    def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**10 # MB on Linux
    before = peak()
    with tempfile.TemporaryDirectory() as tmp:
        for name,settings in forged(originals, n):
            folder = write_model(Path(tmp)/'model', settings, saved_files(name)[1])
            start = time.process_time()
            try:
                load_pretrained(folder)
                outcomes['loaded'] += 1
            except ValueError as e: outcomes['refused' if str(folder) in str(e) else 'refused without the file'] += 1
            except BaseException as e: problems.append((type(e).__name__, str(e)[:200], settings['model']))
            times.append(time.process_time()-start)
    memory = peak()-before
    print(f'{n} forged models: {dict(outcomes)}; {max(times):.1f} s and {memory:.0f} MB at most')
    for o in problems: print(o)
    return problems or max(times) > 5 or memory > 1000 or outcomes['refused without the file']


if __name__ == '__main__': sys.exit(bool(main(*map(int, sys.argv[1:]))))
