"""Models of KerasHub at toy sizes, with random weights: none is downloaded."""

import keras_hub
from keras_hub.src.models.vae.vae_backbone import VAEBackbone


def bert():
  return keras_hub.models.BertBackbone(
    vocabulary_size=16,
    num_layers=2,
    num_heads=2,
    hidden_dim=16,
    intermediate_dim=32,
    max_sequence_length=64,
  )


def deberta():
  return keras_hub.models.DebertaV3Backbone(
    vocabulary_size=16,
    num_layers=2,
    num_heads=2,
    hidden_dim=16,
    intermediate_dim=32,
    max_sequence_length=64,
    bucket_size=16,
  )


def gpt2():
  return keras_hub.models.GPT2Backbone(
    vocabulary_size=16,
    num_layers=2,
    num_heads=2,
    hidden_dim=16,
    intermediate_dim=32,
    max_sequence_length=64,
  )


def t5():
  return keras_hub.models.T5Backbone(
    vocabulary_size=16,
    num_layers=2,
    num_heads=2,
    hidden_dim=16,
    intermediate_dim=32,
  )


def bart():
  return keras_hub.models.BartBackbone(
    vocabulary_size=16,
    num_layers=2,
    num_heads=2,
    hidden_dim=16,
    intermediate_dim=32,
    max_sequence_length=64,
  )


def llama():
  return keras_hub.models.LlamaBackbone(
    vocabulary_size=16,
    num_layers=2,
    num_query_heads=4,
    num_key_value_heads=2,
    hidden_dim=16,
    intermediate_dim=32,
  )


def mistral():
  return keras_hub.models.MistralBackbone(
    vocabulary_size=16,
    num_layers=2,
    num_query_heads=4,
    num_key_value_heads=2,
    hidden_dim=16,
    intermediate_dim=32,
  )


def qwen3():
  return keras_hub.models.Qwen3Backbone(
    vocabulary_size=16,
    num_layers=2,
    num_query_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    hidden_dim=16,
    intermediate_dim=32,
  )


def gemma():
  return keras_hub.models.GemmaBackbone(
    vocabulary_size=16,
    num_layers=2,
    num_query_heads=2,
    num_key_value_heads=1,
    hidden_dim=16,
    intermediate_dim=32,
    head_dim=8,
  )


def whisper():
  return keras_hub.models.WhisperBackbone(
    vocabulary_size=16,
    num_layers=2,
    num_heads=2,
    hidden_dim=16,
    intermediate_dim=32,
    num_mels=8,
    max_encoder_sequence_length=64,
    max_decoder_sequence_length=64,
  )


def clip():
  vision = keras_hub.models.CLIPVisionEncoder(
    patch_size=8,
    hidden_dim=16,
    num_layers=2,
    num_heads=2,
    intermediate_dim=32,
    image_shape=(32, 32, 3),
  )
  text = keras_hub.models.CLIPTextEncoder(
    vocabulary_size=16,
    embedding_dim=16,
    hidden_dim=16,
    num_layers=2,
    num_heads=2,
    intermediate_dim=32,
    max_sequence_length=64,
  )
  return keras_hub.models.CLIPBackbone(vision, text, projection_dim=16)


def vit():
  return keras_hub.models.ViTBackbone(
    image_shape=(32, 32, 3),
    patch_size=8,
    num_layers=2,
    num_heads=2,
    hidden_dim=16,
    mlp_dim=32,
  )


def mit():
  return keras_hub.models.MiTBackbone(
    image_shape=(64, 64, 3),
    num_layers=2,
    hidden_dims=[16, 32],
    layerwise_depths=[1, 1],
    layerwise_num_heads=[1, 2],
    layerwise_sr_ratios=[2, 1],
    layerwise_patch_sizes=[7, 3],
    layerwise_strides=[4, 2],
    max_drop_path_rate=0.0,  # Nothing is left to chance.
  )


def segformer():
  encoder = keras_hub.models.MiTBackbone(
    image_shape=(64, 64, 3),
    num_layers=4,
    hidden_dims=[8, 16, 24, 32],
    layerwise_depths=[1, 1, 1, 1],
    layerwise_num_heads=[1, 2, 3, 4],
    layerwise_sr_ratios=[8, 4, 2, 1],
    layerwise_patch_sizes=[7, 3, 3, 3],
    layerwise_strides=[4, 2, 2, 2],
    max_drop_path_rate=0.0,  # Nothing is left to chance.
  )
  backbone = keras_hub.models.SegFormerBackbone(
    image_encoder=encoder, projection_filters=32
  )
  return keras_hub.models.SegFormerImageSegmenter(
    backbone=backbone, num_classes=3
  )


def swin():
  return keras_hub.models.SwinTransformerBackbone(
    image_shape=(32, 32, 3),
    patch_size=4,
    embed_dim=16,
    depths=[1, 1],
    num_heads=[2, 4],
    window_size=4,
  )


def vae():
  return VAEBackbone(
    encoder_num_filters=[32, 32],
    encoder_num_blocks=[1, 1],
    decoder_num_filters=[32, 32],
    decoder_num_blocks=[1, 1],
    sampler_method='mode',
  )


def sam():
  encoder = keras_hub.models.ViTDetBackbone(
    hidden_size=16,
    num_layers=2,
    intermediate_dim=32,
    num_heads=2,
    global_attention_layer_indices=[1],
    patch_size=8,
    num_output_channels=8,
    window_size=2,
    image_shape=(32, 32, 3),
  )
  return encoder


def stable_diffusion_3():
  encoders = {
    name: keras_hub.models.CLIPTextEncoder(
      vocabulary_size=16,
      embedding_dim=16,
      hidden_dim=16,
      num_layers=2,
      num_heads=2,
      intermediate_dim=32,
      max_sequence_length=64,
      intermediate_output_index=0,
      name=name,
    )
    for name in ('clip_l', 'clip_g')
  }
  return keras_hub.models.StableDiffusion3Backbone(
    mmdit_patch_size=2,
    mmdit_hidden_dim=16,
    mmdit_num_layers=2,
    mmdit_num_heads=2,
    mmdit_position_size=16,
    mmdit_qk_norm='rms_norm',
    mmdit_dual_attention_indices=None,
    vae=VAEBackbone(
      [32, 32],
      [1, 1],
      [32, 32],
      [1, 1],
      sample_channels=8,
      sampler_method='mode',
    ),
    latent_channels=4,
    output_channels=4,
    image_shape=(32, 32, 3),
    **encoders,
  )


def dinov2():
  return keras_hub.models.DINOV2Backbone(
    patch_size=8,
    num_layers=2,
    hidden_dim=16,
    num_heads=2,
    intermediate_dim=32,
    image_shape=(32, 32, 3),
  )


def resnet_classifier():
  return keras_hub.models.ResNetImageClassifier(
    backbone=resnet(), num_classes=3
  )


def resnet():
  return keras_hub.models.ResNetBackbone(
    input_conv_filters=[64],
    input_conv_kernel_sizes=[7],
    stackwise_num_filters=[64, 128],
    stackwise_num_blocks=[1, 1],
    stackwise_num_strides=[1, 2],
    block_type='basic_block',
    image_shape=(32, 32, 3),
  )


def deeplab():
  encoder = keras_hub.models.ResNetBackbone(
    input_conv_filters=[64],
    input_conv_kernel_sizes=[7],
    stackwise_num_filters=[64, 64, 64, 64],
    stackwise_num_blocks=[1, 1, 1, 1],
    stackwise_num_strides=[1, 2, 2, 2],
    block_type='basic_block',
    image_shape=(64, 64, 3),
  )
  backbone = keras_hub.models.DeepLabV3Backbone(
    image_encoder=encoder,
    projection_filters=8,
    low_level_feature_key='P2',
    spatial_pyramid_pooling_key='P5',
    upsampling_size=8,
    dilation_rates=[1, 2],
    image_shape=(64, 64, 3),
  )
  return keras_hub.models.DeepLabV3ImageSegmenter(
    backbone=backbone, num_classes=3
  )


def mobilenet():
  return keras_hub.models.MobileNetBackbone(
    stackwise_expansion=[[16], [24, 24]],
    stackwise_num_blocks=[1, 2],
    stackwise_num_filters=[[16], [16, 16]],
    stackwise_kernel_size=[[3], [3, 3]],
    stackwise_num_strides=[[2], [2, 1]],
    stackwise_se_ratio=[[None], [None, None]],
    stackwise_activation=[['relu'], ['relu', 'relu']],
    stackwise_padding=[[1], [1, 1]],
    output_num_filters=32,
    input_activation='relu',
    output_activation='relu',
    input_num_filters=16,
    depthwise_filters=8,
    depthwise_stride=2,
    depthwise_residual=False,
    last_layer_filter=32,
    squeeze_and_excite=None,
    image_shape=(32, 32, 3),
  )


def efficientnet():
  return keras_hub.models.EfficientNetBackbone(
    stackwise_kernel_sizes=[3, 3],
    stackwise_num_repeats=[1, 1],
    stackwise_input_filters=[16, 16],
    stackwise_output_filters=[16, 24],
    stackwise_expansion_ratios=[1, 4],
    stackwise_strides=[1, 2],
    stackwise_squeeze_and_excite_ratios=[0.25, 0.25],
    stackwise_block_types=['v1', 'v1'],
    stackwise_force_input_filters=[0, 0],
    stackwise_nores_option=[False, False],
    width_coefficient=1.0,
    depth_coefficient=1.0,
    input_shape=(32, 32, 3),
  )
