"""One module for each peer. The benchmark finds it by its name.

A module has:

* a docstring that says how the peer is used, and why this is the recommended way;
* `DISTRIBUTION`, the package that is installed, and `REQUIRES`, the modules that are imported;
* `load(job)`, which returns a function that loads an epoch (`job.Epochs`);
* `LIBRARIES`, shared libraries of the system, if it needs any;
* `prepare(job)`, if the peer needs files of its own in `job.own`.
"""
