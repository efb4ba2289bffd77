"The models of the library, small, by the names of their variants"
from functools import partial

from torch import nn
from torchvision.models import VisionTransformer, resnet18
from torchvision.models.video import mc3_18, mvit_v1_b, mvit_v2_s, r2plus1d_18, r3d_18, s3d, swin3d_t

from vidseq.models.conv3d import Conv3dModel, VideoModel
from vidseq.models.encoders import small_cnn
from vidseq.models.frame_models import ConvLSTMModel, RNNModel, SimpleModel
from vidseq.models.heads import heads
from vidseq.models.layers import AttentionPool
from vidseq.models.streams import StreamModel, streams
from vidseq.models.timeline_model import TimelineModel
from vidseq.models.timesformer import TimeSformer, small_timesformer
from vidseq.models.vit import DividedBlock, JointBlock, PaperBlock, SpaceBlock, TimeSformerViT

small = dict(dim=32, image_size=32, patch_size=8, num_frames=8, depth=2, heads=2, dim_head=16)
vit = partial(VisionTransformer, 32, 8, 2, 2, 32, 64)
timm_vit = 'vit_tiny_patch16_224'
frames = partial(SimpleModel, small_cnn), partial(RNNModel, small_cnn), partial(ConvLSTMModel, small_cnn)
simple,rnn,convlstm = (partial(o, pretrained=False) for o in frames)
kinds = dict(
    simple=partial(SimpleModel, resnet18, pretrained=False),
    simple_pool=partial(simple, pool=AttentionPool, subtract_mean=True),
    simple_checkpoint=partial(simple, checkpoint=True, chunk=4),
    lstm=partial(rnn, hidden_size=8),
    lstm2=partial(rnn, hidden_size=8, num_rnn_layers=2, bidirectional=True, dropout=.5),
    gru_pool=partial(rnn, hidden_size=8, rnn=nn.GRU, bidirectional=True, pool=AttentionPool),
    gru_per_frame=partial(rnn, hidden_size=8, rnn=nn.GRU, per_frame=True),
    convlstm=partial(convlstm, hidden_size=8, num_rnn_layers=2),
    convlstm_pool=partial(convlstm, hidden_size=8, pool=AttentionPool),
    conv3d=Conv3dModel,
    conv3d_per_frame=partial(Conv3dModel, per_frame=True),
    conv3d_causal=partial(Conv3dModel, per_frame=True, causal=True),
    simple_shift=partial(simple, shift=.25),
    timesformer=partial(TimeSformer, **small),
    timesformer_checkpoint=partial(TimeSformer, checkpoint=True, **small),
    timesformer_wide=partial(TimeSformer, **small | dict(dim=512)), # recomputes its attention
    timesformer_positions=partial(TimeSformer, rotary_emb=False, **small),
    small_timesformer=small_timesformer,
    timm_vit=partial(TimeSformerViT, timm_vit, pretrained=False),
    vit_checkpoint=partial(TimeSformerViT, vit, pretrained=False, checkpoint=True, num_frames=4,
                           drop_path=.1))
kinds |= {f'timeline_{o}': partial(TimelineModel, small_cnn, heads=[o], causal=causal, pretrained=False)
          for o,causal in (('tcn',True), ('recurrent',False), ('attentive',True))}
kinds |= {f'vit_{o.__name__}': partial(TimeSformerViT, vit, pretrained=False, block=o)
          for o in (SpaceBlock, JointBlock, DividedBlock, PaperBlock)}
kinds |= {o.__name__: partial(VideoModel, o, pretrained=False)
          for o in (mc3_18, mvit_v1_b, mvit_v2_s, r2plus1d_18, r3d_18, s3d, swin3d_t)}
kinds |= {f'stream_{o}_{grid}': partial(StreamModel, small_cnn, pretrained=False, grid=grid,
                                        members=[dict(head=o, stream=s) for s in streams])
          for o in heads for grid in (1,2)}
kinds |= {f'vit_resized_{nearest}': partial(TimeSformerViT, vit, pretrained=False, nearest=nearest)
          for nearest in (False,True)}
sizes = dict(timm_vit=224, s3d=64, vit_resized_False=64, vit_resized_True=64)


def frames_and_size(name):
    "Return the number and size of the frames of a clip for a model"
    return 8, sizes.get(name, 32)
