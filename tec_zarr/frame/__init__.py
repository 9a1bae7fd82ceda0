"""The byte format of an encoded chunk: frames and masks."""
