"""Per-example losses and correctness."""

import jax
import jax.numpy as jnp
import optax

from jaxcifar.errors import UserError


def cross_entropy(logits: jax.Array, targets: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Returns −Σ_c target_c · log softmax(logits)_c for each example.

    Args:
      logits: [N, num_classes] float32.
      targets: labels [N], integers, or soft targets [N, num_classes] float32 that sum to 1. A
        label out of range is no error: its loss is NaN, but labels from −num_classes to −1 count
        from the end (−1 is the last class, not "ignore"). With label smoothing, a label out of
        range or negative counts as a target of zeros.
      label_smoothing: α; targets become (1 − α) · target + α / num_classes. Szegedy et al. 2016,
        "Rethinking the Inception Architecture for Computer Vision", section 7.

    Returns:
      [N] float32, in nats.

    Raises:
      UserError: the targets have another shape.
    """
    if targets.shape not in (logits.shape, logits.shape[:-1]):
        raise UserError(
            f"The targets are of shape {targets.shape}, and the logits of {logits.shape}. Give "
            f"labels {logits.shape[:-1]} or soft targets {logits.shape}."
        )
    are_labels = targets.ndim == logits.ndim - 1
    if label_smoothing:
        if are_labels:
            targets = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
        targets = optax.smooth_labels(targets, label_smoothing)
    elif are_labels:
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return optax.softmax_cross_entropy(logits, targets)


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns [N] bool: whether the largest logit is the label's."""
    return jnp.argmax(logits, axis=-1) == labels
