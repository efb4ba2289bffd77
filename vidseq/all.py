"Everything, for notebooks: `from vidseq.all import *`"
from vidseq.video import *
from vidseq.external import *
from vidseq.data import *
from vidseq.layers import *
from vidseq.models import *
from vidseq.timesformer import *
from vidseq.learner import *
from vidseq.report import *
