"""The figures of the SynFlow paper (Tanaka et al. 2020, arXiv 2006.05467) that need no or little training."""
