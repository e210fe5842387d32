"""What every test shares."""

import torch

torch.set_num_threads(1)  # tensors this small are slower on several threads, and far slower on a busy machine
