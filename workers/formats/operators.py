"""The operators that an uploaded graph may call: every one by name, with its overload.

An archive names its operators, and torch would look up whatever is named: an operator that opens files, one that
sets a tensor's storage to anything, one of an extension library. Here a name is first looked up in `ALLOWED`;
only then in torch. What is allowed computes tensors from tensors, checks its own bounds and touches nothing else.

`REFUSED` tells why some well-known names are not allowed and what to do instead; what stands in neither table is
refused too, by name.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

from service.contract.errors import InputRejected

# One overload per word. Layers and what lifting makes layers of come first, as the networks that use them do.
GROUPS: dict[str, str] = {
    "layers": """
        linear.default bilinear.default
        conv1d.default conv2d.default conv3d.default conv1d.padding conv2d.padding conv3d.padding
        conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input convolution.default
        batch_norm.default instance_norm.default layer_norm.default group_norm.default rms_norm.default
        embedding.default prelu.default
        lstm.input gru.input rnn_tanh.input rnn_relu.input lstm_cell.default gru_cell.default
    """,
    # What torch makes of layers when a program was decomposed (ExportedProgram.run_decompositions).
    "decomposed layers": """
        addmm.default native_layer_norm.default native_group_norm.default
        _native_batch_norm_legit_no_training.default _fused_rms_norm.default
        _scaled_dot_product_flash_attention_for_cpu.default _adaptive_avg_pool2d.default
        max_pool2d_with_indices.default max_pool3d_with_indices.default _softmax.default _log_softmax.default
        _to_copy.default _unsafe_view.default
    """,
    "attention": "scaled_dot_product_attention.default",
    # Switched by train() and eval() after lifting.
    "dropout": """
        dropout.default dropout_.default feature_dropout.default feature_dropout_.default
        alpha_dropout.default alpha_dropout_.default feature_alpha_dropout.default feature_alpha_dropout_.default
        rrelu.default rrelu_.default
    """,
    # Noise that belongs to the function in either mode: the sampling of a variational autoencoder.
    "noise": "randn.default randn_like.default",
    "activations": """
        relu.default relu_.default relu6.default relu6_.default gelu.default gelu_.default silu.default silu_.default
        sigmoid.default sigmoid_.default tanh.default tanh_.default hardtanh.default hardtanh_.default
        hardswish.default hardswish_.default hardsigmoid.default hardsigmoid_.default
        leaky_relu.default leaky_relu_.default elu.default elu_.default selu.default selu_.default
        celu.default celu_.default mish.default mish_.default softplus.default log_sigmoid.default
        softmax.int log_softmax.int softshrink.default hardshrink.default threshold.default threshold_.default
        glu.default logit.default erf.default
    """,
    "arithmetic": """
        add.Tensor add.Scalar add_.Tensor add_.Scalar sub.Tensor sub.Scalar sub_.Tensor sub_.Scalar
        rsub.Scalar rsub.Tensor mul.Tensor mul.Scalar mul_.Tensor mul_.Scalar
        div.Tensor div.Scalar div_.Tensor div_.Scalar div.Tensor_mode div.Scalar_mode true_divide.Tensor
        floor_divide.default floor_divide.Scalar remainder.Tensor remainder.Scalar fmod.Tensor fmod.Scalar
        pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar pow_.Scalar square.default sqrt.default sqrt_.default
        rsqrt.default reciprocal.default exp.default exp_.default expm1.default log.default log1p.default
        log2.default log10.default sin.default cos.default tan.default atan.default atan2.default sinh.default
        cosh.default asin.default acos.default neg.default neg_.default abs.default abs_.default sign.default
        floor.default ceil.default round.default trunc.default frac.default
        clamp.default clamp.Tensor clamp_.default clamp_min.default clamp_min_.default clamp_max.default
        clamp_max_.default maximum.default minimum.default max.other min.other lerp.Tensor lerp.Scalar
        addcmul.default addcdiv.default nan_to_num.default logaddexp.default
    """,
    "products": """
        matmul.default mm.default bmm.default baddbmm.default addbmm.default mv.default dot.default
        einsum.default outer.default tensordot.default
    """,
    "comparisons": """
        eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor gt.Scalar
        ge.Tensor ge.Scalar logical_not.default logical_and.default logical_or.default logical_xor.default
        bitwise_not.default bitwise_and.Tensor bitwise_and.Scalar bitwise_or.Tensor bitwise_or.Scalar
        bitwise_xor.Tensor __and__.Tensor __and__.Scalar __or__.Tensor __or__.Scalar __xor__.Tensor
        isnan.default isinf.default isfinite.default isin.Tensor_Tensor where.self where.ScalarOther
        where.ScalarSelf where.Scalar masked_fill.Scalar masked_fill.Tensor masked_fill_.Scalar masked_fill_.Tensor
    """,
    "reductions": """
        sum.default sum.dim_IntList mean.default mean.dim prod.default prod.dim_int amax.default amin.default
        max.default max.dim min.default min.dim argmax.default argmin.default all.default all.dim any.default
        any.dim var.default var.dim var.correction var_mean.correction std.default std.dim std.correction
        norm.Scalar norm.ScalarOpt_dim linalg_vector_norm.default logsumexp.default cumsum.default cumprod.default
        count_nonzero.dim_IntList median.dim
    """,
    "normalisation": "cosine_similarity.default pairwise_distance.default cdist.default",
    "shapes": """
        view.default view.dtype reshape.default view_as.default reshape_as.default flatten.using_ints unflatten.int
        permute.default transpose.int t.default numpy_T.default mT.default movedim.int movedim.intlist swapaxes.default
        squeeze.default squeeze.dim squeeze.dims unsqueeze.default expand.default expand_as.default
        repeat.default tile.default repeat_interleave.self_int broadcast_to.default contiguous.default
        clone.default alias.default detach.default detach_.default lift_fresh_copy.default lift_fresh.default
        to.dtype to.dtype_layout to.device to.other type_as.default
        cat.default concat.default stack.default hstack.default vstack.default
        split.Tensor split.sizes split_with_sizes.default chunk.default tensor_split.sections unbind.int
        select.int slice.Tensor narrow.default flip.default roll.default rot90.default
        diagonal.default diag_embed.default tril.default triu.default tril_.default triu_.default
        unfold.default im2col.default col2im.default pixel_shuffle.default pixel_unshuffle.default
        channel_shuffle.default constant_pad_nd.default pad.default
        reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default
        replication_pad1d.default replication_pad2d.default replication_pad3d.default
        meshgrid.default meshgrid.indexing atleast_1d.default atleast_2d.default atleast_3d.default diff.default
        real.default imag.default view_as_real.default view_as_complex.default complex.default polar.default
    """,
    "indexing": """
        index.Tensor index_select.default gather.default take_along_dim.default index_add.default index_copy.default
        index_put.default index_put_.default scatter.src scatter.value scatter_.src scatter_.value scatter_add.default
        select_scatter.default slice_scatter.default one_hot.default
        topk.default sort.default argsort.default searchsorted.Tensor bucketize.Tensor copy.default copy_.default
        fill.Scalar fill.Tensor fill_.Scalar fill_.Tensor zero_.default
    """,
    "pooling": """
        max_pool1d.default max_pool2d.default max_pool3d.default avg_pool1d.default avg_pool2d.default
        avg_pool3d.default adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_avg_pool3d.default
        adaptive_max_pool1d.default adaptive_max_pool2d.default adaptive_max_pool3d.default
    """,
    "resampling": """
        upsample_nearest1d.default upsample_nearest2d.default upsample_nearest3d.default upsample_nearest1d.vec
        upsample_nearest2d.vec upsample_nearest3d.vec _upsample_nearest_exact2d.default _upsample_nearest_exact2d.vec
        upsample_linear1d.default upsample_linear1d.vec upsample_bilinear2d.default upsample_bilinear2d.vec
        upsample_trilinear3d.vec upsample_bicubic2d.default upsample_bicubic2d.vec _upsample_bilinear2d_aa.vec
        grid_sampler.default grid_sampler_2d.default affine_grid_generator.default
    """,
    "new tensors": """
        zeros.default ones.default full.default zeros_like.default ones_like.default full_like.default
        new_zeros.default new_ones.default new_full.default scalar_tensor.default
        arange.default arange.start arange.start_step linspace.default eye.default eye.m
    """,
    "sizes": "sym_size.int sym_numel.default",
}
# Checks that the exporter leaves in the graph; they compute nothing and are dropped.
CHECKS = frozenset(
    f"torch.ops.aten.{name}.default"
    for name in ["_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size"]
)
ALLOWED = frozenset(f"torch.ops.aten.{name}" for names in GROUPS.values() for name in names.split())

# Arithmetic on sizes; nothing that can make a number large out of small ones (powers, shifts).
SIZE_ARITHMETIC = "add sub mul floordiv mod neg pos truediv eq ne lt le gt ge and_ or_"
SIZE_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"_operator.{name}": getattr(operator, name) for name in SIZE_ARITHMETIC.split()},
    "math.trunc": math.trunc,
    "torch.sym_max": torch.sym_max,
    "torch.sym_min": torch.sym_min,
    "torch.sym_not": torch.sym_not,
    "torch.sym_float": torch.sym_float,
    "torch.sym_sqrt": torch._sym_sqrt,  # type: ignore[attr-defined]  # noqa: SLF001  the function that this name means
}

EVAL_MODE = "it draws random numbers that eval() could not switch off; call model.eval() before torch.export.export"
UNINITIALISED = "it gives memory that nobody has written; use torch.zeros or torch.full in the model"
DATA_DEPENDENT = (
    "sizes or branches would depend on the values of tensors; write the model without .item() and nonzero()"
)
TAKEN_APART = (
    "run_decompositions() took a layer apart that behaves differently in training; "
    "export without it, or call model.eval() before torch.export.export"
)
STORAGE = "it changes what a tensor's storage is; write the model with views and copies"
# Reason -> names without overload.
REASONS: dict[str, str] = {
    EVAL_MODE: """
        rand rand_like bernoulli bernoulli_ randint randint_like randperm multinomial normal
        uniform_ normal_ random_ exponential_ log_normal_ cauchy_ geometric_
    """,
    UNINITIALISED: "empty empty_like new_empty empty_strided new_empty_strided empty_permuted",
    DATA_DEPENDENT: "item _local_scalar_dense nonzero nonzero_numpy unique unique_dim masked_select",
    TAKEN_APART: """
        native_dropout _native_batch_norm_legit _native_batch_norm_legit_functional native_batch_norm
        _batch_norm_with_update _batch_norm_with_update_functional _batch_norm_no_update
    """,
    STORAGE: "set_ resize_ resize_as_ as_strided as_strided_ _resize_output_",
    "it reads files": "from_file",
    "an embedding with max_norm changes its weights in use; normalise them beforehand": "embedding_renorm_",
}
REFUSED = {name: reason for reason, names in REASONS.items() for name in names.split()}


def resolve(target: str) -> OpOverload[..., Any] | Callable[..., Any]:
    """The function that an archive's `target` names; `InputRejected` with code operator_refused unless allowed."""
    if target in ALLOWED:
        return overload(target)
    if target in SIZE_FUNCTIONS:
        return SIZE_FUNCTIONS[target]
    raise InputRejected(refusal(target), code="operator_refused")


@functools.cache
def overload(target: str) -> OpOverload[..., Any]:
    """`torch.ops.aten.relu.default` as torch's object; only ever asked for names in ALLOWED."""
    _, _, _, name, variant = target.split(".")
    found: OpOverload[..., Any] = getattr(getattr(torch.ops.aten, name), variant)
    return found


def refusal(target: str) -> str:
    """Why `target` is refused and what to do."""
    shown = target[:120]
    if target.startswith("torch.ops.aten."):
        reason = REFUSED.get(target.split(".")[3], "it is not among the operators that Stillhouse knows to be safe")
    elif target.startswith("torch.ops.higher_order."):
        reason = (
            "control flow and regions are not read; write the model without them, or call model.eval() before export"
        )
    else:
        reason = "only PyTorch's own ATen operators are read; write this part of the model with them"
    return f"The graph calls {shown}, which is refused: {reason}."
