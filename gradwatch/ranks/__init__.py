"""Speak with the other processes of a training run: the only room that calls `torch.distributed`."""
