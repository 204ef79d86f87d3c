"""Public checkpoints in small: narrow, but of the public depth, token counts, names, dtypes and files."""
