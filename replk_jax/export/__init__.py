"""Networks as programs that run without their Python code: StableHLO and ONNX."""

from replk_jax.export.program import export_model, plain_function

__all__ = ["export_model", "plain_function"]
