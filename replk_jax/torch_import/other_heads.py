"""Identifies heads of mmsegmentation that are not supported, by the names of their modules."""

import re
from collections.abc import Iterable

# Names of heads, each with patterns of the start of their tensors' names, after "decode_head.".
# The rarest names come first; no supported head matches.
_HEADS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("OCRHead", r"(?:\d+\.)?(?:object_context_block|spatial_gather_module)\."),
        ("SegformerHead", r"fusion_conv\."),
        ("PointHead", r"(?:\d+\.)?fcs?(?:_seg|\.\d+)\."),
        ("CCHead", r"cca\."),
        ("DAHead", r"(?:pam|cam)_(?:in|out)_conv\.|pam\."),
        ("NLHead or DNLHead", r"nl_block\."),
        ("GCHead", r"gc_block\."),
        ("EncHead", r"enc_module\.|se_layer\."),
        ("EMAHead", r"ema_module\."),
        ("PSAHead", r"attention(?:_p)?\.|reduce(?:_p)?\.|psamask"),
        ("APCHead", r"acm_modules\."),
        ("DMHead", r"dcm_modules\."),
        ("ANNHead", r"(?:fusion|context)\.(?:stages|matmul|project)|context\."),
        ("ISAHead", r"isa_layer\.|in_conv\."),
        ("LRASPPHead", r"conv_ups\."),
        ("FPNHead", r"scale_heads\."),
        ("a Mask2Former or MaskFormer head", r"pixel_decoder\.|transformer_decoder\."),
        ("SegmenterMaskTransformerHead", r"cls_emb|dec_proj\."),
        ("DPTHead", r"reassemble_blocks\."),
        ("SETRUPHead or SETRMLAHead", r"up_convs\.|mlahead"),
        ("DepthwiseSeparableFCNHead", r"convs\.\d+\.(?:depthwise|pointwise)_conv\."),
        ("KNet's head", r"kernel_(?:update|generate)_head\."),
        ("LightHamHead", r"hamburger\."),
    )
)


def identify(names: Iterable[str]) -> str | None:
    """The unsupported head of tensors, by names within the head; None if unknown."""
    names = list(names)
    return next((head for head, mark in _HEADS if any(map(mark.match, names))), None)
