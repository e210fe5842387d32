"""The format of event files: what is written, how it is read, decoded and checked."""
