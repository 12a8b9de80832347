"""What the engine and its losses cost, against hand-written code of the same mathematics."""
