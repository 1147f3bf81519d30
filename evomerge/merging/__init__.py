"""How a recipe is built: one streaming pass per tensor into the live model, and its gradient."""
