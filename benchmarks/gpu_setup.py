"Share between the checks of gpu.py: the device, the time budget, clips, models, and rows of tables."
import gc
import os
import time
import traceback
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path

import torch
from fastai.vision.all import AMPMode, default_device, resnet18
from harness import markdown_table
from torchvision.models import VisionTransformer
from torchvision.models.video import r3d_18

from vidseq.data.block import VideoDataLoaders
from vidseq.datasets.shapes import moving_shapes
from vidseq.models.conv3d import Conv3dModel, VideoModel
from vidseq.models.encoders import small_cnn
from vidseq.models.frame_models import ConvLSTMModel, RNNModel, SimpleModel
from vidseq.models.layers import AttentionPool
from vidseq.models.streams import StreamModel
from vidseq.models.timesformer import TimeSformer, small_timesformer
from vidseq.models.vit import JointBlock, TimeSformerViT
from vidseq.train.amp import amp_mode
from vidseq.video.decode import get_videos

n_classes = 6 # of `moving_shapes`


def error_cells(e):
    "Return the cells of a check that failed: the error and its place"
    last = traceback.extract_tb(e.__traceback__)[-1]
    return dict(error=f'{type(e).__name__}: {str(e)[:200]} ({Path(last.filename).name}, line {last.lineno})')


skipped = dict(error='skipped: no time left')


class Run:
    "Hold what the checks of a run share; with `tiny`, everything runs on the CPU, to test the script"
    def __init__(self, folder, seconds=450., tiny=False, baseline=None):
        self.folder,self.tiny,self.baseline = Path(folder),tiny,baseline
        self.device = default_device(not tiny)
        self.has_cuda = self.device.type == 'cuda'
        self.half = torch.float16 if amp_mode(self.device) == AMPMode.FP16 else torch.bfloat16
        self.end = time.perf_counter()+seconds

    @property
    def card(self):
        "Return the name of the GPU"
        if not self.has_cuda: return 'CPU: a tiny run, to test the script'
        return torch.cuda.get_device_name(self.device)

    @cached_property
    def shapes(self):
        "Return a folder of small videos in which only motion distinguishes the classes"
        n_groups = 4 if self.tiny else 12
        return moving_shapes(self.folder/'shapes', n_groups, 1, seconds=.6, size=(64,48), n_workers=0)

    @cached_property
    def clips(self):
        "Return videos like those of UCF101: links to one of 320x240 pixels and 6 seconds for each class"
        settings = dict(seconds=.6, size=(64,48)) if self.tiny else dict(seconds=6., size=(320,240))
        drawn = moving_shapes(self.folder/'drawn', n_groups=1, n_clips=1, n_workers=0, **settings)
        return link_videos(get_videos(drawn), self.folder/'clips', 12 if self.tiny else 240)

    def loaders(self, **kwargs):
        "Create `DataLoaders` of the small videos"
        settings = dict(seq_len=4, image_size=32, bs=8, num_workers=0, seed=0, valid_pct=.25)
        return VideoDataLoaders.from_folder(self.shapes, **settings | kwargs)

    def seconds_left(self): return self.end-time.perf_counter()

    def rows(self, candidates, f, needs=0.):
        """Yield the name of each candidate and its cells: the dict that `f` returns, or the error

        A candidate is skipped if less than `needs` seconds are left."""
        for name,o in candidates.items():
            yield name, self.try_cells(f, o) if self.seconds_left() > needs else skipped

    def try_cells(self, f, *args):
        "Return the cells `f(*args)`, or those of its error, after releasing the memory of the last row"
        self.free()
        try: return f(*args)
        except Exception as e: return error_cells(e)

    def synchronize(self):
        "Wait for the GPU"
        if self.has_cuda: torch.cuda.synchronize(self.device)

    def free(self):
        "Release unused memory and begin to measure its peak"
        gc.collect()
        if not self.has_cuda: return
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory(self):
        "Return the peak of allocated memory in MiB; an empty string without CUDA"
        return f'{torch.cuda.max_memory_allocated(self.device)/2**20:.0f}' if self.has_cuda else ''

    def seconds_of(self, f, *args):
        "Return the seconds until `f(*args)` returns, and until the GPU has completed its work"
        self.synchronize()
        start = time.perf_counter()
        f(*args)
        returned = time.perf_counter()-start
        self.synchronize()
        return returned, time.perf_counter()-start


def link_videos(videos, folder, n):
    "Create `n` hard links to `videos` in class folders of `folder`, and return them"
    links = []
    for i in range(n):
        video = videos[i%len(videos)]
        link = folder/video.parent.name/f'{i:05}{video.suffix}'
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(video, link)
        links.append(link)
    return links


@contextmanager
def quiet(learn):
    "Show no progress bars and no metrics of `learn`"
    with ExitStack() as stack:
        for o in (learn.no_bar(), learn.no_logging()): stack.enter_context(o)
        yield learn


def model_families(run, size):
    "Return functions that create a model of each family, for clips of 4 frames of `size` pixels, by name"
    frames = dict(arch=small_cnn if run.tiny else resnet18, pretrained=False)
    tokens = dict(image_size=size, num_frames=4, attn_dropout=0., ff_dropout=0.)
    deep = tokens | dict(depth=1 if run.tiny else 4, patch_size=size//4)
    vit = partial(VisionTransformer, size, size//4, 2, 2, 32, 64) # 2 layers, 2 heads, 32 features
    pooled = dict(pool=AttentionPool, chunk=2, checkpoint=True)
    gru = dict(rnn=torch.nn.GRU, num_rnn_layers=2, bidirectional=True, pool=AttentionPool)
    makes = {'SimpleModel': partial(SimpleModel, **frames),
             'SimpleModel, AttentionPool, checkpoint': partial(SimpleModel, **frames, **pooled),
             'RNNModel, LSTM': partial(RNNModel, **frames, hidden_size=32),
             'RNNModel, bidirectional GRU': partial(RNNModel, **frames, hidden_size=32, **gru),
             'ConvLSTMModel': partial(ConvLSTMModel, **frames, hidden_size=16, subtract_mean=True),
             'Conv3dModel': Conv3dModel,
             'TimeSformer': partial(TimeSformer, **deep),
             'TimeSformer, checkpoint': partial(TimeSformer, checkpoint=True, **deep),
             'small_timesformer': partial(small_timesformer, **tokens),
             'TimeSformerViT': partial(TimeSformerViT, vit, num_frames=4, pretrained=False),
             'TimeSformerViT, JointBlock, checkpoint': partial(
                 TimeSformerViT, vit, num_frames=4, pretrained=False, block=JointBlock, checkpoint=True),
             'StreamModel': partial(StreamModel, **frames)}
    if not run.tiny: makes['VideoModel, r3d_18'] = partial(VideoModel, r3d_18, pretrained=False)
    return {name: partial(make, n_out=n_classes) for name,make in makes.items()}


def cell_text(o):
    "Return the text of a cell, without what would end it"
    if isinstance(o, bool): return 'yes' if o else 'no'
    return ' '.join(str(o).replace('|', '/').split())


def rows_table(rows):
    "Format rows, pairs of a name and a dict of cells by column, as a Markdown table"
    columns = list(dict.fromkeys(k for _,cells in rows for k in cells))
    columns.sort(key='error'.__eq__) # last
    body = [[name, *(cell_text(cells.get(k, '')) for k in columns)] for name,cells in rows]
    return markdown_table(['', *columns], *body)
