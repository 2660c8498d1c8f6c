"""The form for XLA's compiler for CPUs as TensorFlow has it."""

import re

import numpy as np

import forms
import frameworks
import tfgroupnorm


@frameworks.on_tensorflow
class TestCPU(forms.ExactFormTest):
  platform = 'CPU'


@frameworks.on_tensorflow
def test_statistics_are_not_made_again_for_each_element():
  # Where y alone is wanted, XLA may put all that leads from the sums to it into
  # one loop over x.
  import tensorflow as tf

  layer = tfgroupnorm.GroupNorm(8)
  x = tf.constant(
    np.random.default_rng(0).normal(3, 2, (4, 32, 32, 64)), 'float32'
  )
  with tf.device('CPU:0'):
    layer(x)
    function = tf.function(layer, jit_compile=True, autograph=False)
    program = function.experimental_get_compiler_ir(x)(stage='optimized_hlo')
  (loop,) = re.findall(r'ROOT .*? fusion\(.*calls=(%[\w.]+)', program)
  (body,) = re.findall(re.escape(loop) + r' \(.*?^}', program, re.M | re.S)
  # Sums, as complex numbers, and k.
  for made in ('c64', 'clamp'):
    assert made in program and made not in body
