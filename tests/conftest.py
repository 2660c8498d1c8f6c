"""Set before TensorFlow is imported; shared helpers are in `cases`."""

import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '-1')
# Whatever the environment says: that another backend is refused has its test.
os.environ['KERAS_BACKEND'] = 'tensorflow'
