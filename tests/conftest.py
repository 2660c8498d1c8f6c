"""Set before TensorFlow is imported; shared helpers are in `cases`."""

import os
import pathlib
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '-1')
# Whatever the environment says: that another backend is refused has its test.
os.environ['KERAS_BACKEND'] = 'tensorflow'
# Where Python finds what a program there imports.
sys.path.append(str(pathlib.Path(__file__).parent.parent / 'examples'))
