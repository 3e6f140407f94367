"""How smooth the loss is: along the gradient while training, and around a trained network."""
