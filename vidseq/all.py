"Everything, for notebooks: `from vidseq.all import *`"
from vidseq.files import *
from vidseq.video import *
from vidseq.archives import *
from vidseq.extract import *
from vidseq.external import *
from vidseq.shapes import *
from vidseq.samplers import *
from vidseq.clips import *
from vidseq.splits import *
from vidseq.show import *
from vidseq.data import *
from vidseq.augment import *
from vidseq.layers import *
from vidseq.models import *
from vidseq.timesformer import *
from vidseq.learner import *
from vidseq.report import *
