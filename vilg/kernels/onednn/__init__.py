"""The CPU fast path: operators of the oneDNN inside the Paddle wheel, on contiguous float32 tensors."""
