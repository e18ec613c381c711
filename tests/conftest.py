"""What has to be so before any test is imported."""

import os

import torch

from tests import depth

depth.register()

if not torch.cuda.is_available():
    # Before anything imports Triton: what it defines is interpreted, or not, from then on.
    os.environ["TRITON_INTERPRET"] = "1"
