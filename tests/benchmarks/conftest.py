import torch

torch.set_num_threads(1)  # tiny tensors, and the suite runs in parallel
