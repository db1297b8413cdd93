"""The operators of TensorFlow that a stranger's SavedModel may hold: those that compute on what
they are given. What is not named reads or writes files, prints, runs Python, asks the network,
reads a format of its own, or has not been looked at; a test holds the names against TensorFlow's.
"""

from __future__ import annotations

_ARITHMETIC = """
Abs Acos Acosh Add AddN AddV2 All Angle Any ApproximateEqual ArgMax ArgMin Asin Asinh Atan Atan2
Atanh BatchMatMul BatchMatMulV2 BatchMatMulV3 Betainc Bincount Bucketize Cast Ceil ClipByValue
Complex ComplexAbs Conj Cos Cosh Cross Cumprod Cumsum CumulativeLogsumexp DenseBincount Digamma Div
DivNoNan Einsum Equal Erf Erfc Erfinv EuclideanNorm Exp Expm1 Floor FloorDiv FloorMod Greater
GreaterEqual Igamma Igammac Imag Inv Invert IsFinite IsInf IsNan LeftShift Less LessEqual Lgamma
LinSpace Log Log1p LogicalAnd LogicalNot LogicalOr MatMul Max Maximum Mean Min Minimum Mod Mul
MulNoNan Ndtri Neg NextAfter NotEqual Polygamma Pow Prod Range Real RealDiv Reciprocal RightShift
Rint Round Rsqrt SegmentMax SegmentMean SegmentMin SegmentProd SegmentSum Select SelectV2 Sigmoid
Sign Sin Sinh SparseMatMul Sqrt Square SquaredDifference Sub Sum Tan Tanh TruncateDiv TruncateMod
UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum Xdivy Xlog1py Xlogy
Zeta BitwiseAnd BitwiseOr BitwiseXor PopulationCount
"""

_NETWORKS = """
AvgPool AvgPool3D BatchNormWithGlobalNormalization BiasAdd BiasAddV1 Conv Conv2D Conv3D
Conv2DBackpropInput Conv3DBackpropInputV2 DataFormatDimMap DataFormatVecPermute
DepthwiseConv2dNative Dilation2D Elu FractionalAvgPool FractionalMaxPool FusedBatchNorm
FusedBatchNormV2 FusedBatchNormV3 InTopK InTopKV2 L2Loss LRN LeakyRelu LogSoftmax MaxPool MaxPool3D
MaxPoolV2 MaxPoolWithArgmax NthElement Relu Relu6 Selu Softmax
SoftmaxCrossEntropyWithLogits Softplus Softsign SparseSoftmaxCrossEntropyWithLogits TopK TopKV2
FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel
QuantizeAndDequantize QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 QuantizeAndDequantizeV4
"""

_ARRAYS = """
BatchMatrixBandPart BatchMatrixDiag BatchToSpace BatchToSpaceND Bitcast BroadcastArgs BroadcastTo
CheckNumerics CheckNumericsV2 Concat ConcatOffset ConcatV2 Const DeepCopy DepthToSpace Diag DiagPart
DynamicPartition DynamicStitch EnsureShape ExpandDims ExtractImagePatches Fill Gather GatherNd
GatherV2 GuaranteeConst Identity IdentityN InvertPermutation LowerBound MatrixBandPart
MatrixDiag MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3 MatrixDiagV2 MatrixDiagV3 MatrixSetDiag
MatrixSetDiagV2 MatrixSetDiagV3 MirrorPad OneHot OnesLike Pack Pad PadV2 ParallelConcat
ParallelDynamicStitch Placeholder PlaceholderV2 PlaceholderWithDefault PreventGradient Rank Reshape
Reverse ReverseSequence ReverseV2 Roll ScatterNd ScatterNdNonAliasingAdd Shape ShapeN
Size Slice Snapshot SpaceToBatch SpaceToBatchND SpaceToDepth Split SplitV Squeeze StopGradient
StridedSlice TensorScatterAdd TensorScatterMax TensorScatterMin TensorScatterSub
TensorScatterUpdate TensorStridedSliceUpdate Tile Transpose ConjugateTranspose Unique UniqueV2
UniqueWithCounts UniqueWithCountsV2 Unpack UnravelIndex UpperBound Where ZerosLike
RaggedGather RaggedRange RaggedTensorFromVariant RaggedTensorToSparse RaggedTensorToTensor
RaggedTensorToVariant SparseFillEmptyRows SparseReorder SparseReshape SparseSegmentMean
SparseSegmentSqrtN SparseSegmentSum SparseTensorDenseMatMul SparseToDense
"""

_IMAGES = """
AdjustContrastv2 AdjustHue AdjustSaturation CropAndResize CombinedNonMaxSuppression HSVToRGB
ImageProjectiveTransformV2 ImageProjectiveTransformV3 NonMaxSuppression NonMaxSuppressionV2
NonMaxSuppressionV3 NonMaxSuppressionV4 NonMaxSuppressionV5 NonMaxSuppressionWithOverlaps RGBToHSV
ResizeArea ResizeBicubic ResizeBilinear ResizeNearestNeighbor ScaleAndTranslate
"""

_SIGNALS = """
BatchFFT BatchIFFT Cholesky FFT FFT2D FFT3D IFFT IFFT2D IFFT3D IRFFT IRFFT2D IRFFT3D
LogMatrixDeterminant Lu MatrixDeterminant MatrixInverse MatrixSolve MatrixSolveLs
MatrixTriangularSolve Mfcc Qr RFFT RFFT2D RFFT3D AudioSpectrogram SelfAdjointEigV2 Svd
"""

_RANDOM = """
Multinomial RandomShuffle RandomStandardNormal RandomUniform RandomUniformInt StatelessMultinomial
StatelessRandomNormal StatelessRandomNormalV2 StatelessRandomUniform StatelessRandomUniformInt
StatelessRandomUniformIntV2 StatelessRandomUniformV2 StatelessRandomGetKeyCounter
StatelessRandomGetAlg StatelessTruncatedNormal StatelessTruncatedNormalV2 TruncatedNormal
"""

# Calls and loops (what they run is looked at too), values that stay within a session, and text.
_FLOW = """
Assert Case ControlTrigger Enter Exit For If LoopCond Merge NextIteration NoOp PartitionedCall
RefEnter RefExit RefIdentity RefMerge RefNextIteration RefSwitch StatefulPartitionedCall
StatelessCase StatelessIf StatelessWhile Switch While
Assign AssignAdd AssignAddVariableOp AssignSub AssignSubVariableOp AssignVariableOp
DestroyResourceOp DisableCopyOnRead IsVariableInitialized ReadVariableOp ResourceGather
ResourceGatherNd ResourceScatterAdd ResourceScatterUpdate ResourceStridedSliceAssign VarHandleOp
VarIsInitializedOp Variable VariableShape VariableV2
EmptyTensorList TensorListConcat TensorListConcatV2 TensorListElementShape TensorListFromTensor
TensorListGather TensorListGetItem TensorListLength TensorListPopBack TensorListPushBack
TensorListReserve TensorListResize TensorListScatter TensorListScatterIntoExistingList
TensorListScatterV2 TensorListSetItem TensorListSplit TensorListStack
TensorArrayCloseV3 TensorArrayConcatV3 TensorArrayGatherV3 TensorArrayReadV3 TensorArrayScatterV3
TensorArraySizeV3 TensorArraySplitV3 TensorArrayV3 TensorArrayWriteV3
HashTableV2 LookupTableFindV2 LookupTableImportV2 LookupTableSizeV2 MutableHashTableV2
AsString RegexFullMatch StaticRegexFullMatch StringJoin StringLength
"""

COMPUTES = frozenset(
    " ".join((_ARITHMETIC, _NETWORKS, _ARRAYS, _IMAGES, _SIGNALS, _RANDOM, _FLOW)).split()
)

# In every SavedModel, since it can be saved again: only where nothing leads that is run.
SAVES = frozenset({"MergeV2Checkpoints", "SaveV2", "ShardedFilename", "SaveSlices"})
# What reads the variables beside the file when it is loaded.
RESTORES = frozenset({"RestoreV2"})
