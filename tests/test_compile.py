"Compile every model with `torch.compile`: the same logits, and a known number of graph breaks"
import pytest
import torch
from fastai.vision.all import TensorImage

from all_models import frames_and_size, kinds
from vidseq.data.clip import ImageTuple

# torch does not trace `nn.LSTM` and `nn.GRU`, and runs gradient checkpointing of encoders outside of graphs
breaks = dict.fromkeys(['lstm','lstm2','gru_pool','gru_per_frame'], 1)
breaks |= dict(simple_checkpoint=3, stream_recurrent_1=4, stream_recurrent_2=4, # four members
               timeline_recurrent=2)


def compiled(model):
    "Return the model compiled for an example, not yet for other numbers of frames"
    torch.compiler.reset()
    return torch.compile(model, backend='eager')


def n_breaks(model, x):
    torch.compiler.reset()
    return torch._dynamo.explain(model)(x).graph_break_count


@torch.no_grad()
def check(name):
    torch.manual_seed(0)
    model,(n_frames,size) = kinds[name](n_out=5).eval(),frames_and_size(name)
    frames = torch.rand(n_frames, 2,3,size,size)
    clip,x = ImageTuple(TensorImage(o) for o in frames),frames.transpose(0,1) # as loaders give it, stacked
    want = model(x)
    for o in (clip, x): torch.testing.assert_close(compiled(model)(o), want, rtol=1e-4, atol=1e-5)
    most = breaks.get(name, 0)
    assert n_breaks(model, x) <= most
    assert n_breaks(model, clip) <= most+1 # frames of fastai's classes become plain tensors


@pytest.mark.parametrize('name', ['simple','lstm','timesformer'])
def test_models(name): check(name)


@pytest.mark.slow
@pytest.mark.parametrize('name', [o for o in kinds if o not in ('simple','lstm','timesformer')])
def test_all_models(name): check(name)
