"""Find out why: where a NaN or Inf came from, and the replay of a step."""
