"""Compare pretraining on the retained samples with the full source: time, waiting, bytes read.

With a CUDA GPU, ResNet-18 and ResNet-50 train at 160 pixels. Without one, a ResNet-8 trains at 64
pixels on the CPU, which also decodes. The retained classes are random, because the choice of
classes does not change the time.
"""

from benchmarks.harness.command import main

if __name__ == "__main__":
    main("end_to_end", __doc__)
