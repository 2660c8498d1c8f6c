"""Runs pytest on the files named: the main program of each Bazel test."""

import os
import sys

import pytest

if __name__ == '__main__':
  # Python puts the folder of the real file first, and would find there what
  # the target does not name.
  here = os.path.dirname(os.path.realpath(__file__))
  sys.path[:] = [path for path in sys.path if path != here]
  sys.exit(pytest.main(['-p', 'no:cacheprovider', *sys.argv[1:]]))
