"""Per-example losses and correctness."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns −log softmax(logits)[label] for each example.

    Args:
      logits: [N, num_classes] float32.
      labels: [N] integers.

    Returns:
      [N] float32, in nats.
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns [N] bool: whether the largest logit is the label's."""
    return jnp.argmax(logits, axis=-1) == labels
