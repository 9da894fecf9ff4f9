"""Many runs: every cell of a grid, in parallel, through whatever happens, into one table (`python -m prunelab.sweep`).

file.py reads a sweep's YAML into cells, each a command line of train.py; plan.py finds out what is done and what is
left; drive.py runs that on the places of an engine (local.py, on_ray.py) until all is done or a signal comes
(stopping.py), shows it and writes the results.
"""
