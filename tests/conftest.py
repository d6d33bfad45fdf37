"""What holds for every test."""

import torch

# The tensors of the tests are tiny: a second thread only waits, for long on a busy machine.
torch.set_num_threads(1)
