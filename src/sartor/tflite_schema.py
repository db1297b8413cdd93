"""The schema of TensorFlow Lite's files, as a table: what a check of a stranger's file needs.

Made from the schema that comes with ai-edge-litert 2.3.0 (schema_py_generated.py). A line is a
table with its fields in their order: a number is a value of so many bytes, s a text, [x] a list
(f: floats of four bytes);
a union has its type in the field before it, and - is a field that is no longer used. A table that
is not named has no fields. Lists whose elements are values are read as numbers by their width.
"""

from __future__ import annotations

FIELDS = """\
AddOptions fused_activation_function:1 pot_scale_int16:1
ArgMaxOptions output_type:1
ArgMinOptions output_type:1
BatchMatMulOptions adj_x:1 adj_y:1 asymmetric_quantize_inputs:1
BidirectionalSequenceLSTMOptions fused_activation_function:1 cell_clip:4 proj_clip:4
    merge_outputs:1 time_major:1 asymmetric_quantize_inputs:1
BidirectionalSequenceRNNOptions time_major:1 fused_activation_function:1 merge_outputs:1
    asymmetric_quantize_inputs:1
BlockwiseQuantization scales:4 zero_points:4 block_size:4 block_shape:[4]
BucketizeOptions boundaries:[4]
Buffer data:[1] offset:8 size:8
CallOnceOptions init_subgraph_index:4
CallOptions subgraph:4
CastOptions in_data_type:1 out_data_type:1
ConcatEmbeddingsOptions num_channels:4 num_columns_per_channel:[4] embedding_dim_per_channel:[4]
ConcatenationOptions axis:4 fused_activation_function:1
Conv2DOptions padding:1 stride_w:4 stride_h:4 fused_activation_function:1 dilation_wfactor:4
    dilation_hfactor:4 quantized_bias_type:1
Conv3DOptions padding:1 stride_d:4 stride_w:4 stride_h:4 fused_activation_function:1
    dilation_dfactor:4 dilation_wfactor:4 dilation_hfactor:4
CumsumOptions exclusive:1 reverse:1
CustomQuantization custom:[1]
DepthToSpaceOptions block_size:4
DepthwiseConv2DOptions padding:1 stride_w:4 stride_h:4 depth_multiplier:4
    fused_activation_function:1 dilation_wfactor:4 dilation_hfactor:4
DimensionMetadata format:1 dense_size:4 array_segments_type:1 array_segments:union
    array_indices_type:1 array_indices:union
DivOptions fused_activation_function:1
EmbeddingLookupSparseOptions combiner:1
ExternalBuffer id:4 group:4 offset:8 length:8 packing:s
ExternalBufferGroup name:s
FakeQuantOptions min:4 max:4 num_bits:4 narrow_range:1
FullyConnectedOptions fused_activation_function:1 weights_format:1 keep_num_dims:1
    asymmetric_quantize_inputs:1 quantized_bias_type:1 quant_spec:[1]
GatherOptions axis:4 batch_dims:4
GeluOptions approximate:1
HashtableOptions table_id:4 key_dtype:1 value_dtype:1
IfOptions then_subgraph_index:4 else_subgraph_index:4
Int32Vector values:[4]
L2NormOptions fused_activation_function:1
LSHProjectionOptions type:1
LSTMOptions fused_activation_function:1 cell_clip:4 proj_clip:4 kernel_type:1
    asymmetric_quantize_inputs:1
LeakyReluOptions alpha:4
LocalResponseNormalizationOptions radius:4 bias:4 alpha:4 beta:4
Metadata name:s buffer:4
MirrorPadOptions mode:1
Model version:4 operator_codes:[OperatorCode] subgraphs:[SubGraph] description:s buffers:[Buffer]
    metadata_buffer:[4] metadata:[Metadata] signature_defs:[SignatureDef]
    external_buffer_groups:[ExternalBufferGroup] external_buffers:[ExternalBuffer]
MulOptions fused_activation_function:1
MultiAxisQuantization scales:4 zero_points:4 block_size:4 quantized_dimensions:[4]
OneHotOptions axis:4
Operator opcode_index:4 inputs:[4] outputs:[4] builtin_options_type:1 builtin_options:union
    custom_options:[1] custom_options_format:1 mutating_variable_inputs:[1] intermediates:[4]
    large_custom_options_offset:8 large_custom_options_size:8 builtin_options2_type:1
    builtin_options2:union debug_metadata_index:4
OperatorCode deprecated_builtin_code:1 custom_code:s version:4 builtin_code:4
PackOptions values_count:4 axis:4
Pool2DOptions padding:1 stride_w:4 stride_h:4 filter_width:4 filter_height:4
    fused_activation_function:1
QuantizationParameters min:[f] max:[f] scale:[f] zero_point:[8] details_type:1 details:union
    quantized_dimension:4
RNNOptions fused_activation_function:1 asymmetric_quantize_inputs:1
RandomOptions seed:8 seed2:8
ReduceWindowOptions reduce_function:4
ReducerOptions keep_dims:1
ReshapeOptions new_shape:[4]
ResizeBilinearOptions - - align_corners:1 half_pixel_centers:1
ResizeNearestNeighborOptions align_corners:1 half_pixel_centers:1
ReverseSequenceOptions seq_dim:4 batch_dim:4
SVDFOptions rank:4 fused_activation_function:1 asymmetric_quantize_inputs:1
SequenceRNNOptions time_major:1 fused_activation_function:1 asymmetric_quantize_inputs:1
ShapeOptions out_type:1
SignatureDef inputs:[TensorMap] outputs:[TensorMap] signature_key:s - subgraph_index:4
SkipGramOptions ngram_size:4 max_skip_size:4 include_all_ngrams:1
SoftmaxOptions beta:4
SpaceToDepthOptions block_size:4
SparseToDenseOptions validate_indices:1
SparsityParameters traversal_order:[4] block_map:[4] dim_metadata:[DimensionMetadata]
SplitOptions num_splits:4
SplitVOptions num_splits:4
SqueezeOptions squeeze_dims:[4]
StableHLOCompositeOptions name:s decomposition_subgraph_index:4 composite_attributes:[1]
    composite_attributes_format:1 version:4
StablehloBroadcastInDimOptions broadcast_dimensions:[8]
StablehloCaseOptions branch_subgraph_indices:[4]
StablehloCompareOptions comparison_direction:4 compare_type:4
StablehloConcatenateOptions dimension:8
StablehloConvolutionOptions window_strides:[8] padding:[8] lhs_dilation:[8] rhs_dilation:[8]
    window_reversal:[1] input_batch_dimension:8 input_feature_dimension:8
    input_spatial_dimensions:[8] kernel_input_feature_dimension:8 kernel_output_feature_dimension:8
    kernel_spatial_dimensions:[8] output_batch_dimension:8 output_feature_dimension:8
    output_spatial_dimensions:[8] feature_group_count:8 batch_group_count:8 precision_config:[4]
StablehloCustomCallOptions call_target_name:s has_side_effect:1 backend_config:s api_version:4
    called_computations:[4] custom_attributes:[1]
StablehloDotGeneralOptions lhs_batching_dimensions:[8] rhs_batching_dimensions:[8]
    lhs_contracting_dimensions:[8] rhs_contracting_dimensions:[8] precision_config:[4]
StablehloDynamicSliceOptions slice_sizes:[8]
StablehloGatherOptions offset_dims:[8] collapsed_slice_dims:[8] start_index_map:[8]
    index_vector_dim:8 slice_sizes:[8] indices_are_sorted:1
StablehloIotaOptions iota_dimension:8
StablehloPadOptions edge_padding_low:[8] edge_padding_high:[8] interior_padding:[8]
StablehloReduceOptions dimensions:[8] body_subgraph_index:4
StablehloReduceWindowOptions window_dimensions:[8] window_strides:[8] base_dilations:[8]
    window_dilations:[8] padding:[8] body_subgraph_index:4
StablehloRngBitGeneratorOptions algorithm:1
StablehloScatterOptions indices_are_sorted:1 update_window_dims:[8] inserted_window_dims:[8]
    scatter_dims_to_operand_dims:[8] index_vector_dim:8 unique_indices:1
    update_computation_subgraph_index:4
StablehloSliceOptions start_indices:[8] limit_indices:[8] strides:[8]
StablehloSortOptions dimension:8 is_stable:1 comparator_subgraph_index:4
StablehloTransposeOptions permutation:[8]
StablehloWhileOptions cond_subgraph_index:4 body_subgraph_index:4
StridedSliceOptions begin_mask:4 end_mask:4 ellipsis_mask:4 new_axis_mask:4 shrink_axis_mask:4
    offset:1
SubGraph tensors:[Tensor] inputs:[4] outputs:[4] operators:[Operator] name:s debug_metadata_index:4
SubOptions fused_activation_function:1 pot_scale_int16:1
Tensor shape:[4] type:1 buffer:4 name:s quantization:QuantizationParameters is_variable:1
    sparsity:SparsityParameters shape_signature:[4] has_rank:1 variant_tensors:[VariantSubType]
    external_buffer:4
TensorMap name:s tensor_index:4
TransposeConvOptions padding:1 stride_w:4 stride_h:4 fused_activation_function:1
    quantized_bias_type:1
Uint16Vector values:[2]
Uint8Vector values:[1]
UnidirectionalSequenceLSTMOptions fused_activation_function:1 cell_clip:4 proj_clip:4 time_major:1
    asymmetric_quantize_inputs:1 diagonal_recurrent_tensors:1
UniqueOptions idx_out_type:1
UnpackOptions num:4 axis:4
VarHandleOptions container:s shared_name:s
VariantSubType shape:[4] type:1 has_rank:1
WhileOptions cond_subgraph_index:4 body_subgraph_index:4
"""

OPTIONS = """\
NONE Conv2DOptions DepthwiseConv2DOptions ConcatEmbeddingsOptions LSHProjectionOptions
Pool2DOptions SVDFOptions RNNOptions FullyConnectedOptions SoftmaxOptions ConcatenationOptions
AddOptions L2NormOptions LocalResponseNormalizationOptions LSTMOptions ResizeBilinearOptions
CallOptions ReshapeOptions SkipGramOptions SpaceToDepthOptions EmbeddingLookupSparseOptions
MulOptions PadOptions GatherOptions BatchToSpaceNDOptions SpaceToBatchNDOptions TransposeOptions
ReducerOptions SubOptions DivOptions SqueezeOptions SequenceRNNOptions StridedSliceOptions
ExpOptions TopKV2Options SplitOptions LogSoftmaxOptions CastOptions DequantizeOptions
MaximumMinimumOptions ArgMaxOptions LessOptions NegOptions PadV2Options GreaterOptions
GreaterEqualOptions LessEqualOptions SelectOptions SliceOptions TransposeConvOptions
SparseToDenseOptions TileOptions ExpandDimsOptions EqualOptions NotEqualOptions ShapeOptions
PowOptions ArgMinOptions FakeQuantOptions PackOptions LogicalOrOptions OneHotOptions
LogicalAndOptions LogicalNotOptions UnpackOptions FloorDivOptions SquareOptions ZerosLikeOptions
FillOptions BidirectionalSequenceLSTMOptions BidirectionalSequenceRNNOptions
UnidirectionalSequenceLSTMOptions FloorModOptions RangeOptions ResizeNearestNeighborOptions
LeakyReluOptions SquaredDifferenceOptions MirrorPadOptions AbsOptions SplitVOptions UniqueOptions
ReverseV2Options AddNOptions GatherNdOptions CosOptions WhereOptions RankOptions
ReverseSequenceOptions MatrixDiagOptions QuantizeOptions MatrixSetDiagOptions HardSwishOptions
IfOptions WhileOptions DepthToSpaceOptions NonMaxSuppressionV4Options NonMaxSuppressionV5Options
ScatterNdOptions SelectV2Options DensifyOptions SegmentSumOptions BatchMatMulOptions CumsumOptions
CallOnceOptions BroadcastToOptions Rfft2dOptions Conv3DOptions HashtableOptions
HashtableFindOptions HashtableImportOptions HashtableSizeOptions VarHandleOptions
ReadVariableOptions AssignVariableOptions RandomOptions BucketizeOptions GeluOptions
DynamicUpdateSliceOptions UnsortedSegmentProdOptions UnsortedSegmentMaxOptions
UnsortedSegmentMinOptions UnsortedSegmentSumOptions ATan2Options SignOptions BitcastOptions
BitwiseXorOptions RightShiftOptions
"""

OPTIONS_2 = """\
NONE StablehloConcatenateOptions StablehloBroadcastInDimOptions StablehloSliceOptions
StablehloConvolutionOptions StablehloCustomCallOptions StablehloReduceOptions
StablehloScatterOptions StablehloCompareOptions StablehloDynamicSliceOptions StablehloPadOptions
StablehloIotaOptions StablehloDotGeneralOptions StablehloReduceWindowOptions StablehloSortOptions
StablehloWhileOptions StablehloGatherOptions StablehloTransposeOptions DilateOptions
StablehloRngBitGeneratorOptions ReduceWindowOptions StableHLOCompositeOptions
StablehloShiftLeftOptions StablehloCaseOptions
"""

OPERATORS = """\
ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE
EMBEDDING_LOOKUP FLOOR FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D
LOCAL_RESPONSE_NORMALIZATION LOGISTIC LSH_PROJECTION LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6
RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH SVDF TANH CONCAT_EMBEDDINGS SKIP_GRAM CALL
CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN GATHER BATCH_TO_SPACE_ND
SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE
BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM CAST
PRELU MAXIMUM ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN
TRANSPOSE_CONV SPARSE_TO_DENSE TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW
ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK
REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR
LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND COS
WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE
NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2 DENSIFY SEGMENT_SUM BATCH_MATMUL
PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D IMAG REAL COMPLEX_ABS
HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE
READ_VARIABLE ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM
MULTINOMIAL GELU DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX
UNSORTED_SEGMENT_SUM ATAN2 UNSORTED_SEGMENT_MIN SIGN BITCAST BITWISE_XOR RIGHT_SHIFT
STABLEHLO_LOGISTIC STABLEHLO_ADD STABLEHLO_DIVIDE STABLEHLO_MULTIPLY STABLEHLO_MAXIMUM
STABLEHLO_RESHAPE STABLEHLO_CLAMP STABLEHLO_CONCATENATE STABLEHLO_BROADCAST_IN_DIM
STABLEHLO_CONVOLUTION STABLEHLO_SLICE STABLEHLO_CUSTOM_CALL STABLEHLO_REDUCE STABLEHLO_ABS
STABLEHLO_AND STABLEHLO_COSINE STABLEHLO_EXPONENTIAL STABLEHLO_FLOOR STABLEHLO_LOG
STABLEHLO_MINIMUM STABLEHLO_NEGATE STABLEHLO_OR STABLEHLO_POWER STABLEHLO_REMAINDER STABLEHLO_RSQRT
STABLEHLO_SELECT STABLEHLO_SUBTRACT STABLEHLO_TANH STABLEHLO_SCATTER STABLEHLO_COMPARE
STABLEHLO_CONVERT STABLEHLO_DYNAMIC_SLICE STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_PAD
STABLEHLO_IOTA STABLEHLO_DOT_GENERAL STABLEHLO_REDUCE_WINDOW STABLEHLO_SORT STABLEHLO_WHILE
STABLEHLO_GATHER STABLEHLO_TRANSPOSE DILATE STABLEHLO_RNG_BIT_GENERATOR REDUCE_WINDOW
STABLEHLO_COMPOSITE STABLEHLO_SHIFT_LEFT STABLEHLO_CBRT STABLEHLO_CASE
"""
