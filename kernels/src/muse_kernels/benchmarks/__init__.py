"""Times of the operations on a GPU beside the copy bandwidth of the same run: python -m muse_kernels.benchmarks."""
