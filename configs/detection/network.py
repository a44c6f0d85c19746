"""The fields of the section `detector`: the neck and the heads on a backbone."""

from typing import Any

from ml_collections import config_dict


def detector_fields() -> dict[str, Any]:
    """The fields by their names in `replk_jax.create_detector`; None is the detector's own value.

    A detector takes those that it has: a value for another one is an error.
    """
    boolean, integer, real, text, several = (
        lambda kind=kind: config_dict.placeholder(kind) for kind in (bool, int, float, str, tuple)
    )
    return {
        "name": "fcos",  # faster_rcnn, mask_rcnn, cascade_rcnn or cascade_mask_rcnn
        # Whether a batch norm follows each feature map of a RepLKNet's stages.
        "norm_intermediate_features": boolean(),
        # Of the feature pyramid: its channels, its levels, and the first feature map of the
        # backbone that it uses; whether levels beyond the backbone's are convolutions instead of
        # subsampled feature maps, with a ReLU before each but the first.
        "neck_channels": integer(),
        "neck_num_outputs": integer(),
        "neck_start_level": integer(),
        "neck_extra_convs": boolean(),
        "neck_relu_before_extra_convs": boolean(),
        # Objects of an image that are found at most, the least score of each, and the overlap of
        # two of a class above which the one with the lower score is dropped.
        "max_detections": integer(),
        "score_threshold": real(),
        "nms_threshold": real(),
        # Of FCOS: the channels of its head, the convolutions of each branch, and the groups of its
        # group norms; the largest distance from a point to a side of its box, in pixels, on each
        # level but the last; whether distances are in strides, only points near the centres of
        # objects (within a radius in strides) are positive, and the branch of the boxes predicts
        # the centerness; and the pairs of a point and a class of each level that NMS sees.
        "channels": integer(),
        "num_convs": integer(),
        "num_groups": integer(),
        "regression_limits": several(),
        "norm_on_bbox": boolean(),
        "center_sampling": boolean(),
        "center_radius": real(),
        "centerness_on_reg": boolean(),
        "candidates_per_level": integer(),
        # All that follows is of the detectors with two stages. The RPN: its channels; the side of a
        # square anchor in strides, and the ratios of height to width; boxes of each level before
        # NMS and of the image after it, and the threshold of NMS.
        "rpn_channels": integer(),
        "rpn_anchor_scale": real(),
        "rpn_anchor_ratios": several(),
        "rpn_train_pre_nms": integer(),
        "rpn_train_post_nms": integer(),
        "rpn_test_pre_nms": integer(),
        "rpn_test_post_nms": integer(),
        "rpn_nms_threshold": real(),
        # Its losses: whether anchors must be within the image; the overlap from which on an anchor
        # is positive, below which it is negative, and the least one of the best anchor of an
        # object; anchors of an image, and the share of positive ones; beta of smooth L1.
        "rpn_anchors_inside": boolean(),
        "rpn_positive_threshold": real(),
        "rpn_negative_threshold": real(),
        "rpn_least_positive": real(),
        "rpn_sample_count": integer(),
        "rpn_positive_fraction": real(),
        "rpn_smooth_l1_beta": real(),
        # The box heads: bins of RoIAlign, and points of each bin (0: adaptive); numbers of
        # convolutions and of linear layers, and their channels; whether one box is for all classes.
        "box_size": integer(),
        "sampling_ratio": integer(),
        "box_convs": integer(),
        "box_conv_channels": integer(),
        "box_fcs": integer(),
        "box_fc_channels": integer(),
        "class_agnostic": boolean(),
        # Their losses: "giou", "l1" or "smooth_l1", and its weight; whether the best box of an
        # object is always positive; boxes of an image in a stage, and the share of positive ones.
        "box_loss": text(),
        "box_loss_weight": real(),
        "match_low_quality": boolean(),
        "sample_count": integer(),
        "positive_fraction": real(),
        # The mask heads: whether there are any; bins of RoIAlign (masks have twice as many), number
        # of convolutions, and their channels.
        "masks": boolean(),
        "mask_size": integer(),
        "mask_convs": integer(),
        "mask_channels": integer(),
    }
