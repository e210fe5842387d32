"""Measure how large things are: the table of layers, statistics, samples, activations, one copy to the host."""
